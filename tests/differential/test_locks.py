"""Locks on the host's files: two mounts of one folder, as two VMs have it, and the host beside them."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import STRATO, Share

from .differences import parse

pytestmark = pytest.mark.differential

Calls = Sequence[tuple[str, str]]
"""Calls of guest/script.c, and what each gives."""

BETWEEN_MOUNTS: Calls = (
    ("open f0 /one/x O_RDWR|O_CREAT 0644", "0"),
    ("open f1 /two/x O_RDWR 0", "0"),
    ("lock f0 write 0 100", "0"),
    ("lock f1 write 50 10", "EAGAIN"),
    ("test-lock f1 write 0 0", "type 1 from 0 for 100"),
    # Whoever waited on the host could not hear that the lock is given back.
    ("wait-lock f1 write 50 10", "EOPNOTSUPP"),
    ("lock f1 write 100 10", "0"),
    ("wait-lock f0 read 0 0", "EOPNOTSUPP"),
    ("lock f0 unlock 0 100", "0"),
    ("wait-lock f1 write 50 10", "0"),
    ("flock f0 exclusive", "0"),
    ("flock f1 shared", "EAGAIN"),
    ("flock f0 unlock", "0"),
    ("flock f1 shared", "0"),
    ("lock f0 write 0 0", "EAGAIN"),
    ("close f1", "0"),
    ("lock f0 write 0 0", "0"),
    ("flock f0 exclusive", "0"),
)
WITH_THE_HOST: Calls = (
    ("open f0 /one/held O_RDWR 0", "0"),
    ("lock f0 read 5 1", "EAGAIN"),
    ("wait-lock f0 read 5 1", "EOPNOTSUPP"),
    ("lock f0 read 10 1", "0"),
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path."""
    made = Path(tempfile.mkdtemp(prefix="vml-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def check(vm: DeviceVm, script: str, calls: Calls) -> None:
    told = parse(vm.run("/script", f"/{script}", "/"))
    wrong = [
        f"{call}: {given}, not {expected}"
        for (call, expected), given in zip(calls, told.values(), strict=True)
        if given != expected
    ]
    assert not wrong, "\n".join(wrong)


def test_locks_are_the_hosts_and_never_waited_for(directory: Path, programs: dict[str, Path]) -> None:
    scripts = {"between-mounts": BETWEEN_MOUNTS, "with-the-host": WITH_THE_HOST}
    files = {"script": programs["script"]}
    for name, calls in scripts.items():
        files[name] = directory / name
        files[name].write_text("".join(f"{call}\n" for call, _ in calls))
    shared = directory / "shared"
    shared.mkdir()
    shares = [Share(name, shared, STRATO, cache="none", remote_locks=True) for name in ("one", "two")]
    settings = DeviceVmSettings(guest_image.build(directory, files), shares)
    with DeviceVm(directory, settings) as vm, (shared / "held").open("wb") as held:
        for share in shares:
            assert vm.ask(f"mount {share.name} /{share.name}") == "ok"
        check(vm, "between-mounts", BETWEEN_MOUNTS)

        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        check(vm, "with-the-host", WITH_THE_HOST)
