"""The whole state table, pair by pair."""

from __future__ import annotations

import itertools

import pytest

from shim.errors import NotFoundError, StateError, WrongStateError
from shim.states import Action, State, next_state

pytestmark = pytest.mark.unit

S, A = State, Action

INIT = {
    (S.CREATED, A.START): S.STARTING,
    (S.CREATED, A.EXIT): S.STOPPED,
    (S.CREATED, A.KILL): S.CREATED,
    (S.CREATED, A.DELETE): S.DELETED,
    (S.CREATED, A.UPDATE): S.CREATED,
    (S.STARTING, A.STARTED): S.RUNNING,
    (S.STARTING, A.START_FAILED): S.STOPPED,
    (S.STARTING, A.EXIT): S.STOPPED,
    (S.STARTING, A.KILL): S.STARTING,
    (S.RUNNING, A.PAUSE): S.PAUSED,
    (S.RUNNING, A.EXIT): S.STOPPED,
    (S.RUNNING, A.KILL): S.RUNNING,
    (S.RUNNING, A.EXEC): S.RUNNING,
    (S.RUNNING, A.UPDATE): S.RUNNING,
    (S.PAUSED, A.RESUME): S.RUNNING,
    (S.PAUSED, A.EXIT): S.STOPPED,
    (S.PAUSED, A.KILL): S.PAUSED,
    (S.PAUSED, A.UPDATE): S.PAUSED,
    (S.STOPPED, A.DELETE): S.DELETED,
}
EXEC = {
    (S.CREATED, A.START): S.STARTING,
    (S.CREATED, A.EXIT): S.STOPPED,
    (S.CREATED, A.DELETE): S.DELETED,
    (S.STARTING, A.STARTED): S.RUNNING,
    (S.STARTING, A.START_FAILED): S.STOPPED,
    (S.STARTING, A.EXIT): S.STOPPED,
    (S.STARTING, A.KILL): S.STARTING,
    (S.RUNNING, A.EXIT): S.STOPPED,
    (S.RUNNING, A.KILL): S.RUNNING,
    (S.STOPPED, A.DELETE): S.DELETED,
}
PAIRS = list(itertools.product(State, Action))


def refusal(state: State, action: Action, *, is_exec: bool) -> type[Exception]:
    if action is A.KILL:
        return NotFoundError if state in (S.STOPPED, S.DELETED) else StateError
    return StateError if action is A.EXEC and not is_exec else WrongStateError


@pytest.mark.parametrize("is_exec", [False, True], ids=["init", "exec"])
def test_table_possible_actions_lead_where_they_should(is_exec: bool) -> None:
    wanted = EXEC if is_exec else INIT

    reached = {pair: next_state(*pair, is_exec=is_exec, name="p") for pair in wanted}

    assert reached == wanted


@pytest.mark.parametrize("is_exec", [False, True], ids=["init", "exec"])
def test_table_every_other_action_is_refused_with_its_error(is_exec: bool) -> None:
    impossible = [pair for pair in PAIRS if pair not in (EXEC if is_exec else INIT)]

    assert len(impossible) == len(PAIRS) - len(EXEC if is_exec else INIT)
    for state, action in impossible:
        with pytest.raises(refusal(state, action, is_exec=is_exec)) as caught:
            next_state(state, action, is_exec=is_exec, name="c1/e1")
        assert "c1/e1" in str(caught.value)
