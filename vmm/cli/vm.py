"""`strato vm run` and `strato vm plan`."""

import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import paths
from ..boards.base import board
from ..config import EngineName, VmConfig
from ..decoding import MAX_CONFIG_BYTES, decode, dump, encode
from ..errors import ConfigError, HostError
from ..jail import view
from ..signals import killed_by
from .scratch import Scratch, scratch_folder

ESCAPE = 0x01  # Ctrl-A
QUIT = ord("x")
_READ_BYTES = 4096


def plan(file: Path) -> int:
    """Print the machine plan of a configuration file. Raises VmmError."""
    from ..engines.probe import resolve
    from ..engines.traits import traits
    from ..log import Level, Log

    config = _load(file, Path("/run"))
    log = Log(Level.ERROR)
    # An engine that is named need not run here: whoever asks may be about to take the file elsewhere.
    engine = resolve(config.engine, log) if config.engine is EngineName.AUTO else config.engine
    machine = board(config.board).plan(config, traits(engine, config, log))
    sys.stdout.write(f"engine {engine}\n{machine.render()}\n")
    return 0


def run(file: Path, *, log_level: str) -> int:
    """Boot the VM of a configuration file in this terminal; return strato-vmm's status. Raises VmmError."""
    with scratch_folder() as scratch:
        config = _load(file, scratch.path)
        config = _complete(replace(config, console=replace(config.console, stdio=True)))
        child, to_guest = _start(config, log_level, scratch)
        return _relay(child, to_guest)


def _load(file: Path, runtime_dir: Path) -> VmConfig:
    """Read a configuration in which ``runtime_dir`` and ``name`` may be left out."""
    import json
    import tomllib

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES)
        document: Any = tomllib.loads(data.decode()) if file.suffix == ".toml" else json.loads(data)
    except OSError as error:
        raise ConfigError("", f"Configuration {file} cannot be read") from error
    except ValueError as error:
        raise ConfigError("", f"Configuration {file} is not valid") from error
    if isinstance(document, dict):
        document.setdefault("runtime_dir", str(runtime_dir))
        document.setdefault("name", file.stem or "vm")
    return decode(VmConfig, document, base=file.absolute().parent)


def _complete(config: VmConfig) -> VmConfig:
    """Fill in what strato-vmm would have to look for: in its jail there is nothing to be found.

    Raises EngineError, HostError, ProgramNotFoundError.
    """
    from ..jail.facts import completed
    from ..log import Level, Log

    return decode(VmConfig, completed(encode(config), Log(Level.ERROR)))


def _start(config: VmConfig, log_level: str, scratch: Scratch) -> tuple[int, int]:
    """Start strato-vmm; return its pid and the write end of its console input."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    config_fd = os.memfd_create("strato-vm-config")
    os.write(config_fd, dump(config).encode())
    os.lseek(config_fd, 0, os.SEEK_SET)
    command = [*view.command(), "--config", str(config_fd), "--log-level", log_level]
    try:
        if os.geteuid() == 0 and os.access(paths.launcher(), os.X_OK):
            options = _launch_options(config, scratch.path)
            pid = _launch(options, command, read_end, config_fd)
        else:
            # Without a pid namespace nobody ends QEMU if strato-vmm is killed, and that may outlive us.
            pid = _spawn(command, read_end, (config_fd, scratch.lock_fd))
    finally:
        os.close(read_end)
        os.close(config_fd)
    return pid, write_end


def _launch_options(config: VmConfig, scratch: Path) -> list[str]:
    # As PID 1 of namespaces of its own: whatever ends it ends all that it has started.
    document = encode(config)
    if not view.enabled(document):
        return ["--new", "pid,mount", "--mount-proc", "--die-with-parent"]
    for seen in view.machine(document):
        if not seen.optional and not Path(seen.path).exists():
            raise ConfigError(seen.origin, f"{seen.path} does not exist")
    # Taps that have a name have it in the network namespace of whoever calls.
    network = "" if any(net.tap_name for net in config.nets) else ",net"
    root = scratch / "jail"
    root.mkdir(mode=0o700)
    options = ["--new", f"pid,mount,ipc,uts{network}", "--mount-proc", "--die-with-parent"]
    return [*options, *view.launch_options(document, str(root))]


def _launch(options: list[str], command: list[str], stdin: int, config_fd: int) -> int:
    from ..sys import LaunchError, launch

    try:
        launched = launch(
            str(paths.launcher()), [*options, "--", *command], pass_fds=(config_fd,), stdio=(stdin, 1, 2)
        )
    except LaunchError as error:
        raise HostError("strato-vmm cannot be started") from error
    return launched.pid


def _spawn(command: list[str], stdin: int, kept_fds: tuple[int, ...]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept_fds)]
    try:
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except OSError as error:
        raise HostError(f"Program {command[0]} cannot be started") from error


def _relay(child: int, to_guest: int) -> int:
    child_fd = os.pidfd_open(child)
    ended = False
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with _raw_terminal(0):
        sources = [0, child_fd]
        escaped = False
        while not ended:
            try:
                ready, _, _ = select.select(sources, [], [])
            except KeyboardInterrupt:
                os.kill(child, signal.SIGTERM)
                continue
            ended = child_fd in ready
            if 0 in ready:
                data = os.read(0, _READ_BYTES)
                if not data:
                    sources.remove(0)
                    os.close(to_guest)
                    continue
                data, escaped, leave = unescape(data, escaped) if os.isatty(0) else (data, False, False)
                if leave:
                    os.kill(child, signal.SIGTERM)
                _write(to_guest, data)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.write(2, f"strato: strato-vmm {killed_by(-code)}\n".encode())
    return code if code >= 0 else 128 - code


def unescape(data: bytes, escaped: bool) -> tuple[bytes, bool, bool]:
    """Filter typed bytes: return what is for the guest, whether an escape is open, and whether to leave."""
    kept = bytearray()
    for byte in data:
        if not escaped:
            if byte == ESCAPE:
                escaped = True
            else:
                kept.append(byte)
            continue
        escaped = False
        if byte == QUIT:
            return bytes(kept), False, True
        kept += bytes([ESCAPE]) if byte == ESCAPE else bytes([ESCAPE, byte])
    return bytes(kept), escaped, False


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return  # the VM ends: its pidfd tells


@contextmanager
def _raw_terminal(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    import tty

    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
