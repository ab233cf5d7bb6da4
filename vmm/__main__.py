"""strato-vmm: run one virtual machine.

Reads a VmConfig, boots it, serves QMP, and ends with it. Started through strato-launch as PID 1 of its own
pid and mount namespace; works as an ordinary process too, then nobody ends its children if it is killed.
The order of work is the order of urgency: the guest boots while the QMP server is still being imported.
"""

import gc
import os
import sys
import time

STARTED_AT = time.monotonic()

from pathlib import Path  # noqa: E402  (the clock starts before the imports that it measures)

from .config import VmConfig  # noqa: E402
from .decoding import load  # noqa: E402
from .errors import ConfigError, VmmError, chain_text  # noqa: E402
from .exit_report import ExitCode, ExitKind  # noqa: E402
from .log import Level, Log  # noqa: E402
from .loop import EventLoop  # noqa: E402
from .machine import Machine  # noqa: E402

USAGE = """\
usage: strato-vmm --config FD_OR_PATH [--qmp-fd FD | --qmp-path PATH] [--log-level LEVEL]

Run one virtual machine until it ends.

  --config FD_OR_PATH  configuration (see docs/vm-config.md): the number of an open descriptor, or a file
  --qmp-fd FD          serve QMP on this listening unix socket
  --qmp-path PATH      serve QMP on a unix socket made at PATH
  --log-level LEVEL    debug, info (default), warn or error; the log is standard error
  --version            print the version
  -h, --help           print this help

Exit status: 0 guest powered off or quit; 1 bug in strato-vmm; 2 wrong command line or configuration;
3 host error; 4 guest panicked or met a triple fault; 5 guest reset itself; 6 ended by a signal.
<runtime_dir>/exit.json says more.
"""

_MAX_FD = (1 << 31) - 1
_OPTIONS = {"--config": "config", "--qmp-fd": "qmp_fd", "--qmp-path": "qmp_path", "--log-level": "log_level"}


class _UsageError(Exception):
    """A wrong command line."""


def main(argv: list[str] | None = None) -> int:
    """Run strato-vmm; return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        os.write(1, USAGE.encode())
        return ExitCode.OK
    if "--version" in arguments:
        from . import VERSION

        os.write(1, f"strato-vmm {VERSION}\n".encode())
        return ExitCode.OK
    try:
        options = _parse(arguments)
        log = Log(Level[options.get("log_level", "info").upper()])
    except (_UsageError, KeyError) as error:
        os.write(2, f"error Wrong command line: {error}\n{USAGE}".encode())
        return ExitCode.CONFIG
    try:
        config = load(_config_source(options["config"]))
        listener_fd = _qmp_listener_fd(options)
    except VmmError as error:
        log.error(chain_text(error))
        return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.HOST
    if os.getpid() == 1:
        _close_others(config, listener_fd)
    return _run(config, listener_fd, EventLoop(), log)


def _close_others(config: VmConfig, listener_fd: int | None) -> None:
    # Whoever has started us by strato-launch has handed us these alone, and may not have been careful.
    taps = {net.tap_fd for net in config.nets if net.tap_fd is not None}
    kept = sorted({0, 1, 2, *taps, *([] if listener_fd is None else [listener_fd])})
    for fd, following in zip(kept, [*kept[1:], _MAX_FD], strict=True):
        os.closerange(fd + 1, following)


def _run(config: VmConfig, listener_fd: int | None, loop: EventLoop, log: Log) -> int:
    import signal

    machine = Machine(config, loop=loop, log=log, started_at=STARTED_AT)
    machine.phase("configured")
    loop.on_signals(
        (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        lambda: machine.finish(ExitKind.SIGNAL, "Ended by a signal"),
    )
    try:
        machine.boot()
    except VmmError as error:
        machine.fail(error, chain_text(error))
    machine.attach()
    if listener_fd is not None:
        from .qmp.server import QmpServer

        server = QmpServer(listener_fd, machine=machine, loop=loop, log=log)
        machine.phase("qmp_ready")
    else:
        server = None
    gc.enable()  # see vmm.jail.view.command
    loop.run()
    if server is not None:
        server.close()
    report = machine.close()
    loop.close()
    try:
        report.write(config.runtime_dir)
    except OSError as error:
        log.error("exit.json cannot be written", cause=error)
    return report.code


def _parse(arguments: list[str]) -> dict[str, str]:
    # argparse costs more to import than strato-vmm's whole start may take.
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in _OPTIONS:
            raise _UsageError(f"unknown argument {name!r}")
        if not equals:
            if not rest:
                raise _UsageError(f"{name} needs a value")
            value = rest.pop(0)
        options[_OPTIONS[name]] = value
    if "config" not in options:
        raise _UsageError("--config is missing")
    if "qmp_fd" in options and "qmp_path" in options:
        raise _UsageError("--qmp-fd and --qmp-path exclude each other")
    if "qmp_fd" in options and not options["qmp_fd"].isdecimal():
        raise _UsageError(f"--qmp-fd {options['qmp_fd']!r} is not a number")
    return options


def _config_source(text: str) -> int | Path:
    return int(text) if text.isdecimal() else Path(text)


def _qmp_listener_fd(options: dict[str, str]) -> int | None:
    if "qmp_fd" in options:
        fd = int(options["qmp_fd"])
        try:
            os.set_inheritable(fd, False)  # it was passed to us, not to our children
        except OSError as error:
            raise ConfigError("", f"QMP descriptor {fd} is not open") from error
        return fd
    if "qmp_path" in options:
        import socket

        from .errors import HostError

        path = options["qmp_path"]
        # Who waits for the name to appear can connect at once: it gets its name when it listens.
        unfinished = f"{path}~"
        try:
            Path(unfinished).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
                listener.bind(unfinished)
                listener.listen()
                Path(unfinished).replace(path)
                return listener.detach()
        except OSError as error:
            raise HostError(f"QMP socket {path} cannot be made") from error
    return None


if __name__ == "__main__":
    sys.exit(main())
