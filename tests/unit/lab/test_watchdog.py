import pytest

from tests.lab.settings import LabSettings
from tests.lab.watchdog import Watchdog

pytestmark = pytest.mark.unit

SETTINGS = LabSettings(cpus=2, boot_s=20, beat_s=10, silence_s=30, deadline_s=100)


@pytest.fixture
def watchdog() -> Watchdog:
    """Of a test host that came up at once, at moment 1000."""
    watchdog = Watchdog(SETTINGS, 1000)
    watchdog.up(1000)
    return watchdog


def test_host_that_does_not_come_up_is_given_up() -> None:
    watchdog = Watchdog(SETTINGS, 1000)

    assert watchdog.verdict(1019.9) is None
    assert watchdog.next_look() == 1020
    assert watchdog.verdict(1020) == "was not up after 20 s"


def test_beats_before_it_is_up_count_for_nothing() -> None:
    watchdog = Watchdog(SETTINGS, 1000)
    watchdog.beat(0, 1019)

    assert watchdog.verdict(1020) is not None


def test_one_silent_vcpu_is_enough(watchdog: Watchdog) -> None:
    watchdog.beat(0, 1009)

    assert watchdog.verdict(1009.9) is None
    assert watchdog.next_look() == 1010
    assert watchdog.verdict(1010) == "froze: no sign of life of vCPU 1 for 10 s"


def test_beats_do_not_help_a_command_that_says_nothing(watchdog: Watchdog) -> None:
    for now in range(1000, 1031):
        watchdog.beat(0, now)
        watchdog.beat(1, now)

    assert watchdog.verdict(1029.9) is None
    assert watchdog.verdict(1030) == "made no progress: no output for 30 s"


def test_neither_beats_nor_output_help_beyond_the_deadline(watchdog: Watchdog) -> None:
    for now in range(1000, 1100):
        watchdog.beat(0, now)
        watchdog.beat(1, now)
        watchdog.output(now)
        assert watchdog.verdict(now) is None

    assert watchdog.next_look() == 1100
    assert watchdog.verdict(1100) == "had not ended after 100 s"


def test_beat_of_a_vcpu_that_does_not_exist_is_ignored(watchdog: Watchdog) -> None:
    watchdog.beat(7, 1009)

    assert watchdog.next_look() == 1010
