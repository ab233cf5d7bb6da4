"""pathlib as strato-vmm and the shim import it: as ever, but without modules that nobody needs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def run(code: str) -> str:
    """What a new interpreter prints that imports pathlib by it."""
    begin = f"import sys; sys.path.append({str(ROOT)!r}); "
    begin += "from vmm import lean_pathlib; lean_pathlib.install(); "
    done = subprocess.run(
        [sys.executable, "-IS", "-c", begin + code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_urllib_is_not_imported() -> None:
    assert run("import pathlib; print({'ipaddress', 'urllib', 'urllib.parse'} & set(sys.modules))") == "set()"


def test_uris_are_made_as_ever() -> None:
    code = "from pathlib import Path; print(Path('/a b/\\u00e9').as_uri(), Path('/c').as_uri())"

    assert run(code) == "file:///a%20b/%C3%A9 file:///c"


def test_real_module_is_found_afterwards() -> None:
    assert run("import urllib.parse; print(urllib.parse.urlsplit('unix:///run/x').path)") == "/run/x"


def test_what_is_imported_already_is_left_alone() -> None:
    code = "import urllib.parse as real; lean_pathlib.install(); print(sys.modules['urllib.parse'] is real)"

    assert run(code) == "True"
