"""Every error the shim raises on purpose, and the gRPC code each has on the wire.

    ShimError                      UNKNOWN
    ├── InvalidArgumentError       INVALID_ARGUMENT    the caller's request or configuration is wrong
    │   ├── ConfigError                                a configuration file, option or annotation is wrong
    │   └── SpecError                                  a field of config.json is wrong
    │       └── SpecRefusedError                       a field asks for what a microVM cannot do
    ├── NotFoundError              NOT_FOUND           no such container or process (any more)
    ├── AlreadyExistsError         ALREADY_EXISTS
    ├── StateError                 FAILED_PRECONDITION the process is in the wrong state
    ├── WrongStateError            UNKNOWN             same, where containerd expects an unknown error
    ├── UnimplementedError         UNIMPLEMENTED
    ├── DeadlineError              DEADLINE_EXCEEDED
    ├── RevokedError               CANCELLED           a Delete overtook the Create
    ├── HostError                  INTERNAL            the host refuses: a missing file, no memory
    ├── SandboxError               UNAVAILABLE         the VM failed or is gone
    │   └── GuestProtocolError                         the guest broke the protocol
    └── RemoteError                as answered         a ttrpc peer answered with a status

Raised everywhere in `shim`; turned into a status in exactly two places, ttrpc/server.py and
grpc_transport.py, by `status_of`.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes (grpc: doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class ShimError(Exception):
    """Base of the tree; `code` is the gRPC code of the answer."""

    code: Code = Code.UNKNOWN


class InvalidArgumentError(ShimError):
    code = Code.INVALID_ARGUMENT


class ConfigError(InvalidArgumentError):
    pass


class SpecError(InvalidArgumentError):
    """A field of config.json is wrong."""

    def __init__(self, json_path: str, reason: str) -> None:
        super().__init__(f"config.json: {json_path}: {reason}")
        self.json_path = json_path
        self.reason = reason


class SpecRefusedError(SpecError):
    """A field of config.json asks for what a microVM cannot do."""


class NotFoundError(ShimError):
    code = Code.NOT_FOUND


class AlreadyExistsError(ShimError):
    code = Code.ALREADY_EXISTS


class StateError(ShimError):
    code = Code.FAILED_PRECONDITION


class WrongStateError(ShimError):
    code = Code.UNKNOWN


class UnimplementedError(ShimError):
    code = Code.UNIMPLEMENTED


class RevokedError(ShimError):
    code = Code.CANCELLED


class DeadlineError(ShimError):
    code = Code.DEADLINE_EXCEEDED


class HostError(ShimError):
    code = Code.INTERNAL


class SandboxError(ShimError):
    code = Code.UNAVAILABLE


class GuestProtocolError(SandboxError):
    pass


class RemoteError(ShimError):
    """A ttrpc peer answered with an error status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        try:
            self.code = Code(code)
        except ValueError:
            self.code = Code.UNKNOWN


def describe(error: BaseException) -> str:
    """The error and its explicit causes as one line, outermost first.

    A cause whose text is already part of the line is left out.
    """
    text = str(error) or type(error).__name__
    cause = error.__cause__
    seen = {id(error)}
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        part = str(cause) or type(cause).__name__
        if part not in text:
            text = f"{text}: {part}"
        cause = cause.__cause__
    return text


def status_of(error: BaseException) -> tuple[Code, str]:
    """The gRPC code and message that *error* is answered with."""
    if isinstance(error, ShimError):
        return error.code, describe(error)
    if isinstance(error, TimeoutError):
        return Code.DEADLINE_EXCEEDED, describe(error) or "Deadline exceeded"
    # Errors of other packages (oci, vmm) carry a code of their own or are plain refusals.
    code = getattr(error, "code", None)
    if isinstance(code, Code):
        return code, describe(error)
    return Code.UNKNOWN, describe(error)
