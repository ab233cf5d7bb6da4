"""QEMU's microvm on KVM, as like to a plan of engine kvm as it can be: what strato-vmm is compared with."""

from vmm import paths
from vmm.boards.base import MachinePlan


def command_line(plan: MachinePlan, *, console: str, shared_memory: bool = False) -> list[str]:
    """QEMU's words for the plan's machine with console, entropy device and balloon; others are added.

    `console` is a chardev without its id. Devices over vhost-user need the guest's memory to be shared.
    """
    machine = "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off,usb=off,auto-kernel-cmdline=off"
    memory = []
    if shared_memory:
        machine += ",memory-backend=ram"
        memory = ["-object", f"memory-backend-memfd,id=ram,share=on,size={plan.memory.size_mib}M"]
    return [
        str(paths.qemu()),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"{machine},accel=kvm", "-cpu", "host", "-smp", str(plan.cpu_count)),
        *("-m", f"{plan.memory.size_mib}M", *memory, "-global", "virtio-mmio.force-legacy=false"),
        *("-kernel", str(plan.kernel), "-initrd", str(plan.initrd), "-append", plan.cmdline),
        *("-chardev", f"{console},id=console", "-device", "pvpanic"),
        *("-device", "virtio-serial-device,max_ports=1", "-device", "virtconsole,chardev=console"),
        *("-device", "virtio-rng-device"),
        *("-device", "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on"),
    ]
