"""Which tests run in the KVM lab: the one list to change.

`make test` runs CORE, `make test-full` every test of FOLDERS. An entry is the beginning of a test's node id:
a file, a class or a function with all its parameters.
"""

FOLDERS = ("tests/integration/", "tests/containerd/")

CORE = (
    "tests/integration/test_vm",
    # On containerd 2.3 alone; --full has every daemon.
    "tests/containerd/test_run.py",
    "tests/containerd/test_exec.py",
    "tests/containerd/test_kill.py::test_death_of_the_machine_ends_the_task_with_137",
    "tests/containerd/test_network.py",
    "tests/containerd/test_sandbox.py",
    "tests/containerd/test_volumes.py",
)


def belongs(node_id: str, *, full: bool) -> bool:
    """Whether a test is part of the rung `lab`, beside those that live in tests/lab."""
    if full:
        return node_id.startswith(FOLDERS)
    return node_id.startswith(CORE) and ("[" not in node_id or "1.6" not in node_id.partition("[")[2])


def runs_inside(node_id: str) -> bool:
    """Whether `--lab` sends a test to the test host: all that needs a VM, but not those of the lab itself."""
    return node_id.startswith(FOLDERS)
