"""to_arviz: log_prior, prior draws, constants and importance weights, against closed forms."""

import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import dims_of, draw_once, group_names
from models import (
    constrained_model,
    hierarchical_model,
    normal_data,
    normal_model,
    ready,
    subsampled_model,
)
from pyro import poutine
from scipy import stats
from torch.distributions import biject_to

from pyro_flows.diagnostics import to_arviz
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer.importance import pareto_k, psis

# ------------------------------------------------------------------------------ log_p and log_q


def schools_model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools_data(dtype):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=dtype)
    return y, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=dtype)


def log_weight_by_hand(model, guide, values, *args):
    """Trace guide and model for one draw, whose unconstrained vector is found from its values."""
    with torch.no_grad():
        latent = torch.cat(
            [
                biject_to(site["fn"].support).inv(values[name]).reshape(-1)
                for name, site in guide.prototype_trace.iter_stochastic_nodes()
            ]
        )
        given = poutine.condition(guide, data={f"_{guide._pyro_name}_latent": latent})
        guide_trace = poutine.trace(given).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        return float(model_trace.log_prob_sum() - guide_trace.log_prob_sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_weights_are_those_of_pyros_traces(dtype):
    data = schools_data(dtype)
    guide = ready(schools_model, *data, start="prior")
    idata = to_arviz(schools_model, guide, *data, num_draws=20, seed=0)
    ours = (idata["sample_stats"]["log_p"] - idata["sample_stats"]["log_q"]).values[0]
    posterior = idata["posterior"]
    names = ("mu", "tau", "theta")
    draws = [
        {name: torch.from_numpy(posterior[name].values[0, i : i + 1])[0] for name in names}
        for i in range(20)
    ]
    by_hand = [log_weight_by_hand(schools_model, guide, values, *data) for values in draws]
    assert np.abs(ours - by_hand).max() < (1e-5 if dtype == torch.float64 else 5e-5)


def test_log_prior_and_log_likelihood_add_up_to_the_joint_density():
    y = torch.arange(6.0).reshape(2, 3)
    idata = draw_once(hierarchical_model, y)
    log_prior = idata["log_prior"]
    assert dims_of(idata, "log_prior") == {"mean": (), "spread": (), "effect": ("schools",)}
    posterior = idata["posterior"]
    by_hand = stats.norm.logpdf(posterior["mean"], 0.0, 5.0)
    assert np.allclose(log_prior["mean"], by_hand, atol=1e-5)
    by_hand = stats.norm.logpdf(
        posterior["effect"],
        posterior["mean"].values[..., None],
        posterior["spread"].values[..., None],
    )
    assert np.allclose(log_prior["effect"], by_hand, rtol=1e-4, atol=1e-4)
    total = sum(
        values.values.reshape(4, -1).sum(-1)
        for group in ("log_prior", "log_likelihood")
        for values in idata[group].data_vars.values()
    )
    assert np.allclose(idata["sample_stats"]["log_p"].values[0], total, rtol=1e-5, atol=1e-4)


def test_log_prior_is_not_scaled_and_ignores_what_is_masked():
    def model():
        with pyro.plate("rows", 10, subsample_size=4):
            pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("masked", dist.Normal(torch.zeros(3), 1.0))

    def guide():
        with pyro.plate("rows", 10, subsample_size=4):
            pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3):
            pyro.sample("masked", dist.Normal(torch.zeros(3), 1.0))

    idata = to_arviz(model, guide, num_draws=4)
    by_hand = stats.norm.logpdf(idata["posterior"]["x"])
    assert np.allclose(idata["log_prior"]["x"], by_hand, atol=1e-5)
    by_hand = stats.norm.logpdf(idata["posterior"]["masked"]) * [1, 0, 1]
    assert np.allclose(idata["log_prior"]["masked"], by_hand, atol=1e-5)


def test_log_prior_of_vectors_lacks_their_dims():
    def model():
        normal = dist.Normal(torch.zeros(3, 2), 1.0).to_event(2)
        pyro.sample("x", normal, infer={"event_dims": ["row", "column"]})

    idata = draw_once(model)
    assert dims_of(idata) == {"x": ("row", "column")}
    assert dims_of(idata, "log_prior") == {"x": ()}
    assert "log_prior" not in group_names(draw_once(model, log_prior=False))


# ---------------------------------------------------------------------------------------- prior


@pytest.mark.parametrize("chunk_size", [None, 300])
def test_prior_and_its_predictive_have_the_moments_of_the_model(chunk_size):
    y = normal_data()
    idata = draw_once(normal_model, y, prior=2000, chunk_size=chunk_size)
    mu, new = idata["prior"]["mu"].values[0], idata["prior_predictive"]["y"].values[0]
    assert mu.shape == (2000,)
    assert new.shape == (2000, len(y))
    assert dims_of(idata, "prior_predictive") == {"y": ("data",)}
    for draws, sd in ((mu, 3.0), (new[:, 0], math.sqrt(10.0))):
        assert abs(draws.mean()) < 5 * sd / math.sqrt(2000)
        assert abs(math.log(draws.std() / sd)) < 5 / math.sqrt(2 * 2000)
    # Fresh for each member, around the same mu.
    assert np.corrcoef(new[:, 0], new[:, 1])[0, 1] == pytest.approx(0.9, abs=0.03)
    assert np.abs((new - mu[:, None]).std() - 1.0) < 0.02


def test_prior_of_a_model_that_does_not_broadcast_is_looped():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("length", torch.dot(x, x).sqrt())
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(torch.dot(x, x), 1.0), obs=y)

    idata = draw_once(model, torch.ones(3), prior=True)
    assert idata["prior_predictive"]["y"].shape == (1, 500, 3)
    x = idata["prior"]["x"].values
    assert np.allclose(idata["prior"]["length"], np.sqrt((x**2).sum(-1)), atol=1e-5)
    assert len(np.unique(x)) == 1000


def test_prior_is_on_demand_and_its_constrained_draws_are_in_the_support():
    assert "prior" not in group_names(draw_once(constrained_model))
    idata = draw_once(constrained_model, prior=200)
    assert np.allclose(idata["prior"]["simplex"].sum(idata["prior"]["simplex"].dims[-1]), 1.0)
    mean = float(idata["prior"]["interval"].mean())
    assert mean == pytest.approx(2 / 7, abs=5 * 0.16 / math.sqrt(200))
    assert "prior_predictive" not in group_names(idata)


def test_prior_that_cannot_be_drawn_from_is_refused():
    def model():
        pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    def guide():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    assert to_arviz(model, guide, num_draws=2)["posterior"]["x"].shape == (1, 2)
    with pytest.raises(DomainError, match="priors that can be drawn from; got at 'x': Improp"):
        to_arviz(model, guide, num_draws=2, prior=True)


@pytest.mark.parametrize("prior", [0, -1, 2.5, "yes", None])
def test_bad_numbers_of_prior_draws(prior):
    with pytest.raises(DomainError, match="to_arviz: expected prior to be an integer"):
        draw_once(normal_model, normal_data(), prior=prior)


# ------------------------------------------------------------------------------------ constants


def test_constants_are_kept_in_groups_of_their_own():
    y = normal_data()
    x = torch.arange(20.0, requires_grad=True)
    constants = {"x": x, "grid": np.arange(6).reshape(2, 3), "names": ["a", "b"], "one": 1.5}
    constants["half/way"] = torch.ones(2, dtype=torch.float16)
    idata = draw_once(normal_model, y, constant_data=constants, dims={"x": ["data"]})
    found = idata["constant_data"]
    assert found["x"].dims == ("data",)
    assert found["grid"].dims == ("grid_dim_0", "grid_dim_1")
    assert np.array_equal(found["x"], np.arange(20.0))
    assert found["names"].values.tolist() == ["a", "b"]
    assert found["one"].shape == ()
    assert found["half.way"].dtype == np.float32
    with torch.no_grad():
        x += 1
    assert np.array_equal(found["x"], np.arange(20.0))


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ([1, 2], "constant_data to be a mapping"),
        ({1: 2.0}, "constant_data to be a mapping"),
        ({"mu": 1.0}, "told apart.*got 'mu'"),
        ({"chain": 1.0}, "told apart.*got 'chain'"),
        ({"x": object()}, r"constant_data\['x'\] to be a tensor or an array"),
        ({"x": [[1.0], [2.0, 3.0]]}, r"constant_data\['x'\] to be a tensor or an array"),
    ],
)
def test_constants_that_cannot_be(constants, says):
    with pytest.raises(DomainError, match=f"(?s)to_arviz: expected .*{says}"):
        draw_once(normal_model, normal_data(), constant_data=constants)


# -------------------------------------------------------------------------------------- weights


def test_weights_are_the_smoothed_ratios_and_correct_the_mean():
    """A guide that is too wide: the weighted mean is the posterior's."""
    y = normal_data()

    def guide(y):
        pyro.sample("mu", dist.Normal(2.3, 0.4))

    idata = to_arviz(normal_model, guide, y, num_draws=4000, seed=0)
    found = idata["sample_stats"]
    log_weights = found["log_p"].values[0].astype(np.float64) - found["log_q"].values[0]
    smoothed, k_hat = psis(log_weights)
    assert np.allclose(found["weights"][0], np.exp(smoothed), rtol=1e-6)
    assert float(np.atleast_1d(found.attrs["pareto_k"])[0]) == k_hat == pareto_k(log_weights)
    assert float(found["weights"].sum()) == pytest.approx(1.0)
    variance = 1 / (1 / 9 + len(y))
    mean = float((found["weights"] * idata["posterior"]["mu"]).sum())
    assert mean == pytest.approx(variance * float(y.sum()), abs=0.03)
    assert float(idata["posterior"]["mu"].mean()) == pytest.approx(2.3, abs=0.03)


def test_weights_smooth_the_tail_alone_and_keep_its_order():
    log_weights = np.random.default_rng(0).normal(scale=2.0, size=1000)
    smoothed, _ = psis(log_weights)
    order = np.argsort(log_weights)
    body = order[: -math.ceil(3 * math.sqrt(1000)) - 1]
    shifts = smoothed[body] - log_weights[body]
    assert np.ptp(shifts) < 1e-9
    assert np.all(np.diff(smoothed[order]) >= -1e-9)
    assert not np.allclose(np.ptp(smoothed - log_weights), 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ratios_that_are_no_weights_are_refused_with_their_count(bad):
    """FAULTS 87: psis refuses them, as pareto_k does."""
    log_weights = np.random.default_rng(0).normal(size=1000)
    log_weights[:3] = bad
    with pytest.raises(NonFiniteError, match=r"psis: expected log-weights .*; got 3 of 1000"):
        psis(torch.from_numpy(log_weights))


def test_weights_of_zero_stay_zero():
    """FAULTS 87: minus infinity is allowed, but not everywhere."""
    log_weights = np.random.default_rng(0).normal(size=1000)
    log_weights[:10] = -math.inf
    smoothed, k_hat = psis(log_weights)
    assert np.all(np.isneginf(smoothed[:10]))
    assert np.exp(smoothed).sum() == pytest.approx(1.0)
    assert math.isfinite(k_hat)
    with pytest.raises(NonFiniteError, match="psis: expected a weight above zero; got 50 weights"):
        psis(np.full(50, -math.inf))


@pytest.mark.parametrize("log_weights", [np.zeros(1000), np.arange(5.0)])
def test_too_few_weights_or_ties_are_normalised_only(log_weights):
    """FAULTS 88: no number on the tail, and no smoothing."""
    smoothed, k_hat = psis(log_weights)
    assert math.isnan(k_hat)
    assert np.allclose(smoothed, log_weights - np.logaddexp.reduce(log_weights))


def test_no_weights_where_they_are_not_defined(caplog):
    """FAULTS 87: left out, and why; a subsampled density is an estimate."""
    y = normal_data()
    assert "weights" not in draw_once(subsampled_model, y)["sample_stats"]

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        pyro.factor("penalty", mu.log())

    with caplog.at_level(logging.WARNING, "pyro_flows"):
        found = draw_once(model, num_draws=100)["sample_stats"]
    assert "weights" not in found
    assert "pareto_k" not in found.attrs
    assert "leaves out the importance weights" in caplog.text
