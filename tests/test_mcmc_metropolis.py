"""Independence Metropolis-Hastings: exact posteriors, exact proposals, and weights of zero."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chains import (
    LARGEST_Z,
    above,
    constrained_guide,
    in_support,
    largest_z,
    left_alone,
    log_p_of,
    standard_normal,
)
from models import (
    constrained_model,
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_model,
    regression_posterior,
    single_draw_regression_model,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value

import pyro_flows as pf
from pyro_flows.infer.mcmc import independence_metropolis
from pyro_flows.infer.mcmc.metropolis import walk


def normal_guide(y, *, shift=0.0, factor=1.0):
    """Return a guide of the normal model: its posterior, moved and scaled."""
    mean, sd, _ = normal_posterior(y)

    def guide(y):
        pyro.sample("mu", dist.Normal(y.new_tensor(mean + shift * sd), factor * sd))

    return guide


def draws_of(model, guide, *args, **options):
    return independence_metropolis(model, guide, *args, **{"seed": 0, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_proposal_is_always_accepted(dtype):
    y = normal_data(dtype=dtype)
    draws = draws_of(normal_model, normal_guide(y), y)
    assert draws.stats["accepted"].double().mean() > (
        0.999 if dtype == torch.float32 else 1 - 1e-9
    )
    evidence = draws.stats["log_p"] - draws.stats["log_q"]
    torch.testing.assert_close(
        evidence, torch.full_like(evidence, normal_posterior(y)[2]), rtol=1e-5, atol=0
    )
    assert draws.sites["mu"].dtype == dtype
    assert "acceptance rate 1.000" in draws.origin


@pytest.mark.parametrize("factor", [0.8, 3.0], ids=["narrow", "wide"])
def test_wrong_proposals_are_corrected(factor):
    y = normal_data(dtype=torch.float64)
    mean, sd, _ = normal_posterior(y)
    guide = normal_guide(y, shift=0.3, factor=factor)
    draws = draws_of(normal_model, guide, y, num_draws=4000)
    assert largest_z(draws.sites["mu"], mean, sd) < LARGEST_Z
    proposals = mean + sd * (0.3 + factor * torch.randn(4, 4000).double())
    assert largest_z(proposals, mean, sd) > 2 * LARGEST_Z


@pytest.mark.parametrize("model", [regression_model, single_draw_regression_model])
def test_correlated_posterior(model):
    x, y = regression_data()
    mean, covariance, _ = regression_posterior(x, y)
    draws = draws_of(model, ready(model, x, y), x, y)
    assert largest_z(draws.sites["beta"], mean, covariance.diag().sqrt()) < LARGEST_Z
    assert draws.stats["accepted"].double().mean() > 0.5


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_any_guide_proposes(kind):
    y = normal_data()
    mean, sd, _ = normal_posterior(y)
    near = init_to_value(values={"mu": torch.tensor(mean + 0.5 * sd)})
    guide = kind(normal_model, init_loc_fn=near, init_scale=1.5 * sd)
    guide(y)
    draws = draws_of(normal_model, guide, y)
    assert largest_z(draws.sites["mu"], mean, sd) < LARGEST_Z


def by_hand(log_weights, start, steps, log_uniforms):
    """Return a chain's states as the textbook has them, one step after the other."""
    states, weights = [], np.exp(log_weights)
    for proposed, log_uniform in zip(steps, log_uniforms, strict=True):
        ratio = weights[proposed] / weights[start] if weights[start] else float("inf")
        start = proposed if math.exp(log_uniform) < min(1.0, ratio) else start
        states.append(start)
    return states


def test_walk_takes_the_steps_of_the_textbook():
    rng = np.random.default_rng(0)
    log_weights = np.where(rng.random(63) < 0.2, -np.inf, rng.normal(size=63))
    starts, steps = np.array([0, 1, 2]), np.arange(3, 63).reshape(3, 20)
    log_weights[starts] = 0.0
    log_uniforms = np.log(rng.random((3, 20)))
    chains = walk(log_weights, starts, steps, log_uniforms)
    for start, step, log_uniform, states in zip(
        starts, steps, log_uniforms, chains.states, strict=True
    ):
        assert by_hand(log_weights, start, step, log_uniform) == states.tolist()
    assert (chains.accepted == (chains.states == steps)).all()


def test_draws_with_a_density_of_zero_are_never_accepted():
    """FAULTS 87."""
    draws = draws_of(above(0.0), standard_normal, num_draws=4000)
    assert (draws.sites["a"] > 0).all()
    sd = math.sqrt(1 - 2 / math.pi)
    assert largest_z(draws.sites["a"], math.sqrt(2 / math.pi), sd) < LARGEST_Z
    assert 0.4 < draws.stats["accepted"].double().mean() < 0.6


def test_first_states_have_a_density_even_where_none_of_the_warmups_has():
    draws = draws_of(above(1.5), standard_normal, num_draws=200, warmup=1)
    assert (draws.sites["a"] > 1.5).all()


def test_chains_start_where_the_weights_are():
    """The first draws, of many chains, are draws of the posterior already."""
    y = normal_data(dtype=torch.float64)
    mean, sd, _ = normal_posterior(y)
    guide = normal_guide(y, shift=1.0, factor=2.0)
    draws = draws_of(normal_model, guide, y, num_draws=1, num_chains=500)
    assert abs(draws.sites["mu"].mean() - mean) < LARGEST_Z * sd / math.sqrt(500)


def test_low_acceptance_says_what_to_do(caplog):
    y = normal_data()
    draws_of(normal_model, normal_guide(y, factor=50.0), y)
    assert "pf.neutra" in caplog.text
    assert "slowest chain" in caplog.text


def test_constrained_sites_stay_in_their_supports():
    draws = draws_of(constrained_model, constrained_guide(), num_draws=250)
    assert in_support(draws)
    assert draws.sites["real"].shape == (4, 250, 2, 3)
    assert draws.sites["correlation"].shape == (4, 250, 3, 3)


def test_log_p_is_the_models():
    guide = constrained_guide()
    draws = draws_of(constrained_model, guide, num_draws=5, num_chains=2)
    for chain, draw in [(0, 0), (1, 4)]:
        torch.testing.assert_close(
            draws.stats["log_p"][chain, draw], log_p_of(constrained_model, draws, chain, draw)
        )


def test_seeds_repeat_a_run_and_leave_everything_alone():
    y = normal_data()
    guide = ready(normal_model, y)
    guide.train()
    next(guide.parameters()).requires_grad_(False)
    with left_alone(guide):
        first, second = (draws_of(normal_model, guide, y, seed=3) for _ in range(2))
    other = draws_of(normal_model, guide, y, seed=4)
    assert torch.equal(first.sites["mu"], second.sites["mu"])
    assert not torch.equal(first.sites["mu"], other.sites["mu"])
    assert not first.sites["mu"].requires_grad


def nan_above_two():
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("fault", torch.where(a > 2.0, torch.nan, 0.0))


def test_weights_that_are_nan_are_counted():
    """FAULTS 87."""
    with pytest.raises(pf.NonFiniteError, match=r"got \d+ of 4400 that are NaN or plus infinity"):
        draws_of(nan_above_two, standard_normal)


def test_weights_that_are_all_zero_are_refused():
    """FAULTS 87."""
    with pytest.raises(pf.NonFiniteError, match="first states of 4 chains; got 0 of 4400"):
        draws_of(above(9.0), standard_normal)
