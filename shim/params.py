"""What containerd told the shim binary: flags, environment, stdin. Without imports beyond os.

Read by the `start`, `run` and `delete` verbs. Three dialects reach stdin of `start`:
a `BootstrapParams` message (containerd 2.3 and later), an `Any` with runtime options (1.6 to 2.2), or
nothing (also isula). An Any parses as BootstrapParams too, because both have strings in fields 1 and 2;
they are told apart by comparing those strings with the flags (containerd issue 13763).
"""

from __future__ import annotations

import os

# `dataclasses` costs as much as the rest of `start` together, hence plain classes with slots.

STDIN_LIMIT = 4 << 20
_RUNTIME_OPTIONS_URLS = ("runtimeoptions.v1.Options",)


class ParamsError(Exception):
    """The command line or stdin cannot be understood."""


class ShimParams:
    """Parameters of one call of the shim binary; everything optional but `id`."""

    __slots__ = (
        "address", "bootstrap", "bundle", "debug", "id", "info", "namespace", "options_body",
        "options_path", "publish_binary", "socket_dir", "stdin", "ttrpc_address", "verb", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.verb = ""
        self.id = ""
        self.namespace = ""
        self.address = ""
        """containerd's gRPC address; names sockets and state directories."""
        self.ttrpc_address = ""
        """Where events go; empty: through publish_binary."""
        self.publish_binary = ""
        self.bundle = ""
        self.debug = False
        self.info = False
        self.version = False
        self.bootstrap = False
        """Whether the caller sent BootstrapParams and so reads a BootstrapResult."""
        self.socket_dir = ""
        self.options_path = ""
        self.options_body = b""
        self.stdin = b""
        """What was read from stdin, unchanged; handed on to the daemon."""


def read_stdin(fd: int = 0) -> bytes:
    """All of *fd*, at most STDIN_LIMIT bytes. Raises ParamsError when there is more."""
    parts: list[bytes] = []
    total = 0
    while True:
        try:
            part = os.read(fd, 65536)
        except OSError:
            break  # closed stdin: nothing was said
        if not part:
            break
        parts.append(part)
        total += len(part)
        if total > STDIN_LIMIT:
            raise ParamsError(f"Stdin holds more than {STDIN_LIMIT} bytes")
    return b"".join(parts)


_STRING_FLAGS = {
    "namespace": "namespace", "id": "id", "address": "address", "publish-binary": "publish_binary",
    "bundle": "bundle", "socket": "", "debug-socket": "",
}  # fmt: skip
_BOOL_FLAGS = {"debug": "debug", "info": "info", "v": "version", "version": "version"}


def parse_command_line(argv: list[str], environ: dict[str, str]) -> ShimParams:
    """Flags in both dash styles (`-id X`, `--id X`, `-id=X`) and the verb, as Go's flag package reads them.

    Raises ParamsError for an unknown flag or a flag without its value.
    """
    params = ShimParams()
    params.ttrpc_address = environ.get("TTRPC_ADDRESS", "")
    params.address = environ.get("GRPC_ADDRESS", "")
    params.namespace = environ.get("NAMESPACE", "")
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if params.verb:
                raise ParamsError(f"Unexpected argument {word} after the verb {params.verb}")
            params.verb = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _BOOL_FLAGS:
            setattr(params, _BOOL_FLAGS[name], not equals or value in ("1", "t", "T", "true", "TRUE", "True"))
        elif name in _STRING_FLAGS:
            if not equals:
                if not rest:
                    raise ParamsError(f"Flag -{name} needs a value")
                value = rest.pop(0)
            if _STRING_FLAGS[name]:
                setattr(params, _STRING_FLAGS[name], value)
        else:
            raise ParamsError(f"Unknown flag {word}")
    return params


def apply_stdin(params: ShimParams, data: bytes) -> None:
    """Fill *params* from what came on stdin of `start`.

    Raises ParamsError when it is none of the three dialects.
    """
    params.stdin = data
    if not data:
        return
    fields = parse_message(data)
    if fields is None:
        raise ParamsError(f"Stdin holds {len(data)} bytes that are no protobuf message")
    instance_id, namespace = _text(fields, 1), _text(fields, 2)
    # The flags are deprecated in 2.3; callers of the old forms always pass them.
    no_flags = not params.id and bool(instance_id)
    if no_flags or (instance_id == params.id and namespace == params.namespace):
        _apply_bootstrap(params, fields)
    else:
        _apply_any(params, data)


def _apply_bootstrap(params: ShimParams, fields: dict[int, list[int | bytes]]) -> None:
    params.bootstrap = True
    params.id = _text(fields, 1)
    params.namespace = _text(fields, 2)
    # DEBUG is -4 and TRACE -8; negative enums are ten-byte varints.
    level = _number(fields, 3)
    params.debug = params.debug or level >= 1 << 63
    params.ttrpc_address = _text(fields, 5) or params.ttrpc_address
    params.address = _text(fields, 6) or params.address
    params.publish_binary = _text(fields, 7) or params.publish_binary
    params.socket_dir = _text(fields, 9)
    for extension in fields.get(8, []):
        wrapped = parse_message(extension) if isinstance(extension, bytes) else None
        value = (wrapped or {}).get(1, [b""])[-1]
        if isinstance(value, bytes):
            _apply_any(params, value)


def _apply_any(params: ShimParams, data: bytes) -> None:
    fields = parse_message(data)
    if fields is None:
        raise ParamsError(f"Runtime options of {len(data)} bytes are no protobuf message")
    url = _text(fields, 1).rpartition("/")[2]
    if url not in _RUNTIME_OPTIONS_URLS:
        return  # runc's options, for instance: CRI sends them to every runtime
    options = parse_message(_bytes(fields, 2))
    if options is None:
        raise ParamsError(f"Runtime options of type {url} cannot be parsed")
    params.options_path = _text(options, 2)
    params.options_body = _bytes(options, 3)


# Protobuf by hand: importing the library costs four times the whole budget of `start`.
# Wire format: https://protobuf.dev/programming-guides/encoding/


def parse_message(data: bytes) -> dict[int, list[int | bytes]] | None:
    """Field number -> values in order (int for varint and fixed, bytes for the rest); None if malformed."""
    fields: dict[int, list[int | bytes]] = {}
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        if position < 0 or key >> 3 == 0:
            return None
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, position = _varint(data, position)
            if position < 0:
                return None
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value = int.from_bytes(data[position : position + size], "little")
            position += size
        elif kind == 2:
            length, position = _varint(data, position)
            if position < 0:
                return None
            value = data[position : position + length]
            position += length
        else:
            return None
        if position > len(data):
            return None
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    # (value, next position); position -1 when cut short or longer than 64 bits
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return 0, -1


def encode_varint(value: int) -> bytes:
    """A non-negative integer as a base-128 varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, value: int | bytes) -> bytes:
    """One field: a varint for an int, length-delimited for bytes; nothing for the default value."""
    if not value:
        return b""
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def _bytes(fields: dict[int, list[int | bytes]], number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def _text(fields: dict[int, list[int | bytes]], number: int) -> str:
    return _bytes(fields, number).decode("utf-8", "replace")


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    value = fields.get(number, [0])[-1]
    return value if isinstance(value, int) else 0
