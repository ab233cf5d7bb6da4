"""The life of a process as a table; no I/O, no process.

Every change of state in the shim goes through `next_state`. An init process and an exec differ in two
rows only: pausing belongs to the container, so only init has it.
"""

from __future__ import annotations

from enum import Enum

from .errors import NotFoundError, ShimError, StateError, WrongStateError


class State(Enum):
    """State of a container's init or of an exec."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Action(Enum):
    """What can happen to a process."""

    START = "start"
    STARTED = "started"
    START_FAILED = "fail to start"
    PAUSE = "pause"
    RESUME = "resume"
    EXIT = "exit"
    DELETE = "delete"
    KILL = "kill"
    EXEC = "exec into"
    UPDATE = "update"


_INIT: dict[tuple[State, Action], State] = {
    (State.CREATED, Action.START): State.STARTING,
    (State.CREATED, Action.EXIT): State.STOPPED,  # killed before it was started
    (State.CREATED, Action.KILL): State.CREATED,
    (State.CREATED, Action.DELETE): State.DELETED,
    (State.CREATED, Action.UPDATE): State.CREATED,
    (State.STARTING, Action.STARTED): State.RUNNING,
    (State.STARTING, Action.START_FAILED): State.STOPPED,
    (State.STARTING, Action.EXIT): State.STOPPED,
    (State.STARTING, Action.KILL): State.STARTING,
    (State.RUNNING, Action.PAUSE): State.PAUSED,
    (State.RUNNING, Action.EXIT): State.STOPPED,
    (State.RUNNING, Action.KILL): State.RUNNING,
    (State.RUNNING, Action.EXEC): State.RUNNING,
    (State.RUNNING, Action.UPDATE): State.RUNNING,
    (State.PAUSED, Action.RESUME): State.RUNNING,
    (State.PAUSED, Action.EXIT): State.STOPPED,
    (State.PAUSED, Action.KILL): State.PAUSED,
    (State.PAUSED, Action.UPDATE): State.PAUSED,
    (State.STOPPED, Action.DELETE): State.DELETED,
}

_EXEC: dict[tuple[State, Action], State] = {
    (State.CREATED, Action.START): State.STARTING,
    (State.CREATED, Action.EXIT): State.STOPPED,  # the container went away first
    (State.CREATED, Action.DELETE): State.DELETED,
    (State.STARTING, Action.STARTED): State.RUNNING,
    (State.STARTING, Action.START_FAILED): State.STOPPED,
    (State.STARTING, Action.EXIT): State.STOPPED,
    (State.STARTING, Action.KILL): State.STARTING,
    (State.RUNNING, Action.EXIT): State.STOPPED,
    (State.RUNNING, Action.KILL): State.RUNNING,
    (State.STOPPED, Action.DELETE): State.DELETED,
}


def next_state(state: State, action: Action, *, is_exec: bool, name: str) -> State:
    """The state after *action* happened to process *name* in *state*.

    Raises what containerd's reference shim answers for an impossible action: NotFoundError for a kill of
    a process that has ended, StateError (FailedPrecondition) for a kill of an exec that was not started
    and for an exec into a container that is not running, WrongStateError (Unknown) for the rest.
    """
    after = (_EXEC if is_exec else _INIT).get((state, action))
    if after is None:
        raise _refusal(state, action, is_exec=is_exec, name=name)
    return after


def _refusal(state: State, action: Action, *, is_exec: bool, name: str) -> ShimError:
    kind = "exec" if is_exec else "container"
    if action is Action.KILL and state in (State.STOPPED, State.DELETED):
        return NotFoundError(f"Process of {kind} {name} already finished")
    text = f"Cannot {action.value} {kind} {name}: it is {state.value}"
    if action is Action.KILL or (action is Action.EXEC and not is_exec):
        return StateError(text)
    return WrongStateError(text)
