"""The VM state table."""

import pytest

from vmm.errors import StateError
from vmm.runstate import TABLE, RunState, Trigger, advance, require_operable

pytestmark = pytest.mark.unit


def events_of(*triggers: Trigger) -> list[str]:
    state = RunState.PRELAUNCH
    events: list[str] = []
    for trigger in triggers:
        transition = advance(state, trigger)
        state = transition.state
        events += transition.events
    return events


def test_start_announces_nothing() -> None:
    assert events_of(Trigger.STARTED) == []


def test_stop_and_resume_come_exactly_once_however_often_they_are_observed() -> None:
    doubled = [Trigger.PAUSED, Trigger.PAUSED, Trigger.RESUMED, Trigger.RESUMED]

    assert events_of(Trigger.STARTED, *doubled, *doubled) == ["STOP", "RESUME", "STOP", "RESUME"]


def test_stop_that_an_engine_reports_while_ending_is_not_announced() -> None:
    assert events_of(Trigger.STARTED, Trigger.ENDED, Trigger.PAUSED) == ["SHUTDOWN"]


def test_panic_announces_panic_then_shutdown_once() -> None:
    triggers = [
        Trigger.STARTED,
        Trigger.PANICKED,
        Trigger.PAUSED,
        Trigger.PANICKED,
        Trigger.ENDED,
        Trigger.ENDED,
    ]

    assert events_of(*triggers) == ["GUEST_PANICKED", "SHUTDOWN"]


def test_nothing_leads_out_of_shutdown() -> None:
    assert not [key for key in TABLE if key[0] is RunState.SHUTDOWN]


def test_every_living_state_can_end() -> None:
    for state in RunState:
        assert advance(state, Trigger.ENDED).state is RunState.SHUTDOWN


@pytest.mark.parametrize("state", [RunState.PRELAUNCH, RunState.SHUTDOWN, RunState.GUEST_PANICKED])
def test_operation_in_a_state_without_running_vm_is_refused(state: RunState) -> None:
    with pytest.raises(StateError, match=f"stop .*{state}"):
        require_operable(state, "stop")
