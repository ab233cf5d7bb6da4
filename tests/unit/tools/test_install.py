"""Installation into a temporary tree, and its removal."""

import json
import sys
from pathlib import Path

import pytest

from tools import install as module
from tools import layout
from tools.errors import InstallError
from tools.install import PRODUCTS, Destination, install, uninstall

pytestmark = pytest.mark.unit


@pytest.fixture
def destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Destination:
    """A tree to install into, with products that stand for the built ones and no pip."""
    library = tmp_path / "build-library"
    library.mkdir()
    for name in PRODUCTS:
        (library / name).write_bytes(name.encode())
        (library / name).chmod(0o755)
    monkeypatch.setattr(layout, "LIBRARY", library)
    monkeypatch.setattr(layout, "BUILD", tmp_path / "build")

    def stage(staging: Path, python_version: str) -> None:
        for package in ("shim", "vmm", "pinned"):
            (staging / package).mkdir(parents=True)
            (staging / package / "__init__.py").write_text(f"# for {python_version}\n")

    monkeypatch.setattr(module, "_stage_packages", stage)
    root = tmp_path / "root"
    root.mkdir()
    return Destination(Path("/opt/strato"), root, Path(sys.executable))


def _tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def test_install_puts_everything_below_prefix_and_the_configuration_in_etc(destination: Destination) -> None:
    install(destination)

    assert destination.destdir is not None
    tree = _tree(destination.destdir)
    assert {f"opt/strato/lib/strato/{name}" for name in PRODUCTS} <= tree
    assert {
        "opt/strato/lib/strato/python/shim/__init__.py",
        "opt/strato/bin/strato",
        "etc/strato/config.toml",
    } <= tree
    launcher = (destination.destdir / "opt/strato/bin/containerd-shim-strato-v2").read_text()
    assert launcher.startswith(f"#!{sys.executable} -IS\n")
    assert "'/opt/strato/lib/strato/python'" in launcher
    assert str(destination.destdir) not in launcher


def test_uninstall_leaves_the_tree_as_it_was(destination: Destination) -> None:
    assert destination.destdir is not None
    (destination.destdir / "opt/strato/bin").mkdir(parents=True)
    (destination.destdir / "opt/strato/bin/other").write_text("")
    before = _tree(destination.destdir)

    install(destination)
    uninstall(destination)

    assert _tree(destination.destdir) == before


def test_uninstall_removes_bytecode_that_running_made(destination: Destination) -> None:
    assert destination.destdir is not None
    install(destination)
    bytecode = destination.real(destination.library / "python/shim/__pycache__")
    bytecode.mkdir(exist_ok=True)
    (bytecode / "x.pyc").write_text("")

    uninstall(destination)

    assert _tree(destination.destdir) == set()


def test_install_and_uninstall_keep_a_configuration_of_the_user(destination: Destination) -> None:
    config = destination.real(Path("/etc/strato/config.toml"))
    config.parent.mkdir(parents=True)
    config.write_text("mine = 1\n")

    install(destination)
    uninstall(destination)

    assert config.read_text() == "mine = 1\n"


def test_uninstall_keeps_our_configuration_once_changed(destination: Destination) -> None:
    install(destination)
    config = destination.real(Path("/etc/strato/config.toml"))
    config.write_text("changed = 1\n")

    uninstall(destination)

    assert config.read_text() == "changed = 1\n"


def test_install_again_removes_files_of_the_older_installation(destination: Destination) -> None:
    install(destination)
    stale = destination.library / "python" / "old.py"
    destination.real(stale).write_text("")
    manifest_path = destination.real(destination.library / "install-manifest.json")
    manifest = json.loads(manifest_path.read_text())
    manifest["files"][str(stale)] = ""
    manifest_path.write_text(json.dumps(manifest))

    install(destination)
    assert not destination.real(stale).exists()
    uninstall(destination)

    assert destination.destdir is not None
    assert _tree(destination.destdir) == set()


def test_install_unbuilt_runtime_is_refused_by_name(destination: Destination) -> None:
    (layout.LIBRARY / "vmlinux").unlink()

    with pytest.raises(InstallError, match="Not built: vmlinux; run 'make build'"):
        install(destination)


def test_uninstall_without_installation_is_an_error(destination: Destination) -> None:
    with pytest.raises(InstallError, match="No installation in"):
        uninstall(destination)


def test_prefix_that_is_relative_is_refused() -> None:
    with pytest.raises(InstallError, match="not absolute"):
        Destination(Path("usr"), None, Path("/usr/bin/python3"))
