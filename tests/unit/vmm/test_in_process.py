"""What strato-vmm makes of what its devices say, and how it ends them."""

from pathlib import Path

import pytest

from vmm.backends.in_process import MAX_WORDS, DeviceServer
from vmm.boards.base import DeviceKind, DevicePlan
from vmm.config import DriveConfig, RngConfig, ShareConfig
from vmm.devices import LIBRARY_TAG, DeviceEvent, DeviceEventKind
from vmm.errors import ConfigError, HostError, QmpCommandError
from vmm.log import Log

pytestmark = pytest.mark.unit

RNG = DevicePlan(slot=1, kind=DeviceKind.RNG, id="rng", source=RngConfig())


class Ears:
    """A server of one entropy device, and what it was heard to say."""

    def __init__(self, plan: DevicePlan = RNG) -> None:
        self.lost: list[str] = []
        self.gone: list[str] = []
        self.server = DeviceServer(
            Log(),
            prepare=lambda: None,
            lost=self.lost.append,
            front_end_gone=self.gone.append,
            balloon_changed=lambda: None,
        )
        self.front_end = self.server.connect(plan).connection

    def hear(self, kind: int, *, tag: int = 0) -> None:
        self.server._on_event(DeviceEvent(tag, kind, 1, "Words"))

    def close(self) -> None:
        self.server.close()
        self.front_end.close()


def test_a_device_that_panicked_is_lost_by_name() -> None:
    ears = Ears()
    ears.server.serve()
    ears.hear(DeviceEventKind.PANICKED)
    assert ears.lost == ["Device rng is lost: Words"]
    ears.close()


def test_a_panic_of_any_thread_of_the_library_is_the_end_and_nothing_waits_for_it() -> None:
    ears = Ears()
    ears.server.serve()
    ((_, device),) = ears.server._devices.values()
    ears.hear(DeviceEventKind.PANICKED, tag=LIBRARY_TAG)
    assert ears.lost == ["Bug in libstrato_vmm.so: Words"]
    abandoned = device._device
    ears.close()
    # Its threads were left alone; here they can be ended after all.
    device._device = abandoned
    device.close()


def test_a_front_end_that_goes_is_told_apart() -> None:
    ears = Ears()
    ears.server.serve()
    ears.hear(DeviceEventKind.FRONT_END_GONE)
    assert (ears.lost, ears.gone) == ([], ["Front end of device rng has gone"])
    ears.close()


def test_what_a_guest_provokes_is_logged_a_few_times_only(capfd: pytest.CaptureFixture[str]) -> None:
    ears = Ears()
    ears.server.serve()
    for _ in range(10 * MAX_WORDS):
        ears.hear(DeviceEventKind.NEEDS_RESET)
    assert capfd.readouterr().err.count("Words") == MAX_WORDS
    assert ears.lost == []
    ears.close()


def test_counters_are_named_by_device() -> None:
    ears = Ears()
    ears.server.serve()
    (entry,) = ears.server.metrics()
    assert (entry["device"], entry["kind"], entry["counters"]["requests"]) == ("rng", "rng", 0)
    ears.close()


def test_an_engine_that_closes_its_end_is_noticed() -> None:
    ears = Ears()
    ears.server.serve()
    ears.front_end.close()
    ring = ears.server._ring
    assert ring is not None
    events: list[DeviceEvent] = []
    while not events:
        events = ring.events()
    assert [event.kind for event in events] == [DeviceEventKind.FRONT_END_GONE]
    ears.close()


def test_absent_files_and_folders_are_errors_of_the_configuration(tmp_path: Path) -> None:
    drive = DriveConfig(id="d0", path=tmp_path / "absent")
    share = ShareConfig(tag="t", directory=tmp_path / "absent")
    for kind, source in ((DeviceKind.BLOCK, drive), (DeviceKind.FS, share)):
        ears = Ears(DevicePlan(slot=1, kind=kind, id="x", source=source))
        with pytest.raises(ConfigError, match="absent of device x does not exist"):
            ears.server.serve()
        ears.close()


def test_what_is_no_disk_is_refused_with_the_reason(tmp_path: Path) -> None:
    drive = DriveConfig(id="d0", path=Path("/dev/null"))
    ears = Ears(DevicePlan(slot=1, kind=DeviceKind.BLOCK, id="d0", source=drive))
    with pytest.raises(HostError, match="d0") as caught:
        ears.server.serve()
    assert "regular file or a block device" in str(caught.value.__cause__)
    ears.close()


def test_what_is_not_there_is_neither_resized_nor_reset() -> None:
    ears = Ears()
    ears.server.serve()
    with pytest.raises(KeyError):
        ears.server.resize_drive("rng", 512)
    with pytest.raises(QmpCommandError, match="No vsock device") as caught:
        ears.server.reset_vsock()
    assert caught.value.error_class == "DeviceNotActive"
    ears.close()
