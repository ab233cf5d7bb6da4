"""Frames out of bytes, whatever the bytes are."""

from __future__ import annotations

import random

import pytest

from shim.ttrpc import framing

pytestmark = pytest.mark.unit


def test_decoder_frame_in_single_bytes_is_given_out_once_complete() -> None:
    decoder = framing.FrameDecoder()
    data = framing.encode(3, framing.TYPE_REQUEST, b"payload", 2)

    given = [decoder.feed(data[index : index + 1]) for index in range(len(data))]

    assert given[:-1] == [[]] * (len(data) - 1)
    assert given[-1] == [framing.Frame(3, framing.TYPE_REQUEST, 2, b"payload")]


def test_decoder_several_frames_in_one_read_keep_their_order() -> None:
    frames = [framing.encode(number, 1, bytes([number])) for number in (1, 3, 5)]

    given = framing.FrameDecoder().feed(b"".join(frames))

    assert [(frame.stream_id, frame.payload) for frame in given] == [(1, b"\1"), (3, b"\3"), (5, b"\5")]


def test_decoder_empty_payload_is_a_frame() -> None:
    assert framing.FrameDecoder().feed(framing.encode(1, 1, b""))[0].payload == b""


def test_decoder_largest_payload_is_accepted() -> None:
    payload = bytes(framing.MAX_PAYLOAD)

    assert framing.FrameDecoder().feed(framing.encode(1, 1, payload))[0].payload == payload


def test_decoder_oversize_frame_is_reported_at_once_and_skipped() -> None:
    decoder = framing.FrameDecoder()
    length = framing.MAX_PAYLOAD + 1

    reported = decoder.feed(framing.HEADER.pack(length, 7, 1, 0))
    during = [frame for _ in range(length // 65536) for frame in decoder.feed(bytes(65536))]
    after = decoder.feed(bytes(length % 65536) + framing.encode(9, 1, b"next"))

    assert reported == [framing.Frame(7, 1, 0, b"", oversize=length)]
    assert during == []
    assert after == [framing.Frame(9, 1, 0, b"next")]


def test_decoder_holds_no_more_than_one_frame_of_an_endless_oversize_payload() -> None:
    decoder = framing.FrameDecoder()
    decoder.feed(framing.HEADER.pack(0xFFFFFFFF, 1, 1, 0))

    for _ in range(256):
        decoder.feed(bytes(65536))

    assert len(decoder._buffer) == 0


def test_decoder_random_bytes_never_raise() -> None:
    chooser = random.Random(20)

    for _ in range(200):
        decoder = framing.FrameDecoder()
        for _ in range(20):
            decoder.feed(chooser.randbytes(chooser.randrange(0, 100)))


def test_encode_payload_above_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        framing.encode(1, 1, bytes(framing.MAX_PAYLOAD + 1))
