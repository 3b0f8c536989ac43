"""The table of moves."""

from services.core.model import states
from services.core.model.states import ImageState, JobState


def test_no_move_leaves_a_final_state():
    assert {ImageState.DONE, ImageState.FAILED, ImageState.CANCELLED} == states.FINAL_IMAGE_STATES
    assert {"completed", "failed", "cancelled", "expired"} == {state.value for state in states.FINAL_JOB_STATES}


def test_every_state_can_be_reached_and_every_state_that_is_not_final_can_end():
    reached = {target for moves in states.JOB_MOVES.values() for target in moves}
    assert set(JobState) - reached == {JobState.DRAFT, JobState.VALIDATING}
    for start in JobState:
        seen, todo = set(), {start}
        while todo:
            state = todo.pop()
            seen.add(state)
            todo |= states.JOB_MOVES[state] - seen
        assert seen & states.FINAL_JOB_STATES


def test_sources_are_the_states_from_which_a_move_is_allowed():
    assert states.FINISH_STOPPED.guard == ["cancelling"]
    assert states.STOP.guard == ["draft", "in_progress", "queued", "validating"]
    for state, targets in states.JOB_MOVES.items():
        assert targets == {target for move in states.JOB_VERBS if state.value in move.guard for target in move.targets}
