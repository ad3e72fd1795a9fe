"""to_arviz: draws that are kept, several guides as chains, and models that changed since a fit."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import group_names
from models import (
    constrained_model,
    hierarchical_model,
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_model,
    single_draw_regression_model,
    subsampled_model,
)
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import pyro_flows as pf
from pyro_flows.diagnostics import to_arviz
from pyro_flows.errors import DomainError, ShapeError

# ------------------------------------------------------------------------- draws that are kept


def kept_normal(chains=2, draws=7, **stats):
    mean, sd, _ = normal_posterior(normal_data())
    generator = torch.Generator().manual_seed(0)
    mu = mean + sd * torch.randn(chains, draws, generator=generator)
    return pf.PosteriorDraws({"mu": mu}, stats, "made for a test")


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_kept_draws_keep_their_chains_order_and_stats(chunk_size):
    y = normal_data()
    accepted = torch.arange(14).reshape(2, 7) % 3 == 0
    draws = kept_normal(accepted=accepted, log_p=torch.zeros(2, 7))
    idata = to_arviz(normal_model, draws, y, chunk_size=chunk_size)
    mu = draws.sites["mu"].numpy()
    assert np.array_equal(idata["posterior"]["mu"], mu)
    ll = stats.norm.logpdf(y.numpy(), mu[..., None], 1.0)
    assert np.allclose(idata["log_likelihood"]["y"], ll, atol=1e-5)
    found = idata["sample_stats"]
    assert set(found.data_vars) == {"accepted", "log_p", "lp"}
    assert np.array_equal(found["accepted"], accepted)
    # What was recorded comes second to what the model says.
    assert np.allclose(found["log_p"], ll.sum(-1) + stats.norm.logpdf(mu, 0.0, 3.0), atol=1e-3)
    assert idata["posterior_predictive"]["y"].shape == (2, 7, 20)
    assert idata["posterior"].attrs["guide"] == "made for a test"


def test_kept_log_q_is_handed_on():
    log_q = torch.arange(14.0).reshape(2, 7)
    found = to_arviz(normal_model, kept_normal(log_q=log_q), normal_data())["sample_stats"]
    assert np.array_equal(found["log_q"], log_q)
    assert "weights" not in found


def test_kept_draws_of_all_kinds_of_sites_are_those_of_the_guide_they_come_from():
    guide = ready(constrained_model, start="prior")
    first = to_arviz(constrained_model, guide, num_draws=6, seed=0)
    values = {
        name: torch.from_numpy(array.values.copy())
        for name, array in first["posterior"].data_vars.items()
    }
    # Pyro keeps an axis between the plates' and the event's; ArviZ does not.
    values["positive"] = values["positive"][..., None]
    again = to_arviz(constrained_model, pf.PosteriorDraws(values))
    for group in ("posterior", "log_prior"):
        for name, array in first[group].data_vars.items():
            assert again[group][name].dims == array.dims
            assert np.allclose(again[group][name], array, atol=1e-6), name
    assert np.allclose(again["sample_stats"]["log_p"], first["sample_stats"]["log_p"], rtol=1e-5)


def test_kept_draws_of_a_model_that_does_not_broadcast():
    data = regression_data()
    beta = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    draws = pf.PosteriorDraws({"beta": beta})
    looped = to_arviz(single_draw_regression_model, draws, *data)
    at_once = to_arviz(regression_model, draws, *data)
    assert np.array_equal(looped["posterior"]["beta"], beta)
    for idata in (looped, at_once):
        mean = beta.double() @ data[0].double().T
        ll = stats.norm.logpdf(data[1].double(), mean, 1.0)
        assert np.allclose(idata["log_likelihood"]["y"], ll, rtol=1e-3, atol=1e-3)


def test_deterministic_sites_of_kept_draws_are_worked_out_anew():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * x)

    x = torch.randn(1, 4)
    idata = to_arviz(model, pf.PosteriorDraws({"x": x, "twice": torch.zeros(1, 4)}))
    assert np.allclose(idata["posterior"]["twice"], 2 * x)


def test_kept_draws_of_a_subsampled_model():
    idata = to_arviz(subsampled_model, kept_normal(), normal_data())
    assert idata["log_likelihood"]["y"].shape == (2, 7, 4)


def test_kept_draws_that_do_not_fit():
    y = normal_data()
    mu = torch.zeros(1, 3)
    with pytest.raises(DomainError, match=r"no num_draws together with draws.*; got 10"):
        to_arviz(normal_model, kept_normal(), y, num_draws=10)
    some = pf.PosteriorDraws({"mean": mu, "effect": torch.zeros(1, 3, 2, 1)})
    with pytest.raises(DomainError, match="every latent of the model; got none at 'spread'"):
        to_arviz(hierarchical_model, some, torch.zeros(2, 3))
    with pytest.raises(DomainError, match="latents alone; got 'y' as well, which the model obs"):
        to_arviz(normal_model, pf.PosteriorDraws({"mu": mu, "y": mu}), y)
    with pytest.raises(DomainError, match="latents alone; got 'nu' as well"):
        to_arviz(normal_model, pf.PosteriorDraws({"mu": mu, "nu": mu}), y)
    with pytest.raises(ShapeError, match=r"shape \(\) at the site 'mu', .*; got \(2,\)"):
        to_arviz(normal_model, pf.PosteriorDraws({"mu": torch.zeros(1, 3, 2)}), y)


# ------------------------------------------------------------------------ several guides at once


def normal_guide(mean):
    def guide(y):
        pyro.sample("mu", dist.Normal(mean, 0.2))

    return guide


def test_guides_become_chains_and_r_hat_says_whether_they_agree():
    import arviz as az

    y = normal_data()
    alike = to_arviz(normal_model, [normal_guide(2.0)] * 3, y, num_draws=300, seed=0)
    apart = to_arviz(normal_model, (normal_guide(2.0), normal_guide(3.0)), y, num_draws=300)
    assert alike["posterior"]["mu"].shape == (3, 300)
    assert float(az.rhat(alike)["mu"]) < 1.02
    assert float(az.rhat(apart)["mu"]) > 1.5
    assert np.allclose(apart["posterior"]["mu"].mean("draw"), [2.0, 3.0], atol=0.06)
    assert np.allclose(apart["sample_stats"]["weights"].sum("draw"), 1.0)
    assert len(apart["sample_stats"].attrs["pareto_k"]) == 2


def test_guides_see_one_subsample():
    y = normal_data()
    guides = [AutoNormal(subsampled_model), pf.AutoFlow(subsampled_model, start="prior")]
    idata = to_arviz(subsampled_model, guides, y, num_draws=5)
    members = idata["log_likelihood"]["data"].values
    mu = idata["posterior"]["mu"].values
    ll = stats.norm.logpdf(y.numpy()[members], mu[..., None], 1.0)
    assert np.allclose(idata["log_likelihood"]["y"], ll, atol=1e-5)


def test_lists_that_are_no_guides():
    y = normal_data()
    with pytest.raises(DomainError, match="expected at least one guide; got an empty list"):
        to_arviz(normal_model, [], y)
    with pytest.raises(DomainError, match="expected a guide to call; got None"):
        to_arviz(normal_model, [normal_guide(0.0), None], y)


# -------------------------------------------------------------------------- models that changed


@pytest.mark.parametrize("flow", [True, False])
def test_model_with_more_members_than_the_guide(flow):
    """FAULTS 54: the size of the data changed between the fit and the conversion."""
    model = hierarchical_model
    guide = pf.AutoFlow(model, start="prior") if flow else AutoNormal(model)
    assert to_arviz(hierarchical_model, guide, torch.zeros(2, 3), num_draws=2)
    with pytest.raises(ShapeError, match=r"to_arviz: expected .*The model is another than"):
        to_arviz(hierarchical_model, guide, torch.zeros(4, 3), num_draws=2)


def test_model_with_more_columns_than_the_guide():
    """FAULTS 54: refused before the product of the two would fail."""
    x, y = regression_data()
    guide = ready(regression_model, x, y, start="prior")
    with pytest.raises(ShapeError, match=r"shape \(3,\) at the site 'beta', .*; got \(4,\)"):
        to_arviz(regression_model, guide, x[:, :3], y)
    # Other rows are other data, with the same latents.
    assert to_arviz(regression_model, guide, x[:7], y[:7], num_draws=2)


def test_model_that_lost_or_gained_a_site():
    """FAULTS 54: in words that say so."""
    y = normal_data()

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    short, long = (ready(each, y, start="prior") for each in (normal_model, model))
    with pytest.raises(DomainError, match=r"got none at 'scale'.*has changed since the fit"):
        to_arviz(model, short, y)
    with pytest.raises(DomainError, match=r"got 'scale' as well.*another than the guide"):
        to_arviz(normal_model, long, y)
    observed = pyro.poutine.condition(model, data={"scale": torch.tensor(1.0)})
    with pytest.raises(DomainError, match="got 'scale' as well, which the model observes"):
        to_arviz(observed, long, y)


def test_guides_of_different_models():
    def model(guided):
        pyro.sample("x", dist.Normal(torch.zeros(guided), 1.0).to_event(1))

    guides = [ready(model, 2, start="prior"), ready(model, 3, start="prior")]
    with pytest.raises(ShapeError, match=r"shape \(2,\) at the site 'x', .*; got \(3,\)"):
        to_arviz(model, guides, 2)


def test_groups_of_kept_draws_can_be_left_out():
    idata = to_arviz(
        normal_model,
        kept_normal(),
        normal_data(),
        predictive=False,
        log_likelihood=False,
        log_prior=False,
    )
    assert group_names(idata) == {"posterior", "sample_stats", "observed_data"}
    assert math.isfinite(float(idata["sample_stats"]["lp"].sum()))
