"""Where a container's bytes come from and go to on the host: fifo, file, logger program, nothing.

Opens what the stdio strings of Create and Exec name (shim contract: scheme of the string) and hands plain
descriptors to stdio.py. Opening never blocks, whoever is or is not at the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from urllib.parse import parse_qsl, urlsplit

from vmm.record import field, record

from . import launch
from .errors import DeadlineError, HostError, InvalidArgumentError

LOGGER_READY_TIMEOUT_S = 10.0
LOGGER_TERM_TIMEOUT_S = 12.0


@record(frozen=True)
class StdioRequest:
    """The stdio of one process as containerd asked for it; an empty string means none."""

    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


@record
class Endpoint:
    """One opened stream: `fd` moves bytes, `spare` keeps a fifo's other side from ending."""

    fd: int
    spare: int = -1

    def close_spare(self) -> None:
        """Let go of the spare end."""
        if self.spare >= 0:
            os.close(self.spare)
            self.spare = -1

    def close(self) -> None:
        """Close everything. May be called twice."""
        self.close_spare()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@record
class Endpoints:
    """The opened outputs of one process, by name (stdout, stderr)."""

    streams: dict[str, Endpoint] = field(default_factory=dict)
    logger_pid: int = 0

    def close(self) -> None:
        """Close every stream."""
        for endpoint in self.streams.values():
            endpoint.close()


def _path(uri: str) -> str:
    return uri.removeprefix("fifo://")


def open_input(uri: str) -> Endpoint:
    """The reading end of the fifo *uri*, and a writing end so that only CloseIO ends it."""
    path = _path(uri)
    try:
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(reading).st_mode):
            return Endpoint(reading)
        try:
            return Endpoint(reading, os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            os.close(reading)
            raise
    except OSError as error:
        raise HostError(f"Cannot open stdin {path}: {error.strerror}") from error


def open_output(uri: str) -> Endpoint:
    """The writing end of fifo or file *uri*; for a fifo a reading end too, so that no reader is no error."""
    path = _path(uri)
    spare = -1
    try:
        if uri.startswith("file://"):
            return Endpoint(_append(urlsplit(uri).path))
        if not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116
            return Endpoint(_append(path))
        spare = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return Endpoint(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), spare)
    except OSError as error:
        if spare >= 0:
            os.close(spare)
        raise HostError(f"Cannot open output {path}: {error.strerror}") from error


def _append(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


async def open_endpoints(
    request: StdioRequest, *, container_id: str, namespace: str, reaper: launch.Reaper
) -> Endpoints:
    """Open the outputs *request* names. Raises HostError, InvalidArgumentError, DeadlineError (logger)."""
    opened = Endpoints()
    try:
        scheme = urlsplit(request.stdout).scheme if "://" in request.stdout else "fifo"
        if scheme in ("binary", "binary-v2"):
            await _start_logger(opened, request, container_id, namespace, reaper)
        elif scheme in ("fifo", "file"):
            if request.stdout:
                opened.streams["stdout"] = open_output(request.stdout)
            if request.stderr and not request.terminal:
                opened.streams["stderr"] = open_output(request.stderr)
        else:
            raise InvalidArgumentError(f"Stdio scheme {scheme} of {request.stdout!r} is not supported")
    except BaseException:
        opened.close()
        raise
    return opened


async def _start_logger(
    opened: Endpoints, request: StdioRequest, container_id: str, namespace: str, reaper: launch.Reaper
) -> None:
    """Run the logger of a binary:// URI: it reads fd 3 and 4, and closes or writes fd 5 when it is ready."""
    uri = urlsplit(request.stdout)
    argv = [uri.path]
    for key, value in parse_qsl(uri.query, keep_blank_values=True):
        argv += [key, value] if value else [key]
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    opened.streams["stdout"] = Endpoint(out_write)
    if request.terminal:
        os.close(err_write)
    else:
        opened.streams["stderr"] = Endpoint(err_write)
    environment = {**os.environ, "CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
    try:
        opened.logger_pid = launch.spawn(
            argv,
            fds={0: null, 1: null, 2: null, 3: out_read, 4: err_read, 5: ready_write},
            environment=environment,
        )
        reaper.watch(opened.logger_pid, lambda status: None)
    except BaseException:
        os.close(ready_read)
        raise
    finally:
        for fd in (out_read, err_read, ready_write, null):
            os.close(fd)
    try:
        said = await _await_ready(ready_read)
    except TimeoutError as error:
        reaper.kill(opened.logger_pid)
        raise DeadlineError(f"Logger {uri.path} was not ready within {LOGGER_READY_TIMEOUT_S:g} s") from error
    finally:
        os.close(ready_read)
    if uri.scheme == "binary-v2" and not said:
        raise HostError(f"Logger {uri.path} ended before it was ready")


async def _await_ready(fd: int) -> bytes:
    os.set_blocking(fd, False)
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if readable.done() else readable.set_result(None))
    try:
        async with asyncio.timeout(LOGGER_READY_TIMEOUT_S):
            await readable
    finally:
        loop.remove_reader(fd)
    with contextlib.suppress(OSError):
        return os.read(fd, 1)
    return b""
