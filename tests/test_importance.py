"""pareto_k against closed forms; and what weights it refuses, or will not put a number on."""

import math

import numpy as np
import pytest
import torch

from pyro_flows.errors import NonFiniteError
from pyro_flows.infer import pareto_k

DRAWS = 40_000


def generalised_pareto(k, num=DRAWS, seed=0):
    """Return log-weights whose weights have the shape ``k``, above any threshold."""
    uniform = np.random.default_rng(seed).uniform(size=num)
    return np.log(np.expm1(-k * np.log(uniform)) / k)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("k", [-0.3, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_shape_of_generalised_pareto_weights(k, seed):
    """Within four standard errors of the maximum-likelihood shape, and PSIS's shrinkage to 1/2."""
    tail = 3 * math.sqrt(DRAWS)
    error = 4 * (1 + k) / math.sqrt(tail) + abs(k - 0.5) * 10 / tail
    assert pareto_k(generalised_pareto(k, seed=seed)) == pytest.approx(k, abs=error)


@pytest.mark.parametrize("variance", [0.3, 0.5, 0.7])
def test_shape_of_gaussian_weights(variance):
    """A guide N(0, v) of the posterior N(0, 1) has weights of the shape 1 - v, in the limit."""
    x = np.random.default_rng(0).normal(scale=math.sqrt(variance), size=DRAWS)
    assert pareto_k(x**2 / (2 * variance) - x**2 / 2) == pytest.approx(1 - variance, abs=0.2)


def test_sign_heavy_weights_are_bad_and_their_inverses_are_not():
    """A large shape belongs to large weights: ArviZ 1.x takes the negative."""
    log_weights = generalised_pareto(1.2)
    assert pareto_k(log_weights) > 1.0
    assert pareto_k(-log_weights) < 1.2
    # Here the inverses are bounded.
    log_weights = np.random.default_rng(0).exponential(size=DRAWS)
    assert pareto_k(log_weights) == pytest.approx(1.0, abs=0.3)
    assert pareto_k(-log_weights) < 0


def test_only_ratios_matter():
    log_weights = generalised_pareto(0.6)
    expected = pareto_k(log_weights)
    assert pareto_k(log_weights + 1000.0) == pytest.approx(expected, abs=1e-6)
    assert pareto_k(log_weights[::-1]) == pytest.approx(expected, abs=1e-9)
    tensor = torch.from_numpy(log_weights.copy()).requires_grad_()
    assert pareto_k(tensor) == expected
    assert pareto_k(tensor[None]) == expected
    assert pareto_k(tensor.float()) == pytest.approx(expected, abs=1e-3)


def test_it_takes_the_input_and_leaves_it():
    log_weights = generalised_pareto(0.6)
    before = log_weights.copy()
    pareto_k(log_weights)
    assert np.array_equal(log_weights, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_nan_and_infinite_weights_are_refused_with_their_count(bad, count, kind):
    """FAULTS 87: one of them would spoil every weight."""
    log_weights = generalised_pareto(0.5, num=1000)
    log_weights[:count] = bad
    says = f"pareto_k: expected log-weights .*; got {count} of 1000 that are NaN or infinite"
    with pytest.raises(NonFiniteError, match=says):
        pareto_k(kind(log_weights))


def test_weights_of_zero_are_allowed():
    """FAULTS 87: minus infinity is a draw outside of the posterior's support."""
    log_weights = generalised_pareto(0.7)
    log_weights[: DRAWS // 10] = -math.inf
    assert pareto_k(log_weights) == pytest.approx(0.7, abs=0.3)
    assert math.isnan(pareto_k(np.full(1000, -math.inf)))


@pytest.mark.parametrize("num", [0, 1, 10, 24])
def test_too_few_draws_give_no_number(num):
    """FAULTS 88: a tail of up to four points says nothing."""
    assert math.isnan(pareto_k(generalised_pareto(0.5, num=num)))


def test_enough_draws_give_a_number():
    """FAULTS 88: the least tail is of five points."""
    assert math.isfinite(pareto_k(generalised_pareto(0.5, num=25)))


TIES = {
    "all": np.zeros(1000),
    "all but one": np.r_[np.zeros(999), 1.0],
    "the tail": np.r_[np.linspace(-5.0, -1.0, 800), np.zeros(200)],
    "all but five": np.r_[np.full(995, -math.inf), np.arange(5.0)],
    "of two values": np.r_[np.zeros(500), np.ones(500)],
}


@pytest.mark.parametrize("log_weights", TIES.values(), ids=TIES)
def test_ties_give_no_number(log_weights):
    """FAULTS 88: a tail of equal weights has no shape."""
    assert math.isnan(pareto_k(log_weights))
