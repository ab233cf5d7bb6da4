"""Which tests run in the KVM lab: the one list to change.

`make test-lab` runs CORE without LONG, `make test-full` every test of FOLDERS but TOO_LONG, both on
containerd 2.3 alone: what differs between daemons does not depend on the engine. An entry is the beginning of
a test's node id: a file, a class, a function with all its parameters, or one of these.
"""

import re

FOLDERS = ("tests/integration/", "tests/containerd/")

CORE = (
    "tests/integration/test_vm",
    "tests/containerd/test_exec.py::test_exec_prints_output_of_both_streams",
    "tests/containerd/test_kill.py::test_death_of_the_machine_ends_the_task_with_137",
    "tests/containerd/test_lifecycle.py::test_pause_stops_the_processes",
    "tests/containerd/test_network.py::test_container_pings_its_peer",
    "tests/containerd/test_run.py::test_exit_status_of_init_is_relayed[2.3-42]",
    "tests/containerd/test_run.py::test_run_prints_output_of_both_streams",
    "tests/containerd/test_sandbox.py::test_members_share_one_shim_and_one_guest",
    "tests/containerd/test_stdio.py::test_burst_of_eight_mebibytes_before_exit_is_complete",
    "tests/containerd/test_volumes.py::test_directory_is_shared_both_ways_while_running",
)

LONG = (
    "tests/integration/test_vm.py::test_console_output_is_kept_in_ring_and_log_within_limits",
    "tests/integration/test_vm_kvm.py::test_twenty_vms_run_at_once",
    "tests/integration/test_vm_run.py::test_absent_kernel_is_told_without_a_traceback",
    "tests/integration/test_vm_run.py::test_commands_from_a_regular_file_run",
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
