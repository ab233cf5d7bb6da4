"""What each verb may import: start and delete run for every container and are counted in milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]
HEAVY = {"asyncio", "google.protobuf", "grpc", "pyroute2", "subprocess", "logging", "ssl", "hashlib"}


def modules_after(statement: str) -> set[str]:
    code = (
        f"import sys, json; sys.path.insert(0, {str(CHECKOUT)!r}); before = set(sys.modules); {statement}; "
        "after = set(sys.modules) - before; import json; print(json.dumps(sorted(after)))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, check=True, timeout=60)
    return set(json.loads(done.stdout))


def test_start_imports_nothing_beyond_its_list() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); before = set(sys.modules); "
        "from shim import __main__, bootstrap, config_files; import fcntl; names = bootstrap.names; "
        "names.sha256_hex('x'); after = set(sys.modules) - before; print(' '.join(sorted(after)))"
    )

    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )

    allowed = {
        "shim", "shim.__main__", "shim.bootstrap", "shim.config_files", "shim.names", "shim.params",
        "__future__", "_socket", "_sha256", "_sha2", "fcntl",
        "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc",
    }  # fmt: skip
    assert set(done.stdout.split()) - allowed == set()


def test_delete_after_an_orderly_end_imports_nothing_beyond_its_list(tmp_path: Path) -> None:
    (tmp_path / "strato.ended").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); before = set(sys.modules); "
        f"from shim.__main__ import main; main(['-id', 'c1', '-bundle', {str(tmp_path)!r}, 'delete']); "
        "after = set(sys.modules) - before; import os; os.write(2, ' '.join(sorted(after)).encode())"
    )

    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, check=True, timeout=60)

    allowed = {
        "shim", "shim.__main__", "shim.cleanup", "shim.names", "shim.params",
        "__future__", "_sha256", "_sha2", "time",
        "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc",
    }  # fmt: skip
    assert set(done.stderr.decode().split()) - allowed == set()


def test_delete_of_leftovers_imports_no_heavy_module() -> None:
    loaded = modules_after("from shim import cleanup, leftovers")

    assert "shim.state" in loaded
    assert loaded & HEAVY == set()


def test_preparation_imports_nothing_that_can_wait_for_the_guest_s_boot() -> None:
    statement = (
        "from shim import server, prepare, storage, cgroups, launch, network; "
        "from shim.oci import transform, bundle, resources; from vmm.jail import facts, view"
    )

    loaded = modules_after(statement)

    assert loaded & (HEAVY | {"dataclasses", "inspect", "typing", "traceback"}) == set()
