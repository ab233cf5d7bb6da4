"""QMP on the wire, without I/O: splitting a byte stream into JSON objects, and the shapes of messages.

Messages need not end with a newline (qemu.qmp sends none), and may span lines, so the stream is split by
counting brackets outside strings. Everything is bounded: the size of a message, and its depth.
Used by the server, by the clients, and by the tcg engine towards QEMU.
"""

from __future__ import annotations

import json
import re

from ..errors import QmpCommandError, QmpProtocolError

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

MAX_REQUEST_BYTES = 64 << 10
MAX_REPLY_BYTES = 4 << 20
MAX_DEPTH = 32

Message: TypeAlias = "dict[str, Any]"

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_WHITESPACE = b" \t\r\n"


class MessageReader:
    """Collects bytes and gives back whole messages. After an error it must not be used again."""

    def __init__(self, limit: int = MAX_REQUEST_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes from the peer, return the messages that are now complete.

        Raises QmpProtocolError for anything that is not a stream of JSON objects, or is too large or deep.
        """
        self._buffer += data
        messages: list[Message] = []
        while (end := self._find_end()) is not None:
            raw = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._scanned = 0
            messages.append(_parse(raw))
        if len(self._buffer) > self._limit:
            raise QmpProtocolError(f"Message is larger than {self._limit} bytes")
        return messages

    def _find_end(self) -> int | None:
        if self._depth == 0:
            # Only whitespace may stand between messages.
            stripped = self._buffer.lstrip(_WHITESPACE)
            self._buffer[:] = stripped
            if not self._buffer:
                return None
            if self._buffer[0] != ord("{"):
                raise QmpProtocolError("Message does not begin with '{'")
        while True:
            pattern = _INSIDE if self._in_string else _OUTSIDE
            match = pattern.search(self._buffer, self._scanned)
            if match is None:
                self._scanned = len(self._buffer)
                return None
            character = match.group()
            self._scanned = match.end()
            if self._in_string:
                if character == b'"':
                    self._in_string = False
                elif self._scanned < len(self._buffer):
                    self._scanned += 1  # the escaped character
                else:
                    self._scanned -= 1  # the escaped character has not come yet
                    return None
            elif character == b'"':
                self._in_string = True
            elif character in b"{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise QmpProtocolError(f"Message is nested deeper than {MAX_DEPTH} levels")
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._scanned


def _parse(raw: bytes) -> Message:
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise QmpProtocolError("Message is not valid JSON") from error
    if not isinstance(message, dict):
        raise QmpProtocolError("Message is not a JSON object")
    return message


def serialise(message: Message) -> bytes:
    """Return the bytes of a message, with the line end that QEMU sends."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"


def command(name: str, arguments: Message | None, request_id: object = None) -> Message:
    """Return a command message."""
    message: Message = {"execute": name}
    if arguments:
        message["arguments"] = arguments
    if request_id is not None:
        message["id"] = request_id
    return message


def result_of(message: Message) -> Any:
    """Return the value of a reply. Raises QmpCommandError for a refusal, QmpProtocolError for no reply."""
    if "return" in message:
        return message["return"]
    error = message.get("error")
    if not isinstance(error, dict):
        raise QmpProtocolError("Message is neither a return value nor an error")
    raise QmpCommandError(str(error.get("class", "GenericError")), str(error.get("desc", "")))
