"""to_arviz: the numbers against closed forms, the dims against the plates, and what it refuses."""

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
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_model,
    regression_posterior,
    single_draw_regression_model,
)
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats

import pyro_flows as pf
from pyro_flows.diagnostics import to_arviz
from pyro_flows.infer import pareto_k


def exact_regression(dtype=torch.float32):
    """Return a guide that is the posterior, and the data."""
    data = regression_data(dtype=dtype)
    mean, covariance, _ = regression_posterior(*data)

    def start(density, inits):
        factor = torch.linalg.cholesky(covariance)
        return pf.infer.Start(mean.to(dtype), factor.to(dtype), "the closed form")

    return ready(regression_model, *data, start=start), data


# ------------------------------------------------------------------------------------ numbers


def test_posterior_of_an_exact_guide_has_its_moments():
    guide, data = exact_regression()
    mean, covariance, _ = regression_posterior(*data)
    idata = to_arviz(regression_model, guide, *data, num_draws=4000, seed=1)
    draws = torch.from_numpy(idata["posterior"]["beta"].values[0].copy()).double()
    sd = covariance.diagonal().sqrt()
    # Five standard errors of a mean, and of a log sd, over independent draws.
    assert ((draws.mean(0) - mean) / sd).abs().max() < 5 / math.sqrt(4000)
    assert (draws.std(0) / sd).log().abs().max() < 5 / math.sqrt(2 * 4000)
    correlation = torch.corrcoef(draws.T) - covariance / torch.outer(sd, sd)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_log_weights_of_an_exact_guide_are_the_evidence():
    """The accounting is that of the ELBO: the guide's density is over the unconstrained space."""
    guide, data = exact_regression(torch.float64)
    stats_group = to_arviz(regression_model, guide, *data, num_draws=50)["sample_stats"]
    log_weights = (stats_group["log_p"] - stats_group["log_q"]).values
    assert np.abs(log_weights - regression_posterior(*data)[2]).max() < 1e-8
    assert np.array_equal(stats_group["lp"], stats_group["log_p"])


def test_log_weights_average_to_pyros_elbo_on_constrained_sites():
    guide = ready(constrained_model, start="prior")
    idata = to_arviz(constrained_model, guide, num_draws=4000, seed=0)
    log_weights = (idata["sample_stats"]["log_p"] - idata["sample_stats"]["log_q"]).values[0]
    elbo = Trace_ELBO(4000, vectorize_particles=True, max_plate_nesting=2)
    difference = log_weights.mean() + elbo.loss(constrained_model, guide)
    assert abs(difference) < 5 * log_weights.std() * math.sqrt(2 / 4000)
    assert not math.isnan(pareto_k(log_weights))


def test_log_likelihood_is_that_of_each_observation():
    y = normal_data()
    idata = to_arviz(normal_model, ready(normal_model, y), y, num_draws=10)
    mu = idata["posterior"]["mu"].values[0]
    by_hand = stats.norm.logpdf(y.numpy(), mu[:, None], 1.0)
    assert np.allclose(idata["log_likelihood"]["y"].values[0], by_hand, atol=1e-5)
    log_p = by_hand.sum(-1) + stats.norm.logpdf(mu, 0.0, 3.0)
    assert np.allclose(idata["sample_stats"]["log_p"].values[0], log_p, atol=1e-4)
    assert np.array_equal(idata["observed_data"]["y"], y)
    y += 1
    assert not np.array_equal(idata["observed_data"]["y"], y)


def test_predictive_has_the_moments_of_new_data():
    y = normal_data()
    idata = to_arviz(normal_model, ready(normal_model, y), y, num_draws=4000, seed=2)
    mean, sd, _ = normal_posterior(y)
    new_sd = math.sqrt(1 + sd**2)
    new = idata["posterior_predictive"]["y"].values[0]
    assert np.abs(new.mean(0) - mean).max() < 5 * new_sd / math.sqrt(4000)
    assert np.abs(np.log(new.std(0) / new_sd)).max() < 5 / math.sqrt(2 * 4000)
    # Fresh for each member: what they share is the draw of mu.
    assert np.corrcoef(new[:, 0], new[:, 1])[0, 1] == pytest.approx((sd / new_sd) ** 2, abs=0.08)


def test_loop_gives_the_same_numbers():
    guide, data = exact_regression()
    options = {"num_draws": 30, "seed": 3, "chunk_size": 30}
    at_once = to_arviz(regression_model, guide, *data, **options)
    looped = to_arviz(single_draw_regression_model, guide, *data, **options)
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data"):
        assert at_once[group].sizes == looped[group].sizes
        for name, values in at_once[group].data_vars.items():
            assert np.allclose(values, looped[group][name], rtol=1e-4, atol=1e-4), name
    assert len(np.unique(looped["posterior_predictive"]["y"])) == 30 * 40


def test_guide_and_model_that_do_not_broadcast():
    def guide(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 0.1).to_event(1))
        assert beta.dim() == 1

    x, y = regression_data()
    idata = to_arviz(single_draw_regression_model, guide, x, y, num_draws=5)
    beta = idata["posterior"]["beta"].values[0]
    log_q = stats.norm.logpdf(beta, 0.0, 0.1).sum(-1)
    assert np.allclose(idata["sample_stats"]["log_q"].values[0], log_q, atol=1e-4)
    ll = stats.norm.logpdf(y.numpy(), beta @ x.numpy().T, 1.0)
    assert np.allclose(idata["log_likelihood"]["y"].values[0], ll, rtol=1e-4, atol=1e-3)


def test_deterministic_site_that_would_mix_the_draws_is_looped(caplog):
    """The densities alone do not show it."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.deterministic("mean", x.mean())

    with caplog.at_level(logging.INFO, "pyro_flows"):
        posterior = draw_once(model)["posterior"]
    assert "does not broadcast" in caplog.text
    assert np.allclose(posterior["mean"], posterior["x"].values.mean(-1), atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks(chunk_size):
    y = normal_data()
    guide = ready(normal_model, y)
    idata = to_arviz(normal_model, guide, y, num_draws=20, chunk_size=chunk_size, seed=0)
    whole = to_arviz(normal_model, guide, y, num_draws=20, seed=0)
    for group in group_names(whole):
        assert idata[group].sizes == whole[group].sizes
    mu = idata["posterior"]["mu"].values[0]
    assert len(np.unique(mu)) == 20
    by_hand = stats.norm.logpdf(y.numpy(), mu[:, None], 1.0)
    assert np.allclose(idata["log_likelihood"]["y"].values[0], by_hand, atol=1e-5)


def test_seed_repeats_the_run_and_leaves_the_global_state():
    y = normal_data()
    guide = ready(normal_model, y)
    before = torch.get_rng_state()
    first, again, other = (
        to_arviz(normal_model, guide, y, num_draws=5, seed=seed)["posterior"]["mu"].values
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# ----------------------------------------------------------------------------- dims and coords


def schools_model():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + eta)
        pyro.sample("y", dist.Normal(theta, 10.0), obs=torch.arange(8.0))
    pyro.deterministic("outside", 2 * theta)
    pyro.deterministic("square", mu**2)


def grid_model():
    """Plates that leave an axis free between them, and one inside the other."""
    left, right = pyro.plate("left", 2, dim=-3), pyro.plate("right", 4, dim=-1)
    with left:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with right:
        b = pyro.sample("b", dist.Normal(torch.zeros(4, 5), 1.0).to_event(1))
    with left, right:
        pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b.sum(-1), 1.0), obs=torch.arange(8.0).reshape(2, 1, 4))
        pyro.deterministic("sum", a + b.sum(-1))


def shapes_model():
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)), infer={"event_dims": ["part"]})
    pyro.sample(
        "factor", dist.LKJCholesky(2, torch.tensor(1.0)), infer={"event_dims": ["row", "column"]}
    )
    pyro.sample(
        "matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), infer={"event_dims": ["i"]}
    )
    with pyro.plate("n", 4):
        new = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        pyro.sample("pair", new, obs=torch.zeros(4, 2), infer={"event_dims": ["xy"]})


def test_plates_are_dims():
    idata = draw_once(schools_model)
    school = ("school",)
    expected = {
        "mu": (),
        "eta": school,
        "theta": school,
        "outside": ("outside_dim_0",),
        "square": (),
    }
    assert dims_of(idata) == expected
    for group in ("log_likelihood", "posterior_predictive"):
        assert dims_of(idata, group) == {"y": school}
    assert idata["observed_data"]["y"].dims == school
    assert idata["posterior"]["school"].values.tolist() == list(range(8))
    posterior = idata["posterior"]
    assert np.allclose(posterior["theta"], posterior["mu"] + posterior["eta"], atol=1e-6)
    assert np.allclose(posterior["outside"], 2 * posterior["theta"].values)


def test_nested_plates_keep_their_order_and_no_axis_between():
    idata = draw_once(grid_model)
    dims = dims_of(idata)
    assert {name: dims[name] for name in ("a", "c", "sum")} == {
        "a": ("left",),
        "c": ("left", "right"),
        "sum": ("left", "right"),
    }
    assert dims["b"][0] == "right"
    assert idata["posterior"]["b"].shape == (1, 4, 4, 5)
    assert idata["observed_data"]["y"].values.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    mean = idata["posterior"]["a"] + idata["posterior"]["b"].sum(idata["posterior"]["b"].dims[-1])
    assert np.allclose(idata["posterior"]["sum"], mean, atol=1e-5)
    ll = stats.norm.logpdf(idata["observed_data"]["y"].values, mean.values, 1.0)
    assert np.allclose(idata["log_likelihood"]["y"], ll, atol=1e-4)


def test_event_dims_have_the_names_of_their_site():
    idata = draw_once(shapes_model)
    dims = dims_of(idata)
    assert dims.pop("matrix")[0] == "i"
    assert dims == {"simplex": ("part",), "factor": ("row", "column")}
    assert dims_of(idata, "posterior_predictive") == {"pair": ("n", "xy")}
    assert dims_of(idata, "log_likelihood") == {"pair": ("n",)}
    assert np.allclose(idata["posterior"]["simplex"].sum("part"), 1.0, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_subsample_is_one_for_all_draws_and_its_likelihood_is_not_scaled(chunk_size):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y), subsample_size=5) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    y = normal_data()
    idata = draw_once(model, y, chunk_size=chunk_size)
    members = idata["log_likelihood"]["data"].values
    assert len(set(members)) == 5
    assert np.array_equal(idata["observed_data"]["y"], y.numpy()[members])
    mu = idata["posterior"]["mu"].values
    ll = stats.norm.logpdf(y.numpy()[members], mu[..., None], 1.0)
    assert np.allclose(idata["log_likelihood"]["y"], ll, atol=1e-5)
    log_p = stats.norm.logpdf(mu, 0.0, 3.0) + len(y) / 5 * ll.sum(-1)
    assert np.allclose(idata["sample_stats"]["log_p"], log_p, rtol=1e-5)


def test_masked_observations_are_nan():
    mask = torch.arange(6) % 2 == 0

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("n", 6):
            with poutine.mask(mask=mask):
                pyro.sample("handler", dist.Normal(mu, 1.0), obs=torch.where(mask, 1.0, math.nan))
            pyro.sample("own", dist.Normal(mu, 1.0).mask(mask), obs=torch.ones(6))
            counts = torch.ones(6, dtype=torch.long)
            pyro.sample("counts", dist.Poisson(mu.exp()).mask(mask), obs=counts)
            masked = dist.Normal(mu, 1.0).expand([6, 2]).mask(mask[:, None]).to_event(1)
            pyro.sample("events", masked, obs=torch.ones(6, 2))

    idata = draw_once(model)
    for name, values in idata["log_likelihood"].data_vars.items():
        hidden = np.isnan(values.values)
        assert np.array_equal(hidden, np.broadcast_to(~mask.numpy(), hidden.shape)), name
    for name in ("own", "counts"):
        assert np.array_equal(np.isnan(idata["observed_data"][name]), ~mask.numpy())
    assert not np.isnan(idata["posterior_predictive"]["counts"]).any()
    assert not np.isnan(idata["sample_stats"]["log_p"]).any()


def test_obs_mask_shows_what_was_observed_and_what_was_not():
    mask = torch.tensor([True, False, True])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(3.0), obs_mask=mask)

    idata = draw_once(model)
    assert dims_of(idata) == {"mu": (), "y_unobserved": ("n",), "y": ("n",)}
    assert np.array_equal(idata["observed_data"]["y_observed"], [0.0, np.nan, 2.0], equal_nan=True)
    both = idata["posterior"]
    assert np.array_equal(both["y"][..., 1], both["y_unobserved"][..., 1])
    assert np.all(both["y"][..., 2] == 2.0)


def test_several_observed_sites_that_depend_on_each_other():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        before = torch.tensor(0.0)
        for i in pyro.plate("step", 3):
            before = pyro.sample(
                f"y_{i}", dist.Normal(before + mu, 0.1), obs=torch.tensor(float(i))
            )

    idata = draw_once(model, num_draws=2000)
    assert set(idata["log_likelihood"].data_vars) == {"y_0", "y_1", "y_2"}
    mu, new = idata["posterior"]["mu"], idata["posterior_predictive"]
    # Each follows the one drawn before it, not the one observed.
    assert float(np.abs(new["y_2"] - 3 * mu).mean()) < 0.2
    assert np.allclose(
        idata["log_likelihood"]["y_2"], stats.norm.logpdf(2.0, 1.0 + mu, 0.1), rtol=1e-3, atol=1e-3
    )


def test_observations_without_a_plate_are_drawn_one_each():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        pyro.factor("penalty", -(mu**2))

    idata = draw_once(model, normal_data())
    new = idata["posterior_predictive"]["y"]
    assert new.dims == idata["log_likelihood"]["y"].dims == ("chain", "draw", "y_dim_0")
    assert len(np.unique(new)) == 4 * 20
    assert set(idata["log_likelihood"].data_vars) == {"y"}
