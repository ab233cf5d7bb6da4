"""No way leads out of a share: a hostile guest, alone and while the host changes the folder, against a folder
beside the share that nobody may even open.
"""

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.framework import guest_image
from tests.framework.command import Background
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import REFERENCE, STRATO, Share

pytestmark = pytest.mark.differential

SECRET = "the secret of the host"
RACE_S = 6
IN_ALL_EVENTS, IN_NONBLOCK, IN_DONT_FOLLOW = 0xFFF, 0o4000, 0x02000000  # sys/inotify.h
_EVENT = struct.Struct("iIII")


class Watch:
    """Tells of every access to a folder and the files in it, whoever makes it."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(IN_NONBLOCK)
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_ALL_EVENTS) < 0:
            raise OSError(ctypes.get_errno(), f"Cannot watch {directory}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def events(self) -> list[tuple[int, str]]:
        """Mask and name of all that has happened since the last call."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            found.append((mask, data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()))
            data = data[_EVENT.size + length :]
        return found


@dataclass(frozen=True)
class Scene:
    """The running VM, the share's folder, what lies beside it, and who watches that."""

    vm: DeviceVm
    share: Path
    outside: Path
    program: Path
    watch: Watch

    def state(self) -> list[object]:
        """All that could have been changed outside."""
        found: list[object] = [sorted(path.name for path in self.outside.iterdir())]
        for path in (self.outside, self.outside / "marker"):
            status = path.stat()
            found.append((status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size))
            found.append((status.st_mtime_ns, status.st_ctime_ns, sorted(os.listxattr(path))))
        self.watch.events()  # of looking just now
        return found


@pytest.fixture(params=[STRATO, REFERENCE])
def scene(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Iterator[Scene]:
    """A share with everything in it that tempts a server to leave it."""
    directory = Path(tempfile.mkdtemp(prefix="vme-"))
    try:
        with _scene(directory, request.param, programs) as made:
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_no_single_attempt_leads_outside(scene: Scene) -> None:
    before = scene.state()

    output = scene.vm.run("/escape", "tries", "/share", scene.outside)

    assert "tried everything: opened some" in output
    _assert_untouched(scene, before, output)


def test_no_race_with_the_host_or_the_guest_leads_outside(scene: Scene) -> None:
    before = scene.state()

    scene.vm.begin("/escape", "race", "/share", RACE_S)
    with Background([scene.program, "exchange", scene.share, str(RACE_S)]) as host:
        output, status = scene.vm.finish()
        host.wait()

    assert status == 0
    assert "raced: read some" in output
    _assert_untouched(scene, before, output)


def test_watch_sees_whoever_looks(scene: Scene) -> None:
    (scene.outside / "marker").read_text()

    assert any(name == "marker" for _, name in scene.watch.events())


def _assert_untouched(scene: Scene, before: list[object], output: str) -> None:
    assert scene.watch.events() == []
    assert SECRET not in output
    assert scene.state() == before
    assert (scene.outside / "marker").read_text() == SECRET


@contextmanager
def _scene(directory: Path, server: str, programs: dict[str, Path]) -> Iterator[Scene]:
    share, outside, mounted = (directory / name for name in ("share", "outside", "elsewhere"))
    for folder in (share, outside, mounted, share / "inner", share / "swap", share / "mounted"):
        folder.mkdir()
    for place in (share / "inner", share / "swap", mounted):
        (place / "marker").write_text("inside")
    (outside / "marker").write_text(SECRET)
    for name, target in {
        "swap-link": "../outside",
        "out-absolute": str(outside),
        "out-relative": "../outside",
        "out-marker": str(outside / "marker"),
        "out-root": "/proc/self/root",
    }.items():
        (share / name).symlink_to(target)
    (directory / "vm").mkdir()
    image = guest_image.build(directory / "vm", programs)
    subprocess.run(["mount", "--bind", mounted, share / "mounted"], check=True)
    try:
        settings = DeviceVmSettings(image, [Share("share", share, server)])
        with DeviceVm(directory / "vm", settings) as vm, Watch(outside) as watch:
            assert vm.ask("mount share /share") == "ok"
            yield Scene(vm, share, outside, programs["escape"], watch)
    finally:
        subprocess.run(["umount", share / "mounted"], check=True)
