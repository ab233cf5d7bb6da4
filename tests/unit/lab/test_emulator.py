"""Which last words of a test host are those of a defect of the emulator."""

import pytest

from tests.lab import emulator

pytestmark = pytest.mark.unit

STACK = """\
[  595.935547]  sysvec_apic_timer_interrupt+0xa/0x90
[  595.935555]  {entry}+0x16/0x20
[  595.935565] RIP: 0010:{place}+0x9c/0x210 [kvm_amd]
[  595.936144] Kernel panic - not syncing: Fatal exception in interrupt"""


@pytest.mark.parametrize("entry", ["asm_sysvec_apic_timer_interrupt", "asm_common_interrupt"])
def test_interrupt_behind_vmrun_is_the_emulators(entry: str) -> None:
    text = emulator.fault(STACK.format(entry=entry, place="__svm_vcpu_run"))

    assert text is not None and "behind VMRUN" in text


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("asm_exc_page_fault", "__svm_vcpu_run"),
        ("asm_sysvec_apic_timer_interrupt", "kvm_arch_vcpu_ioctl_run"),
        ("asm_sysvec_apic_timer_interrupt", "svm_vcpu_run"),
    ],
)
def test_other_panics_are_not(entry: str, place: str) -> None:
    assert emulator.fault(STACK.format(entry=entry, place=place)) is None


def test_no_words_show_nothing() -> None:
    assert emulator.fault("") is None
