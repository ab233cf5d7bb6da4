"""What strato-vmm imports: it starts fast and holds nothing that it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
FORBIDDEN = {
    "asyncio",
    "google",
    "grpc",
    "pyroute2",
    "shim",
    "logging",
    "argparse",
    "subprocess",
    "tomllib",
    "threading",
    "concurrent",
    "cffi",
    "typing",
    "shutil",
    "dataclasses",
    "inspect",
}


def modules_after(code: str) -> set[str]:
    report = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]; {code}; {report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_strato_vmm_with_all_its_parts_imports_nothing_heavy() -> None:
    backends = "vmm.backends.virtiofsd, vmm.backends.vhost_device_vsock, vmm.backends.in_process"
    parts = f"vmm.__main__, vmm.engines.kvm, vmm.engines.tcg, vmm.qmp.server, {backends}"

    assert modules_after(f"import {parts}") & FORBIDDEN == set()


def test_qmp_client_imports_asyncio_only_when_used() -> None:
    assert "asyncio" not in modules_after("import vmm.qmp.client")


def test_packages_import_nothing_by_themselves() -> None:
    loaded = modules_after(
        "import vmm, vmm.qmp, vmm.boards, vmm.engines, vmm.backends; print(len(sys.modules))"
    )

    assert "json" not in loaded
