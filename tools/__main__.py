"""`python3 -m tools VERB`: the developer commands behind the Makefile. Standard library only."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import FrameType

from rootfs.errors import RootfsError

from . import layout, prerequisites
from .cache import Cache
from .errors import ToolError
from .progress import say

_DAY_S = 24 * 3600.0


def _check(_: argparse.Namespace) -> None:
    prerequisites.check()


def _build(_: argparse.Namespace) -> None:
    from . import product

    prerequisites.check()
    product.build(Cache())


def _kernel(_: argparse.Namespace) -> None:
    from . import debian, product

    prerequisites.check()
    debian.install(debian.BUILD_PACKAGES)
    product.kernel(Cache())


def _kernel_report(arguments: argparse.Namespace) -> None:
    from . import kernel_report

    kernel_report.report(Cache(), boots=arguments.boots)


def _test_tools(arguments: argparse.Namespace) -> None:
    from . import debian, testtools

    prerequisites.check()
    debian.install({**debian.BUILD_PACKAGES, **debian.TEST_PACKAGES})
    testtools.ensure(Cache(), full=arguments.full)


def _fuzz(arguments: argparse.Namespace) -> None:
    from . import fuzz

    prerequisites.check()
    fuzz.fuzz(Cache(), seconds=arguments.seconds, only=tuple(arguments.targets))


def _coverage(_: argparse.Namespace) -> None:
    from . import coverage

    prerequisites.check()
    coverage.coverage(Cache())


def _miri(_: argparse.Namespace) -> None:
    from . import miri

    prerequisites.check()
    miri.miri(Cache())


def _venv(_: argparse.Namespace) -> None:
    from . import product

    product.environment()


def _lock(_: argparse.Namespace) -> None:
    from . import lock

    lock.refresh()


def _demo(_: argparse.Namespace) -> None:
    from . import demo

    demo.run_demo()


def _install(arguments: argparse.Namespace) -> None:
    from . import install

    install.install(install.Destination(arguments.prefix, arguments.destdir, arguments.python))


def _uninstall(arguments: argparse.Namespace) -> None:
    from . import install

    install.uninstall(install.Destination(arguments.prefix, arguments.destdir, arguments.python))


def _wheel(_: argparse.Namespace) -> None:
    from . import wheel

    wheel.build_wheel()


def _cache(arguments: argparse.Namespace) -> None:
    cache = Cache()
    if arguments.prune_days is not None:
        for info in cache.prune(arguments.prune_days * _DAY_S):
            say(f"Removed {info.name}/{info.path.name} ({info.size_bytes / 2**20:.0f} MiB)")
    infos = cache.list()
    sys.stdout.write(f"{cache.root}\n")
    for info in infos:
        used = datetime.fromtimestamp(info.last_used).strftime("%Y-%m-%d %H:%M")
        sys.stdout.write(f"{info.size_bytes / 2**20:9.1f} MiB  used {used}  {info.name}/{info.path.name}\n")
    sys.stdout.write(f"{sum(info.size_bytes for info in infos) / 2**20:9.1f} MiB in all\n")


def _clean(arguments: argparse.Namespace) -> None:
    folders = [layout.BUILD, layout.DIST]
    if arguments.all:
        folders.append(Cache().root)
    for folder in folders:
        if folder.exists():
            say(f"Remove {folder}")
            shutil.rmtree(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools", description="Developer commands of Strato.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    verb("check", _check, "check what must be installed by hand")
    verb("build", _build, "build the runtime into build/")
    verb("venv", _venv, "make the Python environment build/venv")
    verb("kernel", _kernel, "build only the guest kernel")
    report = verb("kernel-report", _kernel_report, "measure what the kernel's fragments cost")
    report.add_argument("--boots", type=int, default=10, help="boots to measure (default 10)")
    tools = verb("test-tools", _test_tools, "install the programs that tests run against")
    tools.add_argument("--full", action="store_true", help="also those of test-full")
    fuzz = verb("fuzz", _fuzz, "fuzz the native crates")
    fuzz.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    fuzz.add_argument("targets", nargs="*", help="default: all")
    verb("coverage", _coverage, "show which lines of the native crates their tests run")
    verb("miri", _miri, "run the tests of the native crates that Miri can run")
    verb("lock", _lock, "renew the lock files of the Python packages")
    verb("demo", _demo, "run a container in a microVM and show it")
    for name, call, text in (
        ("install", _install, "install the built runtime"),
        ("uninstall", _uninstall, "remove what install put there"),
    ):
        sub = verb(name, call, text)
        sub.add_argument("--prefix", type=Path, default=Path("/usr"))
        sub.add_argument("--destdir", type=Path, default=None, help="folder to put the whole tree below")
        sub.add_argument("--python", type=Path, default=Path("/usr/bin/python3"))
    verb("wheel", _wheel, "build a wheel into dist/")
    cache = verb("cache", _cache, "list the cache with sizes")
    cache.add_argument("--prune-days", type=float, default=None, help="first remove what was unused so long")
    clean = verb("clean", _clean, "remove build/ and dist/")
    clean.add_argument("--all", action="store_true", help="and the cache")
    return parser


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Run one verb. Errors of the tools become one message and status 1."""
    arguments = _parser().parse_args()
    os.chdir(layout.CHECKOUT)
    # As an exception, so that a running command is ended and a half-made cache entry removed.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        arguments.call(arguments)
    except (ToolError, RootfsError) as error:
        sys.stdout.flush()
        message: BaseException | None = error
        while message is not None:
            sys.stderr.write(f"Error: {message}\n")
            message = message.__cause__
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
