"""The dependency rules of the architecture, read from the source: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT

pytestmark = pytest.mark.style

# What shim may use of vmm (ARCHITECTURE.md, invariants).
SHIM_USES = (
    "vmm.config",
    "vmm.errors",
    "vmm.jail.facts",
    "vmm.jail.view",
    "vmm.lean_pathlib",
    "vmm.log",
    "vmm.paths",
    "vmm.record",
    "vmm.qmp.client",
    "vmm.signals",
    "vmm.sys",
    "vmm.untrusted",
)
# containerd's messages stop here.
PROTO_USERS = (
    "shim/bootstrap.py",
    "shim/cleanup.py",
    "shim/events.py",
    "shim/sandbox_api.py",
    "shim/task.py",
)
# No I/O: parsing, planning and tables.
PURE = (
    "shim/states.py",
    "shim/ttrpc/framing.py",
    "shim/oci/coverage.py",
    "shim/oci/resources.py",
    "shim/oci/transform.py",
    "vmm/boards/base.py",
    "vmm/boards/layout.py",
    "vmm/boards/microvm.py",
    "vmm/metrics.py",
    "vmm/qmp/block.py",
    "vmm/qmp/protocol.py",
    "vmm/runstate.py",
)
IO_MODULES = ("asyncio", "os", "pathlib", "select", "selectors", "socket", "subprocess", "threading")


def modules(package: str) -> Iterator[Path]:
    """The hand-written modules of a package."""
    for path in sorted((CHECKOUT / package).rglob("*.py")):
        if "generated" not in path.parts:
            yield path


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, at any depth of its code."""
    package = path.relative_to(CHECKOUT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or below it."""
    return name == package or name.startswith(f"{package}.")


def test_vmm_never_imports_shim() -> None:
    offenders = [str(path) for path in modules("vmm") if any(within(name, "shim") for name in imports(path))]
    assert offenders == []


def test_products_never_import_tests_or_tools() -> None:
    offenders = [
        f"{path}: {name}"
        for package in ("shim", "vmm")
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in ("tests", "tools", "rootfs")
    ]
    assert offenders == []


def test_shim_uses_only_the_agreed_parts_of_vmm() -> None:
    offenders = [
        f"{path.relative_to(CHECKOUT)}: {name}"
        for path in modules("shim")
        for name in sorted(imports(path))
        if within(name, "vmm") and name != "vmm" and not any(within(name, part) for part in SHIM_USES)
    ]
    assert offenders == []


def test_pyroute2_has_one_user() -> None:
    users = {
        str(path.relative_to(CHECKOUT))
        for package in ("shim", "vmm")
        for path in modules(package)
        if any(within(name, "pyroute2") for name in imports(path))
    }
    assert users <= {"shim/network.py"}


def test_strato_vmm_stays_light() -> None:
    heavy = ("asyncio", "google.protobuf", "pyroute2", "grpc")
    offenders = [
        f"{path.relative_to(CHECKOUT)}: {name}"
        for path in modules("vmm")
        # qmp/client.py has an asyncio face for the shim, imported only when used.
        if path.relative_to(CHECKOUT).as_posix() != "vmm/qmp/client.py"
        for name in imports(path)
        if any(within(name, part) for part in heavy)
    ]
    assert offenders == []


@pytest.mark.parametrize("name", PURE)
def test_pure_module_does_no_io(name: str) -> None:
    used = {module for module in imports(CHECKOUT / name) if module.split(".")[0] in IO_MODULES}
    # Paths as values are not I/O.
    used -= {"pathlib", "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.Path"}
    assert used == set()


def test_native_code_knows_no_json() -> None:
    manifests = sorted((CHECKOUT / "vmm/native").rglob("Cargo.toml"))
    assert manifests
    assert [str(path) for path in manifests if "serde_json" in path.read_text(encoding="utf-8")] == []


def test_heavy_modules_are_not_imported_by_start_and_delete() -> None:
    import subprocess
    import sys

    code = "import sys; import shim.bootstrap, shim.cleanup, shim.leftovers; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"asyncio", "google", "grpc", "pyroute2", "subprocess", "logging"}
    assert heavy & {name.split(".")[0] for name in done.stdout.split()} == set()
