"""The guest's console: a ring of its latest output, a log file of limited size, and optionally stdio.

The engine gets one end of a socketpair; QEMU drops output when the socket is full, so a slow disk here
never holds up the guest, and a flood may have gaps. One `Console` per VM, owned by the machine.
"""

import os
import socket
from pathlib import Path

from .config import ConsoleConfig
from .errors import HostError
from .log import Log
from .loop import EventLoop

_READ_BYTES = 65536
_MAX_PENDING_INPUT = 4096
_SOCKET_BUFFER_BYTES = 1 << 22
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python's socket module does not name it


class ConsoleRing:
    """The last bytes of a stream, and how many came before them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._data = bytearray()
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Append, dropping the oldest bytes beyond the capacity."""
        self._data += data
        excess = len(self._data) - self._capacity
        if excess > 0:
            del self._data[:excess]
            self.dropped += excess

    def text(self) -> str:
        """Return the contents; bytes that are not UTF-8 are replaced."""
        return self._data.decode(errors="replace")


class ConsoleLog:
    """A file that is appended to, and moved to ``<name>.1`` at half of its limit."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._half = limit_bytes // 2
        self._fd, self._size = self._open()

    def write(self, data: bytes) -> None:
        """Append. Raises OSError."""
        data = data[-self._half :]
        if self._size + len(data) > self._half:
            os.close(self._fd)
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._fd, self._size = self._open()
        self._size += os.write(self._fd, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> tuple[int, int]:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        return fd, os.fstat(fd).st_size


class Console:
    """Connects the guest's hvc0 to ring, log and stdio."""

    def __init__(self, config: ConsoleConfig, *, loop: EventLoop, log: Log) -> None:
        self.ring = ConsoleRing(config.ring_kib << 10)
        self._loop = loop
        self._log = log
        self._file: ConsoleLog | None = None
        if config.log is not None:
            try:
                self._file = ConsoleLog(config.log, config.limit_kib << 10)
            except OSError as error:
                raise HostError(f"Console log {config.log} cannot be opened") from error
        self._ours, self.guest_end = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        make_room(self.guest_end)
        self._ours.setblocking(False)
        self._stdout = 1 if config.stdio else -1
        self._stdin = 0 if config.stdio else -1
        self._listening = False
        self._pending = b""

    def attach(self) -> None:
        """Begin to move bytes; the engine has its end by now, and ours of it is closed."""
        self.guest_end.close()
        self._loop.add_reader(self._ours.fileno(), self._on_output)

    def drain(self) -> None:
        """Take what the guest has written, until there is no more for now."""
        while self._take():
            pass

    def close(self) -> None:
        """Stop; to be called once, after the last `drain`."""
        self._loop.remove_reader(self._ours.fileno())
        if self._stdin >= 0:
            self._loop.remove_reader(self._stdin)
        self._ours.close()
        self.guest_end.close()
        if self._file is not None:
            self._file.close()

    def _on_output(self) -> None:
        self._take()
        if self._stdin >= 0 and not self._listening:
            self._listen()

    def _listen(self) -> None:
        # Not before the guest's first output: Linux throws away what arrives while its console driver is
        # being set up (drivers/char/virtio_console.c, in_intr before add_port has listed the port).
        self._listening = True
        try:
            self._loop.add_reader(self._stdin, self._on_input)
        except PermissionError:  # epoll refuses regular files: they are always ready
            self._loop.call_later(0, self._on_input)

    def _take(self) -> bool:
        try:
            data = self._ours.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._ours.fileno())
            return False
        self.ring.write(data)
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError as error:
                self._log.warn("Console log is given up", cause=error)
                self._file = None
        if self._stdout >= 0:
            self._write_stdout(data)
        return True

    def _write_stdout(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._stdout, data) :]
        except OSError:
            self._stdout = -1  # the terminal is gone; ring and log go on

    def _on_input(self) -> None:
        try:
            data = os.read(self._stdin, _MAX_PENDING_INPUT)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._stdin)
            self._stdin = -1
            return
        self._pending += data
        self._loop.remove_reader(self._stdin)  # until this has been taken: the guest sets the pace
        self._flush_input()

    def _flush_input(self) -> None:
        try:
            self._pending = self._pending[self._ours.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""
        if self._pending:
            self._loop.add_writer(self._ours.fileno(), self._flush_input)
            return
        self._loop.remove_writer(self._ours.fileno())
        if self._stdin >= 0:
            self._listen()


def make_room(connection: socket.socket) -> None:
    """Give QEMU's end of a console socket room for thousands of lines while the reader is busy."""
    # The kernel charges each small write with most of a KiB.
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BUFFER_BYTES)
    except PermissionError:  # not root: as much as the host allows
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
