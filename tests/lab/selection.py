"""Which tests run in the KVM lab: the one list to change.

`make test-lab` runs CORE without LONG, `make test-full` every test of FOLDERS but TOO_LONG, both on
containerd 2.3 alone: what differs between daemons does not depend on the engine. An entry is the beginning of
a test's node id: a file, a class, a function with all parameters, or one of these.
"""

import re

FOLDERS = ("tests/integration/", "tests/containerd/")

CORE = (
    "tests/integration/test_vm.py::test_guest_boots_and_powers_off",
    "tests/integration/test_vm.py::test_killed_strato_vmm_takes_its_pid_namespace_along",
    "tests/integration/test_vm.py::test_panic_is_told_with_its_reason",
    "tests/integration/test_vm_agent.py",
    "tests/integration/test_vm_devices.py::test_counters_of_the_devices_are_told",
    "tests/integration/test_vm_devices.py::test_drives_appear_in_order_with_size_serial_and_mode",
    "tests/integration/test_vm_devices.py::test_share_is_read_and_written_by_both_sides[strato-auto]",
    "tests/integration/test_vm_devices.py::test_vsock_carries_bytes_from_host_to_guest_and_back[strato]",
    "tests/integration/test_vm_hotplug.py",
    "tests/integration/test_vm_jail.py::test_every_thread_is_confined",
    "tests/integration/test_vm_jail.py::test_forbidden_call_of_any_other_thread_ends_the_vm[vcpu0]",
    "tests/integration/test_vm_jail.py::test_files_of_the_host_and_of_other_sandboxes_are_out_of_reach",
    "tests/integration/test_vm_jail.py::test_no_descriptor_is_open_that_nobody_has_listed",
    "tests/integration/test_vm_jail.py::test_nothing_is_visible",
    "tests/integration/test_vm_kvm.py",
    "tests/integration/test_vm_jail.py::test_no_process_has_more_of_a_resource_than_it_needs",
    "tests/integration/test_vm_kernels.py::test_compressed_kernel_boots_and_boots_again",
    "tests/integration/test_vm_memory.py::test_balloon_takes_memory_and_gives_it_back",
    "tests/integration/test_vm_memory.py::test_statistics_of_the_guest_are_told_again_and_again[True]",
    "tests/integration/test_vm_network.py",
    "tests/integration/test_vm_pause.py",
    "tests/integration/test_vm_qmp.py::test_powerdown_presses_the_guests_power_button",
    "tests/integration/test_vm_qmp.py::test_stop_and_cont_announce_once_and_stop_the_guest",
    "tests/containerd/test_kill.py::test_death_of_the_machine_ends_the_task_with_137",
    "tests/containerd/test_network.py::test_container_pings_its_peer",
    "tests/containerd/test_run.py::test_exit_status_of_init_is_relayed[2.3-42]",
    "tests/containerd/test_run.py::test_run_prints_output_of_both_streams",
    "tests/containerd/test_volumes.py::test_directory_is_shared_both_ways_while_running",
)

LONG = (
    "tests/integration/test_vm_kvm.py::test_guest_runs_in_other_memory_than_the_default",
    "tests/integration/test_vm_kvm.py::test_twenty_vms_run_at_once",
)
"""Too long for every day."""

TOO_LONG = (
    "tests/containerd/test_many.py::test_fifty_containers",
    "tests/containerd/test_exec.py::test_fifty_execs",
)

_OTHER_DAEMONS = re.compile(r"\[(1\.6|2\.3-grpc)\b")


def belongs(node_id: str, *, full: bool) -> bool:
    """Whether a test is part of the rung `lab`, beside those that live in tests/lab."""
    if _OTHER_DAEMONS.search(node_id) or node_id.startswith(TOO_LONG):
        return False
    return node_id.startswith(FOLDERS) if full else node_id.startswith(CORE) and not node_id.startswith(LONG)


def runs_inside(node_id: str) -> bool:
    """Whether `--lab` sends a test to the test host: all that needs a VM, but not those of the lab itself."""
    return node_id.startswith(FOLDERS)
