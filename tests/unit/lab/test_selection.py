import pytest

from tests.framework.runtime import CHECKOUT
from tests.lab import selection

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("entry", [*selection.CORE, *selection.LONG, *selection.TOO_LONG])
def test_every_entry_names_tests_that_exist(entry: str) -> None:
    name, _, function = entry.partition("::")
    files = [path.read_text() for path in CHECKOUT.glob(f"{name}*")]

    assert any(f"def {function.partition('[')[0]}" in text for text in files)


@pytest.mark.parametrize(
    ("node_id", "core", "full"),
    [
        ("tests/integration/test_vm.py::test_guest_boots_and_powers_off", True, True),
        ("tests/integration/test_vm_kvm.py::test_twenty_vms_run_at_once", False, True),
        ("tests/containerd/test_run.py::test_exit_status_of_init_is_relayed[2.3-42]", True, True),
        ("tests/containerd/test_run.py::test_exit_status_of_init_is_relayed[2.3-0]", False, True),
        ("tests/containerd/test_run.py::test_run_prints_output_of_both_streams[2.3]", True, True),
        ("tests/containerd/test_run.py::test_run_prints_output_of_both_streams[1.6]", False, False),
        ("tests/containerd/test_run.py::test_run_prints_output_of_both_streams[2.3-grpc]", False, False),
        ("tests/containerd/test_many.py::test_fifty_containers_one_after_another[2.3]", False, False),
        ("tests/differential/test_files.py::test_any", False, False),
        ("tests/lab/test_machine.py::test_any", False, False),
    ],
)
def test_selection_is_by_the_beginning_of_the_name_on_one_daemon(
    node_id: str, core: bool, full: bool
) -> None:
    assert selection.belongs(node_id, full=False) is core
    assert selection.belongs(node_id, full=True) is full
