"""The VM has the size that limits, annotations and configuration ask for; the container's limits
hold inside it.
"""

import pytest

from tests.framework.ctr import Ctr
from tests.framework.daemons import TestDaemon

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]
MIB = 1 << 20


def fill_memory(mib: int) -> tuple[str, ...]:
    """A command that fills one buffer of that size."""
    return ("dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1")


def guest_memory_mib(ctr: Ctr, *options: str) -> float:
    """MemTotal of the guest of a container made with these options."""
    text = ctr.run("grep", "MemTotal", "/proc/meminfo", options=options).check().text
    return int(text.split()[1]) / 1024


def test_container_without_limits_gets_the_default_memory(ctr: Ctr) -> None:
    assert 200 < guest_memory_mib(ctr) <= 256


def test_memory_limit_fits_into_the_guest(ctr: Ctr) -> None:
    assert 1024 < guest_memory_mib(ctr, "--memory-limit", str(1024 * MIB)) < 1400


def test_memory_limit_can_be_used_up_to_itself(ctr: Ctr) -> None:
    result = ctr.run(*fill_memory(500), options=("--memory-limit", str(640 * MIB)))
    assert "1+0 records out" in result.check().error_text


def test_memory_limit_holds_inside_the_guest(ctr: Ctr) -> None:
    assert ctr.run(*fill_memory(120), options=("--memory-limit", str(64 * MIB))).status == 137


def test_memory_by_annotation(ctr: Ctr) -> None:
    assert 480 < guest_memory_mib(ctr, "--annotation", "io.strato.memory_mib=600") <= 600


def test_memory_by_configuration(daemon: TestDaemon) -> None:
    daemon.write_config(vm={"default_memory_mib": 384})
    assert 310 < guest_memory_mib(daemon.ctr) <= 384


def test_container_without_cpu_limit_gets_one_processor(ctr: Ctr) -> None:
    assert ctr.run("nproc").check().text == "1"


def test_cpu_quota_of_one_and_a_half_gets_two_processors(ctr: Ctr) -> None:
    options = ("--cpu-quota", "150000", "--cpu-period", "100000")
    assert ctr.run("nproc", options=options).check().text == "2"


def test_annotation_that_is_not_allowed_is_refused(ctr: Ctr) -> None:
    result = ctr.run("true", options=("--annotation", "io.strato.vm.kernel=/evil"))
    assert result.status != 0
    assert "io.strato.vm.kernel" in result.error_text
