"""`make miri`: the native crates' tests that Miri can run, for undefined behaviour.

Miri interprets: no system call beyond files and clocks, no foreign code. What it can run are rings on real
guest memory and the parsers of requests and saved state. It comes with nightly toolchains only.
"""

import os
import subprocess

from . import layout
from .cache import Cache
from .errors import PrerequisiteError
from .progress import run, step

# Tests, by the beginnings of their names, that have bytes to look at and make no system call.
_PARSERS = (
    "bucket::",
    "console::queue::",
    "fs::decode::",
    "fs::init::",
    "fs::reply::",
    "net::tests::queue::",
    "vsock::backend::",
    "vsock::tests::lies::headers_survive_a_round_trip",
)
_RUNS = (
    ("Rings in guest memory", ("-p", "strato-virtio", "--features", "mock", "--test", "ring")),
    ("Saved state", ("-p", "strato-virtio", "--lib", "--", "record")),
    ("Requests of the devices", ("-p", "strato-devices", "--lib", "--", *_PARSERS)),
    ("Registers", ("-p", "strato-virtio-mmio", "--lib", "--", "registers::")),
)


def miri(cache: Cache) -> None:
    """Run those tests. Raises PrerequisiteError without Miri, CommandError when a test fails."""
    inputs = {"checkout": os.fspath(layout.NATIVE), "miri": _version()}
    with cache.workspace("miri", inputs) as folder:
        # Guest memory is mapped and files are read, which isolation would forbid.
        env = {"CARGO_TARGET_DIR": str(folder), "MIRIFLAGS": "-Zmiri-disable-isolation"}
        for title, words in _RUNS:
            with step(f"Miri: {title}"):
                run(
                    ["nice", "cargo", "+nightly", "miri", "test", "--locked", *words],
                    log=layout.LOGS / "miri.log",
                    cwd=layout.NATIVE,
                    env=env,
                )


def _version() -> str:
    try:
        done = subprocess.run(
            ["cargo", "+nightly", "miri", "--version"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise PrerequisiteError(f"Cannot start cargo: {error}") from error
    if done.returncode != 0:
        raise PrerequisiteError(
            "Miri is not there: install it with `rustup toolchain install nightly` and "
            "`rustup component add miri rust-src --toolchain nightly`"
        )
    return done.stdout.strip()
