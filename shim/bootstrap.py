"""The `start` verb: listen, start the daemon, print the address, exit.

Called by shim/__main__.py in a process of its own, with the bundle as working directory. stdout and
stderr are one pipe that containerd reads as the answer, so nothing but the answer is ever written
there. Everything expensive happens in the daemon: the listening socket is made here and inherited, so
that containerd's connection waits in its backlog while the daemon imports its modules.

Imports are counted in milliseconds here (a test holds the list): `_socket` instead of socket, and json,
tomllib only for bundles or configurations that need them.
"""

from __future__ import annotations

import _socket
import os
import sys

from . import names
from .params import ParamsError, ShimParams, encode_field

LISTENER_FD = 3
STDIN_FD = 4
"""Descriptors of the daemon: the listening socket, and a memfd with what came on stdin."""

_BACKLOG = 128
_CONNECT_ATTEMPTS = 2


class StartError(Exception):
    """The sandbox cannot be started; the text is shown to the user."""


def start(params: ShimParams, launcher: str) -> bytes:
    """Make sure that a shim for *params* listens; return the answer for stdout.

    *launcher* is the executable script that runs shim.__main__. Raises StartError, ParamsError, OSError.
    """
    if not params.id:
        raise ParamsError("Flag -id is missing")
    group = names.group_of(".", params.id)
    path = names.socket_path(params.address, params.namespace, group, params.socket_dir)
    if len(path) > names.SOCKET_PATH_LIMIT:
        raise StartError(
            f"Socket path {path} is longer than {names.SOCKET_PATH_LIMIT} bytes; shorten socket_dir"
        )
    transport, grpc_version = _transport(params)
    listener = _listen(path)
    if listener is not None:
        try:
            if names.has_ended("."):
                os.unlink(names.ENDED_NAME)  # noqa: PTH108 (of an earlier sandbox of this bundle)
            pid = _spawn_daemon(params, launcher, listener)
        except BaseException:
            os.unlink(path)  # noqa: PTH108 (pathlib is not imported here)
            raise
        finally:
            listener.close()
        write("shim.pid", str(pid))
    address = path if transport == "grpc" else f"unix://{path}"
    write("address", address)
    return _answer(params, address, transport, grpc_version)


def _answer(params: ShimParams, address: str, transport: str, grpc_version: int) -> bytes:
    if params.bootstrap:
        # containerd.runtime.bootstrap.v1.BootstrapResult
        return encode_field(1, 3) + encode_field(2, address.encode()) + encode_field(3, transport.encode())
    if transport == "grpc":
        # 1.7 takes version 2 only, 2.0 to 2.2 want 3; nothing in the call tells the two apart.
        return f'{{"version":{grpc_version},"address":"{address}","protocol":"grpc"}}'.encode()
    return address.encode()


def _transport(params: ShimParams) -> tuple[str, int]:
    """(transport, version to answer with it)."""
    # Only a configuration that mentions transport is worth importing a TOML parser for.
    from . import config_files

    if b"transport" not in params.options_body and not config_files.mention(
        b"transport", params.options_path
    ):
        return "ttrpc", 0
    from . import config

    settings = config.load_settings(options_path=params.options_path, options_body=params.options_body)
    return settings.shim.transport, settings.shim.grpc_version


def _listen(path: str) -> _socket.socket | None:
    """A socket listening on *path*; None when a live shim of this group listens there already."""
    directory = path.rpartition("/")[0]
    os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103
    for _ in range(_CONNECT_ATTEMPTS):
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        old_mask = os.umask(0o177)
        try:
            listener.bind(path)
        except FileExistsError:
            listener.close()
        except OSError as error:
            listener.close()
            if error.errno != 98:  # EADDRINUSE; the errno module is not needed for one number
                raise StartError(f"Cannot listen on {path}: {error.strerror}") from error
        else:
            listener.listen(_BACKLOG)
            return listener
        finally:
            os.umask(old_mask)
        if _connects(path):
            return None
        try:  # noqa: SIM105 (contextlib is not imported here)
            os.unlink(path)  # noqa: PTH108 (left by a shim that was killed)
        except FileNotFoundError:
            pass
    raise StartError(f"Cannot listen on {path}: another process keeps making and removing it")


def _connects(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _spawn_daemon(params: ShimParams, launcher: str, listener: _socket.socket) -> int:
    """Start `run` in the background; it keeps the bundle as its working directory. Returns its pid."""
    handed_on = os.memfd_create("strato-shim-stdin", os.MFD_CLOEXEC)
    os.write(handed_on, params.stdin)
    os.lseek(handed_on, 0, os.SEEK_SET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    log = _open_log(null)
    # Sources above the targets, so that no dup2 overwrites one that is still needed.
    sources = [_above(fd) for fd in (null, null, log, listener.fileno(), handed_on)]
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(sources)]
    argv = [sys.executable, "-IS", launcher, "-namespace", params.namespace, "-id", params.id]
    if params.address:
        argv += ["-address", params.address]
    if params.publish_binary:
        argv += ["-publish-binary", params.publish_binary]
    if params.debug:
        argv.append("-debug")
    argv.append("run")
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True)


def _above(fd: int) -> int:
    # F_DUPFD_CLOEXEC from 10 on; the copies end with this process
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def _open_log(null: int) -> int:
    """The bundle's `log` (a fifo, or a regular file under isula) as the daemon's stderr; else /dev/null."""
    try:
        return os.open("log", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return null


def write(name: str, text: str) -> None:
    """Write *text* to file *name* of the bundle, complete or not at all."""
    temporary = f".{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.rename(temporary, name)  # noqa: PTH104
