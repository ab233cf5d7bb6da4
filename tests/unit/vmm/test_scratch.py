"""The folder of `strato vm run`."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT
from vmm.cli import scratch

pytestmark = pytest.mark.unit

_HOLD = "with scratch_folder() as made: print(made.path, flush=True); sys.stdin.read()"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder(temporary: Path) -> "subprocess.Popen[str]":
    code = (
        f"import sys, tempfile; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        f"tempfile.tempdir = {str(temporary)!r}\n"
        f"from vmm.cli.scratch import scratch_folder\n{_HOLD}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_scratch_folder_is_removed_at_the_end(temporary: Path) -> None:
    with scratch.scratch_folder() as made:
        (made.path / "file").write_text("x")

    assert list(temporary.iterdir()) == []


def test_scratch_folder_of_a_killed_run_is_removed_by_the_next(temporary: Path) -> None:
    with holder(temporary) as run:
        assert run.stdout is not None
        path = Path(run.stdout.readline().strip())
        with scratch.scratch_folder():
            in_use = path.is_dir()
        run.send_signal(signal.SIGKILL)
        run.wait()
    left = path.is_dir()

    with scratch.scratch_folder():
        after = path.exists()

    assert (in_use, left, after) == (True, True, False)


def test_scratch_folder_spares_files_and_links_of_that_name(temporary: Path) -> None:
    (temporary / "other").mkdir()
    (temporary / f"{scratch.PREFIX}file").write_text("x")
    (temporary / f"{scratch.PREFIX}link").symlink_to(temporary / "other")

    with scratch.scratch_folder():
        names = list(temporary.iterdir())

    assert len(names) == 4
    assert (temporary / "other").is_dir()
