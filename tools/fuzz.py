"""`make fuzz`: the targets of vmm/native/proof under libFuzzer with AddressSanitizer.

Both need options that rustc keeps for its nightly builds; RUSTC_BOOTSTRAP=1 gives them to the stable
compiler, for this program and nothing that is shipped. What was found worth keeping (the corpus) stays in the
cache and grows from run to run.
"""

import os
import re
import subprocess
from pathlib import Path

from . import layout
from .cache import Cache
from .errors import FuzzError
from .native import TARGET, rustc_version
from .progress import run, say, step, tail

FUZZ = layout.NATIVE / "fuzz"
ARTIFACTS = layout.BUILD / "fuzz"

_FLAGS = (
    "-Zsanitizer=address",
    "--cfg=fuzzing",
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
)
# A storm of four hundred steps needs no more bytes than this.
_MAX_INPUT = 4096
# One input that takes longer than this is a hang.
_INPUT_TIMEOUT_S = 120


def fuzz(cache: Cache, *, seconds: int, only: tuple[str, ...]) -> None:
    """Fuzz every target (or those of `only`) for so many seconds.

    Raises FuzzError that names the input when a target was not survived, CommandError when the build fails.
    """
    inputs = {"checkout": os.fspath(FUZZ), "rustc": rustc_version()}
    with cache.workspace("fuzz", inputs) as folder:
        program = _build(folder)
        names = _names(program)
        unknown = set(only) - set(names)
        if unknown:
            raise FuzzError(f"No fuzz target is called {sorted(unknown)}; there are {', '.join(names)}")
        for name in only or names:
            _fuzz_one(program, name, folder / "corpus" / name, seconds)


def _build(folder: Path) -> Path:
    with step("Fuzz targets"):
        run(
            ["nice", "cargo", "build", "--locked", "--release", "--target", TARGET],
            log=layout.LOGS / "fuzz.log",
            cwd=FUZZ,
            env={"CARGO_TARGET_DIR": str(folder), "RUSTFLAGS": " ".join(_FLAGS), "RUSTC_BOOTSTRAP": "1"},
        )
    return folder / TARGET / "release" / "strato-fuzz"


def _environment(name: str) -> dict[str, str]:
    # Leaks are looked for with ptrace, which containers often forbid.
    return {**os.environ, "STRATO_FUZZ_TARGET": name, "ASAN_OPTIONS": "detect_leaks=0"}


def _names(program: Path) -> tuple[str, ...]:
    done = subprocess.run(
        [program],
        env=_environment("list"),
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return tuple(done.stdout.split())


def _fuzz_one(program: Path, name: str, corpus: Path, seconds: int) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts = ARTIFACTS / name
    artifacts.mkdir(parents=True, exist_ok=True)
    log = layout.LOGS / f"fuzz-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    before = set(artifacts.iterdir())
    with log.open("wb") as output:
        status = subprocess.run(
            [
                *("nice", program, corpus, f"-max_total_time={seconds}", f"-max_len={_MAX_INPUT}"),
                *("-len_control=0", f"-timeout={_INPUT_TIMEOUT_S}", f"-artifact_prefix={artifacts}/"),
                "-print_final_stats=1",
            ],
            env=_environment(name),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode
    text = log.read_text(errors="replace")
    say(f"{name}: {summary(text)}, corpus of {sum(1 for _ in corpus.iterdir())}")
    if status != 0:
        found = [str(path) for path in set(artifacts.iterdir()) - before]
        raise FuzzError(
            f"Fuzz target {name} failed with status {status}; its words are in {log}\n"
            f"  STRATO_FUZZ_TARGET={name} {program} {' '.join(found)}\n{tail(log, 30)}"
        )


def summary(text: str) -> str:
    """What libFuzzer's words say in one line: how many inputs were tried, how much code they reached."""
    runs = re.findall(r"^stat::number_of_executed_units:\s+(\d+)", text, re.MULTILINE)
    reached = re.findall(r"\bcov: (\d+)", text)
    return f"{runs[-1] if runs else '?'} inputs, {reached[-1] if reached else '?'} edges"
