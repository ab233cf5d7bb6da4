"""The import machinery of strato-vmm: it finds, refreshes and refuses what Python's own does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of modules, beside the checkout's on the search path of `run`."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").touch()
    return tmp_path


def run(folder: Path, code: str) -> str:
    """What a new interpreter prints that imports by it."""
    paths = [str(ROOT), str(folder)]
    begin = f"import sys; sys.path += {paths!r}; from vmm import lean_import; lean_import.install(); "
    done = subprocess.run(
        [sys.executable, "-IS", "-c", begin + code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_modules_packages_and_extensions_are_found(folder: Path) -> None:
    (folder / "parts" / "one.py").write_text("NAME = __name__")

    assert (
        run(folder, "import json, _socket, parts.one; print(parts.one.NAME, json.dumps(1))") == "parts.one 1"
    )


def test_compiled_code_is_used_while_it_is_that_of_the_source(folder: Path) -> None:
    source = folder / "parts" / "one.py"
    source.write_text("VALUE = 1")
    assert run(folder, "from parts import one; print(one.VALUE)") == "1"
    (compiled,) = (folder / "parts" / "__pycache__").glob("one.*.pyc")
    written = compiled.stat().st_mtime_ns
    assert run(folder, "from parts import one; print(one.VALUE)") == "1"
    assert compiled.stat().st_mtime_ns == written

    source.write_text("VALUE = 2")
    os.utime(source, (1, 1))

    assert run(folder, "from parts import one; print(one.VALUE)") == "2"


@pytest.mark.parametrize("kib", [95, 96, 97, 300])
def test_file_of_any_length_is_read_to_its_end(folder: Path, kib: int) -> None:
    text = "x" * (kib << 10)
    (folder / "parts" / "long.py").write_text(f"TEXT = {text!r}")

    for _ in ("from the source", "from the compiled file"):
        assert run(folder, "from parts import long; print(len(long.TEXT))") == str(kib << 10)


def test_absent_module_is_an_import_error(folder: Path) -> None:
    code = "\ntry:\n    import parts.two\nexcept ModuleNotFoundError as error:\n    print(error.name)"

    assert run(folder, code) == "parts.two"
