"""`make coverage`: which lines of the native crates Rust's own tests run.

rustc writes the counters; llvm-profdata and llvm-cov of the same LLVM read them. Debian's are older than
rustc's, so they come with rustup's component `llvm-tools`, or from a folder named by LLVM_BIN.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import layout
from .cache import Cache
from .errors import PrerequisiteError
from .native import TARGET, rustc_version
from .progress import capture, run, say, step

# Not ours, or not the product.
_LEFT_OUT = r"/(registry|rustc|rustlib|proof|tests)/|/tests\.rs|mock\.rs"


def coverage(cache: Cache) -> None:
    """Run the tests of vmm/native with counters and print lines covered by file.

    Raises PrerequisiteError when no matching LLVM tools are there, CommandError when a test fails.
    """
    tools = find_tools(major_of(rustc_version()))
    inputs = {"checkout": os.fspath(layout.NATIVE), "rustc": rustc_version()}
    with cache.workspace("coverage", inputs) as folder:
        profiles = folder / "profiles"
        profiles.mkdir(exist_ok=True)
        for stale in profiles.iterdir():
            stale.unlink()
        env = {
            "CARGO_TARGET_DIR": str(folder),
            "RUSTFLAGS": "-Cinstrument-coverage",
            # Programs that tests start add theirs; %m and %p keep them apart.
            "LLVM_PROFILE_FILE": str(profiles / "%m-%p.profraw"),
        }
        with step("Tests with counters"):
            run(
                ["nice", "cargo", "test", "--locked", "--workspace"],
                log=layout.LOGS / "coverage.log",
                cwd=layout.NATIVE,
                env=env,
            )
        merged = folder / "merged.profdata"
        raw = sorted(map(str, profiles.glob("*.profraw")))
        say(f"{len(raw)} profiles")
        capture([tools / "llvm-profdata", "merge", "--sparse", "--output", merged, *raw])
        objects = [part for program in _programs(env) for part in ("--object", program)]
        arguments = [f"--instr-profile={merged}", f"--ignore-filename-regex={_LEFT_OUT}", *objects[1:]]
        report = capture([tools / "llvm-cov", "export", "--summary-only", *arguments])
    for line in table(json.loads(report)):
        print(line)  # noqa: T201


def major_of(rustc_words: str) -> int:
    """The LLVM version in `rustc -vV`."""
    found = re.search(r"^LLVM version: (\d+)", rustc_words, re.MULTILINE)
    if found is None:
        raise PrerequisiteError("Rustc does not say which LLVM it uses")
    return int(found.group(1))


def find_tools(major: int) -> Path:
    """The folder of llvm-profdata and llvm-cov of this LLVM. Raises PrerequisiteError."""
    sysroot = Path(capture(["rustc", "--print", "sysroot"]).strip())
    places = [
        os.environ.get("LLVM_BIN"),
        sysroot / "lib/rustlib" / TARGET / "bin",
        f"/usr/lib/llvm-{major}/bin",
    ]
    places += os.environ.get("PATH", "").split(":")
    for place in places:
        if place and _version(Path(place) / "llvm-profdata") == _version(Path(place) / "llvm-cov") == major:
            return Path(place)
    raise PrerequisiteError(
        f"Coverage needs llvm-profdata and llvm-cov of LLVM {major}, the one in rustc; others cannot read "
        "its files. Install them with `rustup component add llvm-tools`, or name their folder in LLVM_BIN"
    )


def _version(program: Path) -> int | None:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = re.search(r"LLVM version (\d+)", done.stdout)
    return int(found.group(1)) if done.returncode == 0 and found else None


def _programs(env: dict[str, str]) -> Iterator[str]:
    words = ["cargo", "test", "--locked", "--workspace", "--no-run", "--message-format=json"]
    done = subprocess.run(
        words, cwd=layout.NATIVE, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        program = json.loads(line).get("executable")
        if program:
            yield program


def table(report: dict[str, list[dict[str, list[dict[str, object]]]]]) -> Iterator[str]:
    """One line for each file of llvm-cov's summary, and one for all."""
    total = covered = 0
    for file in report["data"][0]["files"]:
        name = str(file["filename"]).removeprefix(f"{layout.NATIVE}/")
        summary = file["summary"]
        assert isinstance(summary, dict)
        lines = summary["lines"]
        total += lines["count"]
        covered += lines["covered"]
        yield f"{lines['percent']:6.1f} %  {lines['covered']:6} of {lines['count']:6}  {name}"
    yield f"{100 * covered / max(total, 1):6.1f} %  {covered:6} of {total:6}  in all"
