"""What is tracked: names no machine and no workplace, stays short, declares its markers."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT
from tests.ladder import RUNGS

pytestmark = pytest.mark.style

LINE_LIMIT = 600
SOURCES = {".py", ".rs", ".c", ".h", ".sh"}
# Paths of one machine. Assembled here, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile("/" + "work/|/tmp/" + "dl")
BUILTIN_MARKERS = {"parametrize", "skip", "skipif", "usefixtures", "xfail", "filterwarnings"}


def tracked() -> list[Path]:
    """Files under version control that exist."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := CHECKOUT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Tracked text files with their content."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            found.append((path, data.decode("utf-8")))
    return found


def is_generated(path: Path) -> bool:
    """Whether a tracked file is written by a program."""
    return "generated" in path.parts or path.name.startswith("_strato_") or path.suffix in (".lock", ".pyi")


def test_no_file_names_a_path_of_one_machine() -> None:
    own = Path(__file__)
    hits = [
        f"{path.relative_to(CHECKOUT)}: {found.group()}"
        for path, text in texts()
        if path != own and (found := MACHINE_PATHS.search(text))
    ]
    assert hits == []


def test_no_source_file_is_too_long() -> None:
    long = [
        f"{path.relative_to(CHECKOUT)}: {text.count(chr(10))} lines"
        for path, text in texts()
        if path.suffix in SOURCES and not is_generated(path) and text.count("\n") >= LINE_LIMIT
    ]
    assert long == []


def test_no_module_is_called_utils() -> None:
    assert [str(path) for path in tracked() if path.stem in ("utils", "util", "helpers", "misc")] == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(CHECKOUT))
        for path in tracked()
        if path.suffix == ".py"
        and not is_generated(path)
        # Unit tests mirror the modules they are about; their names say it.
        and not path.is_relative_to(CHECKOUT / "tests/unit")
        and path.stat().st_size > 0
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def test_licence_is_apache() -> None:
    text = (CHECKOUT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0" in text


def test_text_files_end_with_one_newline_and_have_no_trailing_blanks() -> None:
    bad = [
        str(path.relative_to(CHECKOUT))
        for path, text in texts()
        if text and not is_generated(path) and path.name != "LICENSE"
        if not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t]+$", text, re.MULTILINE)
    ]
    assert bad == []


def test_every_marker_in_use_is_declared() -> None:
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = pyproject["tool"]["pytest"]["ini_options"]["markers"]
    # A marker with arguments is declared with them: "name(arguments): what it means".
    declared = {re.split(r"[(:]", line, maxsplit=1)[0] for line in lines}
    used: set[str] = set()
    for path, text in texts():
        if path.is_relative_to(CHECKOUT / "tests") and path.suffix == ".py":
            used |= set(re.findall(r"pytest\.mark\.(\w+)", text))
    assert used - BUILTIN_MARKERS <= declared


def test_every_test_module_is_on_a_rung() -> None:
    unmarked = [
        str(path.relative_to(CHECKOUT))
        for path, text in texts()
        if path.name.startswith("test_") and path.suffix == ".py" and "pytestmark" not in text
    ]
    assert unmarked == []


def test_lock_files_are_committed() -> None:
    names = {str(path.relative_to(CHECKOUT)) for path in tracked()}
    assert {"vmm/native/Cargo.lock", "guest-agent/Cargo.lock"} <= names


def test_every_test_is_in_a_rung_that_looks_into_its_folder() -> None:
    missed = []
    for path in tracked():
        place = path.relative_to(CHECKOUT)
        if path.name.startswith("test_") and path.suffix == ".py":
            markers = set(re.findall(r"\bpytest\.mark\.(\w+)", path.read_text()))
            rungs = [rung for rung in RUNGS if rung.marker in markers]
            looking = [rung for rung in rungs if any(place.is_relative_to(folder) for folder in rung.folders)]
            if not rungs or looking != rungs:
                missed.append(f"{place}: {sorted(markers)}")
    assert missed == []
