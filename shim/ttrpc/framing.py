"""ttrpc frames from bytes and back (containerd/ttrpc PROTOCOL.md); never sees a socket.

A frame is a 10-byte big-endian header (u32 payload length, u32 stream id, u8 type, u8 flags) and its
payload. Used by server.py and client.py, one `FrameDecoder` per connection and direction.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20
"""PROTOCOL.md: "The maximum frame size is 4MB"; larger ones are discarded and refused on their stream."""

TYPE_REQUEST = 1
TYPE_RESPONSE = 2
TYPE_DATA = 3

FLAG_REMOTE_CLOSED = 1
FLAG_REMOTE_OPEN = 2
FLAG_NO_DATA = 4


class Frame(NamedTuple):
    """One received frame; `oversize` is the refused length (then payload is empty), else 0."""

    stream_id: int
    type: int
    flags: int
    payload: bytes
    oversize: int = 0


def encode(stream_id: int, frame_type: int, payload: bytes, flags: int = 0) -> bytes:
    """The bytes of one frame. Raises ValueError when the payload exceeds MAX_PAYLOAD."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"Frame payload of {len(payload)} bytes exceeds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), stream_id, frame_type, flags) + payload


class FrameDecoder:
    """Collects bytes and gives out whole frames.

    Memory is bounded: never more than one frame of MAX_PAYLOAD is held; the payload of a larger frame
    is counted down and dropped as it arrives, and reported at once by a frame with `oversize` set.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._discard = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take in *data*; return the frames that are complete now, in order."""
        self._buffer += data
        frames: list[Frame] = []
        while True:
            if self._discard:
                dropped = min(self._discard, len(self._buffer))
                del self._buffer[:dropped]
                self._discard -= dropped
                if self._discard:
                    return frames
            if len(self._buffer) < HEADER.size:
                return frames
            length, stream_id, frame_type, flags = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                del self._buffer[: HEADER.size]
                self._discard = length
                frames.append(Frame(stream_id, frame_type, flags, b"", oversize=length))
                continue
            end = HEADER.size + length
            if len(self._buffer) < end:
                return frames
            frames.append(Frame(stream_id, frame_type, flags, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
