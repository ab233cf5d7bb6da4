"""What one QMP client has handed over: descriptors, in SCM_RIGHTS messages beside its commands.

As in QEMU, `getfd` takes the descriptor that came last and gives it a name, which lives as long as the
client.
"""

from __future__ import annotations

import os
import socket

from ..errors import QmpCommandError

MAX_RECEIVED = 8
"""Descriptors of one message that are looked at; the kernel closes what does not fit."""
MAX_NAMED = 64
_FD_BYTES = 4  # a C int


class Session:
    """The descriptors of one client."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._named: dict[str, int] = {}

    def receive(self, connection: socket.socket, limit: int) -> bytes:
        """Read from the client as `socket.recv` does, and keep descriptors that come along. Raises
        OSError."""
        space = socket.CMSG_SPACE(MAX_RECEIVED * _FD_BYTES)
        data, ancillary, _, _ = connection.recvmsg(limit, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._drop_received()
                whole = len(content) - len(content) % _FD_BYTES
                self._received = memoryview(content[:whole]).cast("i").tolist()
        return data

    def take_received(self) -> int:
        """Return the descriptor that came last; it is the caller's. Raises QmpCommandError."""
        if not self._received:
            raise QmpCommandError("GenericError", "No file descriptor supplied via SCM_RIGHTS")
        fd = self._received.pop()
        self._drop_received()
        return fd

    def name_received(self, name: str) -> None:
        """Give the descriptor that came last a name, which another loses. Raises QmpCommandError."""
        if not name or name[0].isdigit():
            raise QmpCommandError(
                "GenericError", "Parameter 'fdname' expects a name not starting with a digit"
            )
        fd = self.take_received()
        if name not in self._named and len(self._named) >= MAX_NAMED:
            os.close(fd)
            raise QmpCommandError("GenericError", f"More than {MAX_NAMED} descriptors have names: close some")
        if name in self._named:
            os.close(self._named[name])
        self._named[name] = fd

    def take_named(self, name: str) -> int:
        """Return a descriptor by its name; it is the caller's. Raises QmpCommandError."""
        if name not in self._named:
            raise QmpCommandError("GenericError", f"File descriptor named '{name}' has not been found")
        return self._named.pop(name)

    def close(self) -> None:
        """Close everything that nobody took."""
        self._drop_received()
        for fd in self._named.values():
            os.close(fd)
        self._named.clear()

    def _drop_received(self) -> None:
        for fd in self._received:
            os.close(fd)
        self._received = []
