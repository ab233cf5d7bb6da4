"""The machine on KVM as Python has it, with kernels of a few instructions."""

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import tiny_kernel
from tests.framework.tiny_kernel import SPIN, TRIPLE_FAULT, out
from vmm.devices import DeviceEvent, DeviceEventKind, EventRing, Machine, probe, rng

pytestmark = pytest.mark.unit

PATIENCE_S = 30
TAG = 7
RESET = out(0x603, 0x42)
SWITCH_OFF = out(0x601, 0x34)  # SLP_EN, sleep type 5
PANIC = out(0x505, 1)


@pytest.fixture
def kvm_fd() -> Iterator[int]:
    """/dev/kvm; where it cannot be opened there is nothing to be tested."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/kvm cannot be opened: {error.strerror}")
    yield fd
    os.close(fd)


@pytest.fixture
def events() -> Iterator[EventRing]:
    with EventRing() as ring:
        yield ring


@pytest.fixture
def machine(kvm_fd: int, events: EventRing) -> Iterator[Machine]:
    """A machine with RAM, platform and two slots, before its vCPUs."""
    with Machine(events, TAG, "vm", kvm_fd=kvm_fd, num_cpus=2) as machine:
        machine.add_memory([(0, 8 << 20)])
        machine.add_platform(
            ged_gsi=5, pvpanic_port=0x505, power_port=0x600, tables_addr=0xE0000, generation_addr=0xFF000
        )
        machine.add_slot(0, guest_addr=0xC0000000, gsi=6)
        machine.add_slot(1, guest_addr=0xC0001000, gsi=7)
        yield machine


def boot(machine: Machine, code: bytes) -> None:
    """Load a kernel of this code and let it go."""
    kernel = tiny_kernel.memfd(code)
    try:
        machine.load(kernel_fd=kernel, cmdline="quiet")
    finally:
        os.close(kernel)
    machine.resume()


def take(events: EventRing, count: int) -> list[DeviceEvent]:
    """Wait for so many events."""
    found: list[DeviceEvent] = []
    while len(found) < count:
        assert select.select([events], [], [], PATIENCE_S)[0], f"only {found}"
        found += events.events()
    return found


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (RESET + SPIN, [DeviceEventKind.GUEST_RESET]),
        (SWITCH_OFF + SPIN, [DeviceEventKind.GUEST_SHUTDOWN]),
        (PANIC + PANIC + SWITCH_OFF + SPIN, [DeviceEventKind.GUEST_PANICKED, DeviceEventKind.GUEST_SHUTDOWN]),
        (TRIPLE_FAULT, [DeviceEventKind.TRIPLE_FAULT]),
        # A jump to where no code can be.
        (b"\xb8\x00\x00\x00\xd0\xff\xe0", [DeviceEventKind.VCPU_FAILED]),
    ],
)
def test_machine_whose_guest_ends_says_so_and_boots_again(
    machine: Machine, events: EventRing, code: bytes, kinds: list[int]
) -> None:
    machine.add_cpus()
    for _ in range(2):
        boot(machine, code)
        found = take(events, len(kinds))
        assert [(event.tag, event.kind, event.count) for event in found] == [(TAG, kind, 1) for kind in kinds]
        with pytest.raises(OSError, match="reset the machine first"):
            machine.resume()
        machine.reset()


def test_machine_that_runs_is_paused_resumed_and_counted(machine: Machine, events: EventRing) -> None:
    machine.add_cpus()
    boot(machine, SPIN)
    with pytest.raises(OSError, match="pause it before a reset") as caught:
        machine.reset()
    assert caught.value.errno == errno.EBUSY
    for _ in range(3):
        machine.pause(timeout_ms=PATIENCE_S * 1000)
        machine.resume()
    threads = machine.cpus()
    assert [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads] == [
        "vcpu0",
        "vcpu1",
    ]
    machine.power_button()
    machine.set_generation(bytes(16))
    assert machine.metrics()["exits_mmio_read"] == 0
    machine.close()
    machine.close()
    assert not any(Path(f"/proc/self/task/{thread}").exists() for thread in threads)
    assert events.events() == []
    with pytest.raises(ValueError, match="closed"):
        machine.metrics()


def test_device_is_plugged_and_unplugged_at_any_time(machine: Machine, events: EventRing) -> None:
    with rng(events, 1, "rng0", rate=1 << 20, burst=1 << 20) as device:
        machine.plug(0, device)
        with pytest.raises(OSError, match="is plugged into a machine"):
            machine.plug(0, device)
        machine.unplug(0)
        machine.add_cpus()
        boot(machine, SPIN)
        machine.plug(1, device)
        with pytest.raises(OSError, match="is plugged into a machine") as caught:
            machine.plug(0, device)
        assert caught.value.errno == errno.EBUSY
        machine.unplug(1)
        with pytest.raises(FileNotFoundError, match="Slot 1 is empty"):
            machine.unplug(1)
        with pytest.raises(FileNotFoundError, match="no slot 9"):
            machine.plug(9, device)
        machine.plug(0, device)


def test_closed_device_stays_in_its_slot_until_the_machine_ends(machine: Machine, events: EventRing) -> None:
    device = rng(events, 1, "rng0", rate=1 << 20, burst=1 << 20)
    machine.plug(0, device)
    device.close()
    machine.unplug(0)


def test_wrong_steps_and_values_are_refused_with_the_librarys_sentence(
    kvm_fd: int, events: EventRing, tmp_path: Path
) -> None:
    with Machine(events, TAG, "vm", kvm_fd=kvm_fd, num_cpus=1) as machine:
        with pytest.raises(OSError, match="no RAM or platform devices yet"):
            machine.add_cpus()
        with pytest.raises(OSError, match="whole pages"):
            machine.add_memory([(0, 5)])
        with pytest.raises(OSError, match="at least one region"):
            machine.add_memory([])
        short = tmp_path / "ram"
        short.write_bytes(bytes(4096))
        with short.open("rb") as file, pytest.raises(OSError, match="has 4096 bytes"):
            machine.add_memory([(0, 8 << 20)], backend="file", fd=file.fileno())
        with pytest.raises(OSError, match="Descriptor -1 is not open"):
            machine.add_memory([(0, 8 << 20)], backend="file")
        with pytest.raises(ValueError, match="16 bytes, not 3"):
            machine.set_generation(b"123")
        machine.add_memory([(0, 8 << 20)], backend="memfd", prealloc=True)
    with pytest.raises(OSError, match="0 vCPUs"):
        Machine(events, TAG, "vm", kvm_fd=kvm_fd, num_cpus=0)
    with Path(os.devnull).open("rb") as null, pytest.raises(OSError, match="/dev/kvm"):
        Machine(events, TAG, "vm", kvm_fd=null.fileno(), num_cpus=1)


def test_abandoned_machine_is_forgotten(kvm_fd: int, events: EventRing) -> None:
    machine = Machine(events, TAG, "vm", kvm_fd=kvm_fd, num_cpus=1)
    handle = machine._open()
    machine.abandon()
    machine.close()
    from vmm.devices import calls

    calls.machine_destroy(handle)


def test_probe_gives_a_verdict_and_its_reason(kvm_fd: int) -> None:
    usable, text = probe(kvm_fd)
    # Such a KVM emulates the kernel mode of unmodified guests one instruction at a time.
    assert usable is not Path("/sys/module/kvm_pvm").exists(), text
    assert text.startswith("A guest") or "one by one" in text


def test_probe_of_another_device_says_what_is_wrong() -> None:
    with Path(os.devnull).open("rb") as null:
        usable, text = probe(null.fileno())
    assert not usable
    assert "is the descriptor one of /dev/kvm?" in text
