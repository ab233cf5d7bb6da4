"""strato: the command for people. ``main`` parses, calls one module per verb, and maps errors to statuses."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import VERSION, paths
from ..errors import ConfigError, VmmError, chain_text

EXIT_FAILURE = 1
EXIT_USAGE = 2

_Verb = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the strato command; return its exit status."""
    arguments = _parser().parse_args(argv)
    verb: _Verb = arguments.verb
    try:
        return verb(arguments)
    except VmmError as error:
        print(f"strato: {chain_text(error)}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough. Python would complain at exit.
        sys.stdout = None
        return EXIT_FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="strato",
        description="Look at Strato's sandboxes, check this host, and run plain virtual machines.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_vm(verbs.add_parser("vm", help="run or plan a virtual machine from a configuration file"))

    doctor = verbs.add_parser(
        "doctor",
        help="check what Strato needs on this host",
        description="Check what Strato needs on this host, say which engine it gets and why, and how to "
        "mend what is missing. Exit status 1 if sandboxes cannot run.",
    )
    doctor.set_defaults(verb=_doctor)

    ps = verbs.add_parser(
        "ps",
        help="list the running sandboxes",
        description="List the sandboxes of this host with their processes and containers.",
    )
    ps.add_argument("--json", action="store_true", help="print JSON, one object per line")
    _add_state_root(ps)
    ps.set_defaults(verb=_ps)

    logs = verbs.add_parser(
        "logs",
        help="print the logs of a sandbox",
        description="Print the logs that Strato itself writes for a sandbox (not the output of containers).",
    )
    _add_sandbox(logs)
    logs.add_argument(
        "--source",
        choices=("shim", "vmm", "console", "all"),
        default="all",
        help="which log: the shim's, strato-vmm's, the guest's console, or all three (default)",
    )
    logs.set_defaults(verb=_logs)

    console = verbs.add_parser(
        "console",
        help="follow the guest console of a sandbox",
        description="Print the guest console of a sandbox and follow it until the sandbox ends or Ctrl-C.",
    )
    _add_sandbox(console)
    console.set_defaults(verb=_console)

    version = verbs.add_parser("version", help="print the version")
    version.set_defaults(verb=_version)
    return parser


def _add_vm(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    run = verbs.add_parser(
        "run",
        help="boot a VM with its console in this terminal",
        description="Boot the VM of a configuration file (TOML or JSON, see docs/vm-config.md) with its "
        "console in this terminal. Ctrl-A x ends it, Ctrl-A Ctrl-A sends one Ctrl-A. The exit status is "
        "that of strato-vmm: 0 powered off, 2 wrong configuration, 3 host error, 4 guest panicked, "
        "5 guest reset, 6 ended from here.",
    )
    run.add_argument("file", type=Path, metavar="FILE", help="configuration, .toml or .json")
    run.add_argument(
        "--log-level",
        choices=("debug", "info", "warn", "error"),
        default="warn",
        help="what strato-vmm prints to standard error (default: warn)",
    )
    run.set_defaults(verb=_vm_run)
    plan = verbs.add_parser(
        "plan",
        help="print the machine that a configuration gives",
        description="Print devices by slot and the kernel's command line, without starting anything.",
    )
    plan.add_argument("file", type=Path, metavar="FILE", help="configuration, .toml or .json")
    plan.set_defaults(verb=_vm_plan)


def _add_state_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-root",
        type=Path,
        metavar="DIR",
        default=None,
        help=f"where sandboxes keep their state (default: as configured, or {paths.DEFAULT_STATE_ROOT})",
    )


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sandbox", metavar="SANDBOX", help="sandbox or container id, or the beginning of one that is unique"
    )
    _add_state_root(parser)


def _vm_run(arguments: argparse.Namespace) -> int:
    from .vm import run

    return run(arguments.file, log_level=arguments.log_level)


def _vm_plan(arguments: argparse.Namespace) -> int:
    from .vm import plan

    return plan(arguments.file)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import run

    return run()


def _ps(arguments: argparse.Namespace) -> int:
    from .sandboxes import ps

    return ps(arguments.state_root, as_json=arguments.json)


def _logs(arguments: argparse.Namespace) -> int:
    from .sandboxes import logs

    return logs(arguments.state_root, arguments.sandbox, arguments.source)


def _console(arguments: argparse.Namespace) -> int:
    from .sandboxes import console

    return console(arguments.state_root, arguments.sandbox)


def _version(arguments: argparse.Namespace) -> int:
    print(f"strato {VERSION}")  # noqa: T201
    return 0
