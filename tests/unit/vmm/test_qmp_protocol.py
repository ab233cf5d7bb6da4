"""QMP on the wire: splitting, bounds, shapes."""

import json
import random

import pytest

from vmm.errors import QmpCommandError, QmpProtocolError
from vmm.qmp.protocol import MAX_DEPTH, MessageReader, command, result_of, serialise

pytestmark = pytest.mark.unit

MESSAGES = [
    {"execute": "query-status"},
    {
        "execute": "x",
        "arguments": {"text": 'br}ac{es and "quotes" and \\ and \\"', "list": [[1], {"a": "]"}]},
    },
    {},
    {"event": "STOP", "data": {"ä": "\u2028"}},
]


def test_messages_without_separators_are_split() -> None:
    stream = b"".join(json.dumps(message).encode() for message in MESSAGES)

    assert MessageReader().feed(stream) == MESSAGES


def test_messages_are_split_the_same_however_the_stream_is_cut() -> None:
    generator = random.Random(7)
    stream = b" \r\n".join(json.dumps(message, indent=1).encode() for message in MESSAGES * 5)
    for _ in range(200):
        cuts = sorted(generator.sample(range(len(stream)), generator.randrange(1, 40)))
        reader, received = MessageReader(), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            received += reader.feed(stream[start:end])
        assert received == MESSAGES * 5


def test_stream_cut_at_every_byte_is_split() -> None:
    reader, received = MessageReader(), []
    for byte in json.dumps(MESSAGES[1]).encode():
        received += reader.feed(bytes([byte]))

    assert received == [MESSAGES[1]]


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello",
        b"[1]",
        b"\xff{}",
        b"}",
        b'"a"',
        b"{]",
        b"{1}",
        b'{"a" "b"}',
        b"{}x",
        b"\0",
        b'{"a":\xff\xfe}',
    ],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(QmpProtocolError):
        MessageReader().feed(garbage)


def test_message_beyond_the_limit_is_refused_before_it_is_complete() -> None:
    reader = MessageReader(limit=1000)

    with pytest.raises(QmpProtocolError, match="larger"):
        reader.feed(b'{"a": "' + b"x" * 1000)


def test_many_small_messages_may_exceed_the_limit_together() -> None:
    reader = MessageReader(limit=100)

    assert len(reader.feed(b'{"a": 1}' * 1000)) == 1000


def test_deep_nesting_is_refused_at_once() -> None:
    with pytest.raises(QmpProtocolError, match="nested"):
        MessageReader().feed(b'{"a":' * (MAX_DEPTH + 1))


def test_serialised_command_reads_back() -> None:
    message = command("set_link", {"name": "n0", "up": True}, 7)

    assert MessageReader().feed(serialise(message)) == [message]


def test_result_of_error_raises_with_class_and_description() -> None:
    with pytest.raises(QmpCommandError) as caught:
        result_of({"error": {"class": "DeviceNotFound", "desc": "No"}, "id": 1})

    assert (caught.value.error_class, caught.value.description) == ("DeviceNotFound", "No")


def test_result_of_something_else_is_a_protocol_error() -> None:
    with pytest.raises(QmpProtocolError):
        result_of({"id": 1})
