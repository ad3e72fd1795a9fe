"""FlowDensity from one seed, in new processes, on more threads; and the best of several starts."""

import json
import logging
import math

import faults
import numpy as np
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import FlowDensity, estimator

X = np.random.default_rng(0).normal(size=(300, 3)) * [3.0, 20.0, 0.1] + [100.0, -7.0, 1.0]


def permuted(input_dim, *, context_dim=0):
    """A recipe that draws permutations and rotations at construction."""
    parts = []
    for _ in range(3):
        parts += [
            pf.transforms.AffineCoupling(input_dim, context_dim=context_dim),
            pf.transforms.Permute(torch.randperm(input_dim)),
        ]
    return pf.Flow(parts)


def fast(**options):
    return FlowDensity(**{"flow": permuted, "epochs": 2, "engine": "eager", **options})


def permutations(density):
    state = density.flow_.state_dict()
    return [value.tolist() for name, value in state.items() if "perm" in name]


def test_permutations_follow_the_seed_alone_whatever_is_built_before():
    """FAULTS 75: the order in which estimators are fitted is swapped."""
    torch.manual_seed(1)
    first = {seed: fast(random_state=seed).fit(X) for seed in (3, 4)}
    torch.manual_seed(2)
    torch.randperm(5)
    second = {seed: fast(random_state=seed).fit(X) for seed in (4, 3)}
    for seed in (3, 4):
        ours, theirs = first[seed], second[seed]
        assert permutations(ours) == permutations(theirs)
        np.testing.assert_array_equal(ours.score_samples(X), theirs.score_samples(X))
    assert permutations(first[3]) != permutations(first[4])


def test_permutations_are_recorded_in_the_state():
    """FAULTS 75: a flow that is built anew from another random state takes them over."""
    density = fast(random_state=3).fit(X)
    other = fast(random_state=4).fit(X)
    other.flow_.load_state_dict(density.flow_.state_dict())
    np.testing.assert_array_equal(other.score_samples(X), density.score_samples(X))
    assert permutations(other) == permutations(density)


SCRIPT = """
import json, sys
import numpy as np, torch
from test_density_repeatable import X, fast
torch.set_num_threads(int(sys.argv[1]))
def fit():
    density = fast(random_state=5, num_starts=2, standardise="robust").fit(X, context=X[:, :1])
    scores = density.score_samples(X[:20], context=X[:20, :1])
    draws = density.sample(context=X[:5, :1], random_state=1)
    result = density.result_
    numbers = [*result.losses, *result.validation, result.nll, *scores, *draws.flatten()]
    return [float(number).hex() for number in numbers]
first = fit()
assert fit() == first
print(json.dumps(first))
"""


def test_same_seed_gives_the_same_fit_in_new_processes_and_with_more_threads():
    """FAULTS 74: twice in each of two processes, on one thread and on two."""
    one, two = (faults.run_script(SCRIPT, threads) for threads in (1, 2))
    assert len(json.loads(one)) == 2 + 2 + 1 + 20 + 15
    assert one == two


@pytest.fixture
def starts(monkeypatch):
    """Return the flows and results of all starts, as they are fitted."""
    seen = []

    def recorded(flow, *args, **options):
        result = original(flow, *args, **options)
        seen.append((flow, result, options["validation"]))
        return result

    original = estimator.fit_mle
    monkeypatch.setattr(estimator, "fit_mle", recorded)
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_start_of_the_highest_held_out_likelihood_is_kept(seed, starts):
    """Scored anew on those rows, which are the same for all of them."""
    density = fast(random_state=seed, num_starts=4, epochs=1, lr=0.02).fit(X)
    assert len(starts) == 4
    rows = starts[0][2]
    assert all(torch.equal(rows, its) for _, _, its in starts)
    scores = [float(flow.log_prob(rows).mean().detach()) for flow, _, _ in starts]
    best = int(np.argmax(scores))
    assert len(set(scores)) == 4
    assert density.flow_ is starts[best][0]
    assert density.result_ is starts[best][1]
    assert -density.result_.nll == pytest.approx(scores[best], rel=1e-5)


def failing(fails):
    """Return a recipe whose flows fail where asked to, in the order in which they are built."""
    left = list(fails)

    class Failing(pf.transforms.ElementwiseAffine):
        bad = 1.0

        def _inverse_and_ladj(self, y, context):
            x, ladj = super()._inverse_and_ladj(y, context)
            return x, ladj * self.bad

    def recipe(input_dim, *, context_dim=0):
        transform = Failing(input_dim)
        transform.bad = math.nan if left.pop(0) else 1.0
        return pf.Flow(transform)

    return recipe


@pytest.mark.parametrize("fails", [(True, False, True), (False, True, True)])
def test_start_that_fails_does_not_lose_the_others(fails, caplog):
    """FAULTS 62: whichever it is, and each is told of."""
    caplog.set_level(logging.WARNING, logger="pyro_flows")
    density = fast(flow=failing(fails), random_state=0, num_starts=3).fit(X)
    assert math.isfinite(density.score(X))
    told = [r.getMessage() for r in caplog.records if "of 3 failed" in r.getMessage()]
    assert len(told) == 2


def test_starts_that_all_fail_raise():
    with pytest.raises(pf.NonFiniteError, match="steps in a row without"):
        fast(flow=failing([True, True]), random_state=0, num_starts=2).fit(X)


def test_held_out_likelihood_that_is_infinite_is_never_the_best():
    """FAULTS 62: neither NaN nor plus infinity."""

    class Runaway(pf.Flow):
        scored = 0

        def log_prob(self, value):
            score = super().log_prob(value)
            if self.training:
                return score
            Runaway.scored += 1
            return score + (math.inf if Runaway.scored == 2 else 0.0)

    flow = Runaway(pf.transforms.ElementwiseAffine(3))
    data = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    options = {"epochs": 5, "engine": "eager", "progress": False, "seed": 0}
    result = pf.density.fit_mle(flow, data, **options)
    assert np.isinf(result.validation).tolist() == [k == 1 for k in range(5)]
    assert math.isfinite(result.nll)


def stopped(monkeypatch, step):
    """Let the next fit end after a step, as if its process had been."""

    def stops(*args, **options):
        monkeypatch.setattr(estimator, "fit_mle", original)
        return original(*args, callbacks=[lambda info: info.step == step], **options)

    original = estimator.fit_mle
    monkeypatch.setattr(estimator, "fit_mle", stops)


def test_fit_in_two_parts_is_the_fit_in_one(tmp_path, monkeypatch):
    """FAULTS 69: rows, scales and permutations of a second estimator are those of the first."""
    options = {"epochs": 6, "random_state": 0, "batch_size": 50}
    rows, context = X[:, :2], X[:, 2:]
    whole = fast(**options).fit(rows, context=context)
    stopped(monkeypatch, 8)
    part = fast(**options).fit(rows, context=context, checkpoint=tmp_path / "run")
    assert part.result_.steps == 8
    torch.randperm(3)
    saving = {"checkpoint": tmp_path / "run", "resume": True}
    resumed = fast(**options).fit(rows, context=context, **saving)
    np.testing.assert_array_equal(resumed.result_.losses, whole.result_.losses)
    ours, theirs = (each.score_samples(rows, context=context) for each in (resumed, whole))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(pf.errors.CheckpointError, match="data='"):
        fast(**{**options, "random_state": 1}).fit(rows, context=context, **saving)


@pytest.mark.parametrize("options", [{"num_starts": 2, "random_state": 0}, {}])
def test_fit_that_could_not_be_repeated_is_not_saved(options, tmp_path):
    """FAULTS 69."""
    with pytest.raises(pf.DomainError, match="one start, and a count as random_state"):
        fast(**options).fit(X, checkpoint=tmp_path / "run")
