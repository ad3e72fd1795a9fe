"""The step size over a run: its shape, an early end, and its state."""

import itertools
import json
import math

import pytest

from pyro_flows import errors
from pyro_flows.infer.training.schedule import Schedule


def factors(schedule):
    return [schedule.factor(step) for step in range(schedule.steps)]


def test_warm_up_is_linear_then_constant_then_decays_over_the_last_thirty_percent():
    schedule = Schedule(1000)
    values = factors(schedule)
    assert values[:50] == pytest.approx([(step + 1) / 51 for step in range(50)])
    assert set(values[50:700]) == {1.0}
    assert all(later < earlier for earlier, later in itertools.pairwise(values[699:]))
    assert [schedule.decaying(step) for step in (0, 699, 700, 999)] == [False, False, True, True]
    assert sum(values[700:]) == pytest.approx(150, abs=1)


@pytest.mark.parametrize("steps", [*range(1, 30), 97, 1000, 6001])
def test_every_step_of_a_run_moves_and_the_last_hardly(steps):
    schedule = Schedule(steps)
    values = factors(schedule)
    assert all(0 < value <= 1 for value in values)
    assert schedule.factor(steps) == schedule.factor(steps + 10) == 0
    assert steps - schedule.begin == math.floor(0.3 * steps + 1e-9)
    assert steps < 100 or values[-1] < 0.05


def test_shortest_runs():
    assert factors(Schedule(1)) == [1.0]
    assert factors(Schedule(3)) == [1.0, 1.0, 1.0]
    assert factors(Schedule(4)) == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_warm_up_takes_a_quarter_of_the_run_at_most_and_can_be_left_out():
    assert [Schedule(40).factor(step) for step in (8, 9, 10)] == pytest.approx(
        [9 / 11, 10 / 11, 1]
    )
    assert Schedule(1000, warm_up=0).factor(0) == 1
    assert Schedule(1000, warm_up=9).factor(0) == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97, 200])
def test_an_early_decay_is_thirty_percent_of_the_run_that_then_ends(steps):
    for step in range(steps):
        schedule = Schedule(steps)
        planned = schedule.begin
        schedule.decay_from(step)
        values = factors(schedule)
        if step >= planned:
            assert (schedule.begin, schedule.steps) == (planned, steps)
            continue
        assert schedule.begin == step
        assert schedule.steps == min(steps, max(math.ceil(step / 0.7 - 1e-9), 1))
        assert schedule.decaying(step)
        assert not schedule.decaying(step - 1)
        assert values[step:] == sorted(values[step:], reverse=True)
        assert all(0 < value <= 1 for value in values)
        assert schedule.factor(schedule.steps) == 0


def test_a_decay_begins_once():
    schedule = Schedule(1000)
    schedule.decay_from(350)
    before = schedule.state_dict()
    schedule.decay_from(400)
    assert schedule.state_dict() == before


def test_a_decay_within_the_warm_up_goes_down_from_there():
    schedule = Schedule(1000)
    schedule.decay_from(20)
    assert schedule.factor(20) == max(map(schedule.factor, range(20, 30)))
    assert schedule.factor(20) == pytest.approx(21 / 51 * 9 / 10)
    assert schedule.factor(24) == pytest.approx(21 / 51 * 5 / 10)


@pytest.mark.parametrize("early", [False, True])
def test_state_goes_through_json_exactly(early):
    """FAULTS 69."""
    schedule, other = Schedule(987, warm_up=13), Schedule(5)
    if early:
        schedule.decay_from(321)
    other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert factors(other) == factors(schedule)
    assert other.state_dict() == schedule.state_dict()
    other.decay_from(500)
    schedule.decay_from(500)
    assert factors(other) == factors(schedule)


@pytest.mark.parametrize(
    "change", [{"begin": 1001}, {"begin": -1}, {"steps": 2000}, {"steps": 3.5}, {"other": 1}]
)
def test_a_foreign_state_is_refused_and_changes_nothing(change):
    """FAULTS 71."""
    schedule = Schedule(1000)
    before = schedule.state_dict()
    with pytest.raises(errors.CheckpointError, match="expected a state with the counts"):
        schedule.load_state_dict({**before, **change})
    assert schedule.state_dict() == before
    with pytest.raises(errors.CheckpointError, match="expected a state"):
        schedule.load_state_dict({})


@pytest.mark.parametrize("arguments", [(0,), (-1,), (1.5,), (True,), (10, -1), (10, 0.5)])
def test_counts_are_checked(arguments):
    """FAULTS 64."""
    with pytest.raises(errors.DomainError, match="Schedule: expected"):
        Schedule(*arguments)


@pytest.mark.parametrize("step", [-1, 1.5, None])
def test_the_step_of_a_decay_is_checked(step):
    with pytest.raises(errors.DomainError, match="expected step to be an integer >= 0"):
        Schedule(10).decay_from(step)
