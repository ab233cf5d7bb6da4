"""The counters of a VM as Prometheus reads them."""

import pytest

from vmm.metrics import exposition

pytestmark = pytest.mark.unit


def test_each_family_is_typed_once_and_labelled_by_device() -> None:
    text = exposition(
        "a vm",
        {
            "machine": {"exits_mmio": 7},
            "devices": [
                {"device": "d0", "kind": "block", "counters": {"reads": 1}},
                {"device": "d1", "kind": "block", "counters": {"reads": 2}},
            ],
        },
    )

    assert text == (
        "# TYPE strato_block_reads untyped\n"
        'strato_block_reads{vm="a vm",device="d0"} 1\n'
        'strato_block_reads{vm="a vm",device="d1"} 2\n'
        "# TYPE strato_vm_exits_mmio untyped\n"
        'strato_vm_exits_mmio{vm="a vm"} 7\n'
    )


def test_names_cannot_break_out_of_their_label() -> None:
    assert exposition('a"b\\', {"machine": {"exits": 1}, "devices": []}).endswith('{vm="a\\"b\\\\"} 1\n')
