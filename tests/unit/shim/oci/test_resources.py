import random
from typing import Any

import pytest

from shim.errors import SpecError, SpecRefusedError
from shim.oci.resources import SizeSettings, VmSize, vm_size
from shim.oci.spec import annotations_of

from .samples import sample

pytestmark = pytest.mark.unit

_SETTINGS = SizeSettings(
    default_vcpus=1, default_memory_mib=256, memory_overhead_mib=64, max_vcpus=8, max_memory_mib=8192
)
_GIB = 1 << 30


def _spec(limit: object = None, quota: object = None, period: object = None) -> dict[str, Any]:
    return {"linux": {"resources": {"memory": {"limit": limit}, "cpu": {"quota": quota, "period": period}}}}


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ({}, VmSize(1, 256)),
        ({"linux": None}, VmSize(1, 256)),
        (_spec(limit=_GIB), VmSize(1, 1024 + 64)),
        (_spec(limit=_GIB + 1), VmSize(1, 1024 + 66)),
        (_spec(limit=64 << 20), VmSize(1, 256)),
        (_spec(limit=-1), VmSize(1, 256)),
        (_spec(limit=0x7FFFFFFFFFFFF000), VmSize(1, 256)),
        (_spec(quota=200_000, period=100_000), VmSize(2, 256)),
        (_spec(quota=200_001, period=100_000), VmSize(3, 256)),
        (_spec(quota=50_000, period=100_000), VmSize(1, 256)),
        (_spec(quota=300_000), VmSize(3, 256)),
        (_spec(quota=-1, period=100_000), VmSize(1, 256)),
        (_spec(quota=300_000, period=0), VmSize(3, 256)),
    ],
)
def test_vm_size_follows_the_limits(spec: dict[str, Any], size: VmSize) -> None:
    assert vm_size(spec, {}, _SETTINGS) == size


def test_vm_size_of_a_pod_follows_its_sandbox_annotations() -> None:
    spec = sample("cri")

    assert vm_size(spec, annotations_of(spec), _SETTINGS) == VmSize(2, 512 + 64)


def test_vm_size_by_allowed_annotation_wins() -> None:
    settings = SizeSettings(allowed_annotations=frozenset({"io.strato.vcpus", "io.strato.memory_mib"}))
    wishes = {"io.strato.vcpus": "3", "io.strato.memory_mib": "129"}

    assert vm_size(_spec(limit=_GIB), wishes, settings) == VmSize(3, 130)


@pytest.mark.parametrize(
    ("spec", "wishes", "where"),
    [
        (_spec(limit=8 * _GIB), {}, "$.linux.resources.memory.limit"),
        (_spec(quota=900_000), {}, "$.linux.resources.cpu.quota"),
        ({}, {"io.strato.vcpus": "2"}, "$.annotations['io.strato.vcpus']"),
        (
            {},
            {"io.kubernetes.cri.sandbox-memory": str(9 * _GIB)},
            "$.annotations['io.kubernetes.cri.sandbox-memory']",
        ),
    ],
)
def test_vm_size_beyond_what_the_host_allows_is_refused(
    spec: dict[str, Any], wishes: dict[str, str], where: str
) -> None:
    with pytest.raises(SpecRefusedError) as caught:
        vm_size(spec, wishes, _SETTINGS)

    assert caught.value.json_path == where


@pytest.mark.parametrize(
    ("spec", "wishes"),
    [
        (_spec(limit="1g"), {}),
        (_spec(limit=True), {}),
        (_spec(quota=1.5), {}),
        ({"linux": []}, {}),
        ({}, {"io.kubernetes.cri.sandbox-memory": "lots"}),
        ({}, {"io.kubernetes.cri.sandbox-cpu-quota": "9" * 30}),
    ],
)
def test_vm_size_of_no_number_is_an_error(spec: dict[str, Any], wishes: dict[str, str]) -> None:
    with pytest.raises(SpecError):
        vm_size(spec, wishes, _SETTINGS)


def test_vm_size_always_holds_the_limits() -> None:
    dice = random.Random(3)
    for _ in range(2000):
        limit, quota, period = dice.randrange(1, 7 * _GIB), dice.randrange(1000, 800_000), 100_000

        size = vm_size(_spec(limit, quota, period), {}, _SETTINGS)

        assert size.memory_mib * (1 << 20) >= limit + (64 << 20)
        assert size.memory_mib % 2 == 0
        assert size.memory_mib >= 256
        assert (size.memory_mib - 64 - 3) * (1 << 20) < limit or size.memory_mib == 256
        assert size.vcpus * period >= quota
        assert (size.vcpus - 1) * period < quota
