"""Files of our own in the guest kernel: where they go, and what is refused."""

from pathlib import Path

import pytest

from rootfs.errors import KernelBuildError
from rootfs.kernel.build import SOURCES, add_sources

pytestmark = pytest.mark.unit

FILES = [path.relative_to(SOURCES) for path in sorted(SOURCES.rglob("*.c"))]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in FILES:
        folder = tmp_path / path.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Makefile").write_text("obj-y := head.o")
    return tmp_path


def test_each_file_is_compiled_in_its_folder(tree: Path) -> None:
    add_sources(tree)

    assert FILES
    for path in FILES:
        assert (tree / path).read_bytes() == (SOURCES / path).read_bytes()
        lines = (tree / path).with_name("Makefile").read_text().splitlines()
        assert lines[0] == "obj-y := head.o"
        assert f"obj-y += {path.stem}.o" in lines


def test_file_that_the_kernel_has_is_not_overwritten(tree: Path) -> None:
    (tree / FILES[0]).write_text("theirs")

    with pytest.raises(KernelBuildError, match=FILES[0].name):
        add_sources(tree)
    assert (tree / FILES[0]).read_text() == "theirs"


def test_absent_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(KernelBuildError, match=str(tmp_path / FILES[0].parent)):
        add_sources(tmp_path)
