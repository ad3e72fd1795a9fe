"""NUTS in a flow's space: exact posteriors, and what a run says and leaves alone."""

import math

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
from fits import affine, guide_for
from models import (
    constrained_model,
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_posterior,
    single_draw_regression_model,
)
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal

import pyro_flows as pf
from benchmarks.posteriors.models import eight_schools_centered
from benchmarks.posteriors.posterior import load, spread
from benchmarks.posteriors.posteriordb import default_root
from pyro_flows.infer.mcmc import neutra


def draws_of(model, guide, *args, **options):
    defaults = {"num_draws": 200, "warmup": 60, "num_chains": 2, "engine": "traced", "seed": 0}
    return neutra(model, guide, *args, progress=False, **{**defaults, **options})


def far_guide(y):
    """Return a guide of the normal model whose mean and sd are wrong."""
    guide = guide_for(normal_model, y, flow=affine)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3)
    return guide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_guide_is_corrected(dtype):
    y = normal_data(dtype=dtype)
    mean, sd, _ = normal_posterior(y)
    guide = far_guide(y)
    draws = draws_of(normal_model, guide, y)
    assert draws.sites["mu"].dtype == dtype
    assert largest_z(draws.sites["mu"], mean, sd) < LARGEST_Z
    assert abs(guide.quantiles([0.5])["mu"].item() - mean) > sd


def test_correlated_posterior():
    """Of a model that does not broadcast."""
    model, (x, y) = single_draw_regression_model, regression_data()
    mean, covariance, _ = regression_posterior(x, y)
    guide = ready(model, x, y, flow=affine)
    draws = draws_of(model, guide, x, y)
    assert largest_z(draws.sites["beta"], mean, covariance.diag().sqrt()) < LARGEST_Z


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoIAFNormal])
def test_guides_of_pyros(kind):
    y = normal_data()
    mean, sd, _ = normal_posterior(y)
    guide = kind(normal_model_of_two)
    guide(y)
    draws = draws_of(normal_model_of_two, guide, y)
    assert draws.sites["mu"].shape == (2, 200, 2)
    assert largest_z(draws.sites["mu"], [mean, mean], [sd, sd]) < LARGEST_Z


def normal_model_of_two(y):
    """The normal model twice, since Pyro's autoregressive flow needs two latents."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y[:, None].expand(-1, 2))


def test_constrained_sites_stay_in_their_supports():
    options = {"num_draws": 10, "warmup": 20, "max_tree_depth": 3}
    draws = draws_of(constrained_model, constrained_guide(), **options)
    assert in_support(draws)
    assert draws.sites["real"].shape == (2, 10, 2, 3)
    for chain, draw in [(0, 0), (1, 9)]:
        torch.testing.assert_close(
            draws.stats["log_p"][chain, draw],
            log_p_of(constrained_model, draws, chain, draw),
            rtol=1e-4,
            atol=1e-4,
        )


def test_stats_and_origin():
    y = normal_data()
    draws = draws_of(normal_model, far_guide(y), y, num_draws=40, max_tree_depth=3)
    assert set(draws.stats) == {"log_p", "diverging", "n_steps", "step_size"}
    assert draws.stats["n_steps"].min() >= 1
    assert draws.stats["n_steps"].max() <= 7
    assert draws.stats["diverging"].dtype == torch.bool
    assert (draws.stats["step_size"].std(1) == 0).all()
    assert "AutoFlow, 2 chains" in draws.origin
    assert "0 divergences" in draws.origin


def test_cut_trees_are_told(caplog):
    y = normal_data()
    draws_of(normal_model, far_guide(y), y, num_draws=20, warmup=20, max_tree_depth=1)
    assert "of 40 draws met max_tree_depth=1" in caplog.text


def funnel():
    v = pyro.sample("v", dist.Normal(torch.zeros(()), 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp()).to_event(1))


def test_divergences_are_marked_and_told(caplog):
    guide = guide_for(standard_normal)
    draws = draws_of(above(0.0), guide, num_draws=80, warmup=20, num_chains=1)
    assert (draws.sites["a"] > 0).all()
    count = int(draws.stats["diverging"].sum())
    assert count > 0
    assert f"{count} divergences" in draws.origin
    assert f"{count} of 80 draws ended a diverging trajectory" in caplog.text


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_seeds_repeat_a_run_and_leave_everything_alone(engine):
    y = normal_data()
    guide = far_guide(y)
    guide.train()
    next(guide.parameters()).requires_grad_(False)
    options = {"num_draws": 20, "warmup": 20, "engine": engine}
    with left_alone(guide), poutine.trace() as heard:
        first, second = (draws_of(normal_model, guide, y, seed=3, **options) for _ in range(2))
    other = draws_of(normal_model, guide, y, seed=4, **options)
    assert torch.equal(first.sites["mu"], second.sites["mu"])
    assert not torch.equal(first.sites["mu"], other.sites["mu"])
    assert not torch.equal(first.sites["mu"][0], first.sites["mu"][1])
    assert not [node for node in heard.trace.nodes.values() if node["type"] == "sample"]


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_if_asked_for(capfd, progress):
    y = normal_data()
    options = {"num_draws": 5, "warmup": 5, "num_chains": 1, "engine": "eager"}
    neutra(normal_model, far_guide(y), y, progress=progress, **options)
    said = capfd.readouterr()
    assert not said.out
    assert ("neutra: 100%" in said.err) == progress


def test_interrupts_pass_through():
    """FAULTS 63."""
    y, calls = normal_data(), []

    def interrupted(y):
        normal_model(y)
        calls.append(None)
        if len(calls) == 100:
            raise KeyboardInterrupt

    guide = far_guide(y)
    with left_alone(guide), pytest.raises(KeyboardInterrupt):
        draws_of(interrupted, guide, y, engine="eager")


@pytest.mark.slow
def test_funnel_is_drawn_to_its_neck():
    """A flow that knows a funnel lets NUTS into the neck, where it would not come by itself."""
    guide = pf.AutoFlow(funnel)
    pf.fit(funnel, guide, steps=1000, seed=0, progress=False)
    draws = draws_of(funnel, guide, num_draws=1000, warmup=300, engine="auto")
    assert largest_z(draws.sites["v"], 0.0, 3.0) < LARGEST_Z
    below = (draws.sites["v"] < -3.0).double()
    share = 0.5 * math.erfc(1 / math.sqrt(2))
    assert largest_z(below, share, math.sqrt(share * (1 - share))) < LARGEST_Z


@pytest.mark.slow
@pytest.mark.skipif(
    not default_root().exists(), reason="no posteriordb: set POSTERIORDB to the folder of a clone"
)
def test_centered_eight_schools():
    """A short fit, whose draws are off, is enough for exact ones."""
    posterior = eight_schools_centered.POSTERIOR
    raw, reference = load(posterior, default_root())
    args = tuple(values.float() for values in posterior.data(raw))
    guide = pf.AutoFlow(posterior.model)
    pf.fit(posterior.model, guide, *args, steps=500, seed=0, progress=False)
    draws = draws_of(posterior.model, guide, *args, num_draws=2000, warmup=300, target_accept=0.9)
    for name, values in spread(draws.flat()).items():
        exact = reference[name]
        apart = abs(float(values.mean()) - exact.mean()) / exact.std()
        assert apart < 0.1, name
        assert abs(float(values.std()) / exact.std() - 1) < 0.15, name
