"""Averages of a run's tail, its best state, and the choice between them."""

import json
import math

import numpy as np
import pytest
import torch

from pyro_flows import errors
from pyro_flows.infer.training.averaging import BestState, TailAverage, choose

NAN, INF = math.nan, math.inf


def states(num, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(5, generator=generator).to(dtype), torch.randn(2, 3, generator=generator)]
        for _ in range(num)
    ]


def averaged(sequence):
    average = TailAverage()
    for tensors in sequence:
        average.update(tensors)
    return average


def same(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_is_the_mean(dtype):
    sequence = states(37, dtype=dtype)
    for k, mean in enumerate(averaged(sequence).tensors()):
        assert mean.dtype == sequence[0][k].dtype
        expected = torch.stack([tensors[k] for tensors in sequence]).double().mean(0)
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_average_of_many_large_and_equal_numbers_does_not_drift():
    value = torch.tensor([1e30, -16777217.0, 0.1])
    assert torch.equal(averaged([[value]] * 5000).tensors()[0], value)


def test_average_keeps_off_the_tensors_it_is_given_and_gives():
    live = torch.ones(2, requires_grad=True)
    average = averaged([[live]])
    with torch.no_grad():
        live.add_(5)
    average.tensors()[0].add_(7)
    assert torch.equal(average.tensors()[0], torch.ones(2))
    assert not average.tensors()[0].requires_grad


def test_average_of_a_noisy_quadratic_beats_its_last_iterate():
    generator = torch.Generator().manual_seed(0)
    x, average = torch.full((50,), 3.0), TailAverage()
    for step in range(2000):
        x = x - 0.1 * (x + torch.randn(50, generator=generator))
        if step >= 1400:
            average.update([x])
    assert average.tensors()[0].square().mean() < 0.1 * x.square().mean()


def test_average_refuses_another_shape():
    average = averaged(states(2))
    for tensors in ([torch.ones(5)], [torch.ones(5), torch.ones(3, 2)]):
        with pytest.raises(errors.ShapeError, match=r"TailAverage: .*\(5,\), \(2, 3\)"):
            average.update(tensors)


def test_average_continues_bit_for_bit():
    """FAULTS 69."""
    sequence = states(23)
    whole, first, second = averaged(sequence), averaged(sequence[:9]), TailAverage()
    second.restore(first.tensors(), json.loads(json.dumps(first.record())))
    for tensors in sequence[9:]:
        second.update(tensors)
    assert second.count == whole.count == 23
    assert same(second.tensors(), whole.tensors())


def run(losses, window=100, best=None, begin=0):
    """Feed losses one by one; the state of step k is [k]."""
    best = best or BestState(window)
    for step in range(begin, len(losses)):
        best.update(losses[: step + 1], [torch.tensor([float(step + 1)])])
    return best


def noisy(level, seed=0, scale=1.0):
    return list(level + scale * np.random.default_rng(seed).standard_normal(len(level)))


def test_best_is_kept_while_the_loss_rises():
    level = np.concatenate([np.linspace(50, 0, 1000), np.linspace(0, 80, 1000)])
    best = run(noisy(level))
    assert 950 <= best.step <= 1030
    assert torch.equal(best.tensors()[0], torch.tensor([float(best.step)]))


def test_best_is_the_last_of_a_descent():
    assert run(noisy(np.linspace(50, 0, 1000))).step == 1000


def test_best_is_not_copied_after_a_sudden_rise():
    """A mean over the whole window would still be low when the state is lost already."""
    level = np.concatenate([np.linspace(50, 0, 1000), np.full(400, 30.0)])
    level[985:] += 100
    assert run(noisy(level)).step <= 985


def test_a_few_heavy_losses_do_not_hide_the_best():
    rng = np.random.default_rng(1)
    losses = np.linspace(20, 0, 2000) + rng.standard_normal(2000)
    losses[rng.random(2000) < 0.03] += 1e6
    assert run(list(losses)).step >= 1900


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_losses_neither_become_nor_block_the_best(bad):
    """FAULTS 62."""
    losses = noisy(np.linspace(20, 0, 600))
    losses[:130] = [bad] * 130
    losses[300:330] = [bad] * 30
    assert run(losses[:130]).tensors() == []
    best = run(losses)
    assert best.step == 600
    assert math.isfinite(best.loss)
    after = run([*losses, *[bad] * 300])
    assert (after.step, after.loss) == (600, best.loss)


def test_a_window_with_hardly_a_finite_loss_is_no_best():
    losses = noisy(np.full(300, 5.0))
    losses += [-100.0 if step % 20 == 0 else NAN for step in range(200)]
    assert run(losses).step <= 300


def test_state_is_looked_at_four_times_a_window_at_most():
    copied = []

    class Watched(torch.Tensor):
        def detach(self):
            copied.append(1)
            return torch.ones(1)

    best, losses = BestState(40), []
    for step in range(200):
        losses.append(-float(step))
        best.update(losses, [torch.ones(1).as_subclass(Watched)])
    assert len(copied) == 20


def test_best_continues_bit_for_bit():
    """FAULTS 69."""
    level = np.concatenate([np.linspace(9, 0, 500), np.linspace(0, 5, 300)])
    losses = noisy(level)
    whole, first = run(losses), run(losses[:333])
    second = BestState()
    second.restore(first.tensors(), json.loads(json.dumps(first.record())))
    assert (second.step, second.loss) == (first.step, first.loss)
    run(losses, best=second, begin=333)
    assert (second.step, second.loss) == (whole.step, whole.loss)
    assert same(second.tensors(), whole.tensors())


def test_nothing_yet_goes_round_as_well():
    for make in (TailAverage, BestState):
        empty = make()
        assert empty.tensors() == []
        other = make()
        other.restore([], json.loads(json.dumps(empty.record())))
        assert other.record() == empty.record()


@pytest.mark.parametrize(
    ("make", "tensors", "record"),
    [
        (TailAverage, [], {"count": 3}),
        (TailAverage, [torch.ones(1)], {"count": 0}),
        (TailAverage, [torch.ones(1)], {}),
        (TailAverage, [torch.ones(1)], {"count": -1}),
        (BestState, [torch.ones(1)], {"count": 3}),
        (BestState, [torch.ones(1)], {"step": 3, "loss": None}),
        (BestState, [], {"step": 0, "loss": 1.0}),
        (BestState, [torch.ones(1)], {"step": 3, "loss": NAN}),
    ],
)
def test_a_record_that_does_not_go_with_its_tensors_is_refused(make, tensors, record):
    """FAULTS 71."""
    with pytest.raises(errors.CheckpointError, match="goes with the tensors; got"):
        make().restore(tensors, record)


@pytest.mark.parametrize("window", [0, 3, 2.5, True])
def test_window_is_checked(window):
    with pytest.raises(errors.DomainError, match="BestState: expected window"):
        BestState(window)


def test_highest_score_is_choose():
    assert choose({"a": (1.0, 0.1), "b": (3.0, 9.0), "c": (2.0, 0.1)}) == "b"


def test_ties_go_to_the_earlier():
    scores = {"a": (1.0, 0.1), "b": (1.0009, 0.1), "c": (1.0018, 0.1)}
    assert choose(scores) == "b"
    assert choose(scores, tolerance=0.0) == "c"
    assert choose(scores, tolerance=0.01) == "a"
    assert choose({"a": (2.0, 0.1), "b": (2.0, 0.1)}, tolerance=0.0) == "a"


@pytest.mark.parametrize("bad", [(NAN, 0.1), (INF, 0.1), (-INF, NAN), (9.0, NAN), (9.0, INF)])
def test_a_score_that_is_not_finite_loses(bad):
    """FAULTS 62."""
    assert choose({"a": bad, "b": (-1e30, 0.1), "c": bad}) == "b"
    assert choose({"a": bad, "b": bad}) == "a"


def test_a_choice_needs_candidates_and_a_tolerance():
    with pytest.raises(errors.DomainError, match="at least one candidate; got none"):
        choose({})
    with pytest.raises(errors.DomainError, match="expected tolerance"):
        choose({"a": (0.0, 0.0)}, tolerance=-1.0)
