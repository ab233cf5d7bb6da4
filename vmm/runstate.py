"""The VM state table. All transitions live here; this file knows neither engines nor sockets.

A trigger is what an engine has observed (not what a client has asked for). `advance` gives the next state
and the QMP events that the transition causes; a trigger that means nothing in a state changes nothing and
announces nothing, which is how STOP and RESUME come exactly once.
"""

from enum import Enum, StrEnum

from .errors import StateError
from .record import record


class RunState(StrEnum):
    """States, with the names of QEMU's RunState."""

    PRELAUNCH = "prelaunch"
    """Assembled or being assembled; no vCPU has run."""
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    """The guest has ended, or was ended; nothing follows."""
    GUEST_PANICKED = "guest-panicked"
    """The guest's kernel has panicked; nothing follows but SHUTDOWN."""


class Trigger(Enum):
    """What an engine observes."""

    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    RESET = "reset"
    POWERDOWN = "powerdown"
    PANICKED = "panicked"
    CRASH_LOADED = "crash-loaded"
    """The guest's kernel panicked and its crash kernel takes over."""
    ENDED = "ended"


@record(frozen=True)
class Transition:
    """The state to go to and the names of the events to announce, in order."""

    state: RunState
    events: tuple[str, ...] = ()


_R = RunState
_T = Trigger

TABLE: dict[tuple[RunState, Trigger], Transition] = {
    (_R.PRELAUNCH, _T.STARTED): Transition(_R.RUNNING),
    (_R.PRELAUNCH, _T.PANICKED): Transition(_R.GUEST_PANICKED, ("GUEST_PANICKED",)),
    (_R.PRELAUNCH, _T.ENDED): Transition(_R.SHUTDOWN, ("SHUTDOWN",)),
    (_R.RUNNING, _T.PAUSED): Transition(_R.PAUSED, ("STOP",)),
    (_R.RUNNING, _T.RESET): Transition(_R.RUNNING, ("RESET",)),
    (_R.RUNNING, _T.POWERDOWN): Transition(_R.RUNNING, ("POWERDOWN",)),
    (_R.RUNNING, _T.PANICKED): Transition(_R.GUEST_PANICKED, ("GUEST_PANICKED",)),
    (_R.RUNNING, _T.CRASH_LOADED): Transition(_R.RUNNING, ("GUEST_CRASHLOADED",)),
    (_R.RUNNING, _T.ENDED): Transition(_R.SHUTDOWN, ("SHUTDOWN",)),
    (_R.PAUSED, _T.RESUMED): Transition(_R.RUNNING, ("RESUME",)),
    (_R.PAUSED, _T.RESET): Transition(_R.PAUSED, ("RESET",)),
    (_R.PAUSED, _T.POWERDOWN): Transition(_R.PAUSED, ("POWERDOWN",)),
    # pvpanic may be written just before the pause that we then see first
    (_R.PAUSED, _T.PANICKED): Transition(_R.GUEST_PANICKED, ("GUEST_PANICKED",)),
    (_R.PAUSED, _T.CRASH_LOADED): Transition(_R.PAUSED, ("GUEST_CRASHLOADED",)),
    (_R.PAUSED, _T.ENDED): Transition(_R.SHUTDOWN, ("SHUTDOWN",)),
    (_R.GUEST_PANICKED, _T.ENDED): Transition(_R.SHUTDOWN, ("SHUTDOWN",)),
}

_OPERABLE = frozenset({RunState.RUNNING, RunState.PAUSED})


def advance(state: RunState, trigger: Trigger) -> Transition:
    """Return what the trigger causes; the same state without events where it means nothing."""
    return TABLE.get((state, trigger), Transition(state))


def require_operable(state: RunState, operation: str) -> None:
    """Raise StateError unless the VM runs or is paused."""
    if state not in _OPERABLE:
        raise StateError(f"Operation {operation} needs a VM that runs or is paused; this one is {state}")
