"""Diagnoses of guides: against closed forms, and against Pyro's own traces."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
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
from torch.distributions import biject_to

import pyro_flows as pf
from pyro_flows.diagnostics.weighing import weigh

Y = normal_data()
MEAN, SD, LOG_EVIDENCE = normal_posterior(Y)


def normal_guide(shift=0.0, share=1.0, dtype=torch.float32):
    """The exact posterior, moved by some of its sds and made narrower."""

    def guide(y):
        loc = torch.tensor(MEAN + shift * SD, dtype=dtype)
        pyro.sample("mu", dist.Normal(loc, share * SD))

    return guide


def test_exact_guide_is_good_and_gives_the_evidence():
    report = pf.diagnose(normal_model, normal_guide(dtype=torch.float64), Y.double())
    assert report.verdict == "good"
    for bound in (report.elbo, report.iw_elbo, report.log_evidence):
        assert bound == pytest.approx(LOG_EVIDENCE, abs=1e-6)
    assert report.ess == pytest.approx(10_000)
    assert abs(report.sites[0].shift) < 1e-6
    assert "Use the draws as they are." in repr(report)


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.8), (0.3, 1.0), (0.2, 0.9)])
def test_bounds_are_those_of_the_closed_form(shift, share):
    report = pf.diagnose(normal_model, normal_guide(shift, share), Y, num_draws=40_000)
    divergence = -math.log(share) + 0.5 * (share**2 + shift**2 - 1)
    assert report.elbo == pytest.approx(LOG_EVIDENCE - divergence, abs=5 * report.elbo_se)
    assert 0 < report.elbo_se < 0.01
    assert report.log_evidence == pytest.approx(LOG_EVIDENCE, abs=5 * report.log_evidence_se)
    assert report.elbo < report.iw_elbo <= LOG_EVIDENCE + 5 * report.iw_elbo_se
    # The second moment of the weights, of two Gaussians.
    room = 2 * share**2 - 1
    expected = math.sqrt(room) / share**2 * math.exp(-(shift**2) / room)
    assert report.ess / report.num_draws == pytest.approx(expected, rel=0.05)


def test_k_hat_of_a_narrow_guide_is_that_of_the_closed_form():
    # The weight grows as exp(z^2 (1 - share^2) / 2): a Pareto tail of shape 1 - share^2.
    report = pf.diagnose(normal_model, normal_guide(share=0.6), Y, num_draws=100_000)
    assert report.k_hat == pytest.approx(1 - 0.6**2, abs=0.1)


def test_site_that_the_guide_gets_wrong_is_named_with_what_the_weights_say():
    x, y = regression_data()
    mean, covariance, _ = regression_posterior(x, y)
    factor = torch.linalg.cholesky(covariance).float()

    def guide(x, y):
        moved = mean.float().clone()
        moved[2] += 0.5 * covariance[2, 2].sqrt().float()
        pyro.sample("beta", dist.MultivariateNormal(moved, scale_tril=factor))

    report = pf.diagnose(regression_model, guide, x, y, num_draws=20_000)
    worst = max(report.sites, key=lambda check: abs(check.shift))
    assert worst.label == "beta[2]"
    assert worst.shift == pytest.approx(-0.5, abs=0.1)
    assert worst.moves
    assert report.verdict == "weigh"
    assert "beta[2]" in repr(report)
    assert "pf.resample" in repr(report)


@pytest.mark.parametrize(
    ("share", "verdict", "words"),
    [(0.8, "weigh", "pf.resample"), (0.4, "bad", "too narrow at mu")],
)
def test_verdict_ends_in_the_next_step(share, verdict, words):
    report = pf.diagnose(normal_model, normal_guide(share=share), Y)
    assert report.verdict == verdict
    assert words in report.advice
    assert repr(report).startswith(f"Report: {verdict}. {report.advice}")


def test_log_weights_and_k_hat_are_those_of_pyros_traces():
    torch.set_default_dtype(torch.float64)
    guide = ready(constrained_model)
    options = {"num_draws": 100, "seed": 3, "chunk_size": None}
    draws = weigh("test", constrained_model, guide, (), {}, **options)
    by_hand = []
    for k in range(100):
        values = {name: value[k] for name, value in draws.sites.items()}
        parts = [
            biject_to(site["fn"].support).inv(values[name]).reshape(-1)
            for name, site in guide.prototype_trace.iter_stochastic_nodes()
        ]
        latent = {"_AutoFlow_latent": torch.cat(parts)}
        with torch.no_grad():
            model_trace = poutine.trace(poutine.condition(constrained_model, values)).get_trace()
            guide_trace = poutine.trace(poutine.condition(guide, latent)).get_trace()
            by_hand.append(float(model_trace.log_prob_sum() - guide_trace.log_prob_sum()))
    np.testing.assert_allclose(draws.log_weights, by_hand, atol=1e-5)
    assert draws.k_hat == pytest.approx(pf.infer.pareto_k(np.array(by_hand)), abs=1e-5)


def test_model_written_for_one_draw_gives_the_same_report():
    x, y = regression_data()
    guide = ready(regression_model, x, y)
    plated, vmapped = (
        pf.diagnose(model, guide, x, y, num_draws=200, chunk_size=64)
        for model in (regression_model, single_draw_regression_model)
    )
    np.testing.assert_allclose(plated.log_weights, vmapped.log_weights, rtol=1e-3, atol=1e-3)
    for one, other in zip(plated.sites, vmapped.sites, strict=True):
        assert one.shift == pytest.approx(other.shift, abs=1e-2)


def test_random_state_outside_stays_and_a_seed_means_the_same_draws():
    before = torch.get_rng_state()
    one, other = (pf.diagnose(normal_model, normal_guide(0.1), Y, seed=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(one.log_weights, other.log_weights)
    another = pf.diagnose(normal_model, normal_guide(0.1), Y, seed=6)
    assert not np.array_equal(one.log_weights, another.log_weights)


def test_few_draws_are_called_unreliable_and_not_a_number():
    """FAULTS 88."""
    report = pf.diagnose(normal_model, normal_guide(share=0.9), Y, num_draws=10, num_importance=2)
    assert math.isnan(report.k_hat)
    assert report.verdict == "unreliable"
    assert "not known" in repr(report)
    assert "larger num_draws" in report.advice


def nan_for_some(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.factor("f", torch.where(mu > MEAN, torch.nan, 0.0))


def infinite_for_some(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.factor("f", torch.where(mu > MEAN, torch.inf, 0.0))


def impossible_for_some(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.factor("f", torch.where(mu > MEAN, -torch.inf, 0.0))


def impossible(y):
    pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.factor("f", torch.tensor(-torch.inf))


def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


@pytest.mark.parametrize("model", [nan_for_some, infinite_for_some])
@pytest.mark.parametrize("function", [pf.diagnose, pf.resample])
def test_weights_that_are_not_finite_are_counted(model, function):
    """FAULTS 87."""
    with pytest.raises(pf.NonFiniteError, match=r"got (4|5)\d\d\d of 10000 that are NaN or inf"):
        function(model, normal_guide(), Y)


def test_draws_outside_the_support_have_a_weight_of_zero():
    """FAULTS 87."""
    report = pf.diagnose(impossible_for_some, normal_guide(), Y)
    assert 4000 < report.zero_weights < 6000
    assert report.elbo == -math.inf
    assert math.isfinite(report.log_evidence)
    assert f"{report.zero_weights} outside the support" in repr(report)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: f(subsampled, normal_guide(), Y), pf.DomainError, "without subsample_size"),
        (lambda f: f(impossible, normal_guide(), Y), pf.NonFiniteError, "a weight above zero"),
        (lambda f: f(normal_model, pf.AutoFlow(normal_model), Y), pf.DomainError, "initialise"),
        (lambda f: f(normal_model, "guide", Y), pf.DomainError, "a guide to call"),
        (lambda f: f(normal_model, lambda y: None, Y), pf.DomainError, "'mu'"),
        (lambda f: f(normal_model, normal_guide(), Y, num_draws=0), pf.DomainError, "num_draws"),
        (lambda f: f(normal_model, normal_guide(), Y, chunk_size=0), pf.DomainError, "chunk_size"),
        (lambda f: f(normal_model, normal_guide(), Y, seed=-1), pf.DomainError, "seed"),
    ],
)
@pytest.mark.parametrize("function", [pf.diagnose, pf.resample])
def test_what_cannot_be_weighed_is_refused(function, call, error, words):
    with pytest.raises(error, match=words):
        call(function)


def test_too_few_bounds_are_refused():
    with pytest.raises(pf.DomainError, match="two importance-weighted bounds"):
        pf.diagnose(normal_model, normal_guide(), Y, num_draws=20, num_importance=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resampled_draws_are_those_of_the_posterior(dtype):
    guide = normal_guide(shift=0.4, share=0.8, dtype=dtype)
    draws = pf.resample(normal_model, guide, Y.to(dtype), num_draws=4000, num_proposals=200_000)
    mu = draws.sites["mu"]
    assert mu.shape == (1, 4000)
    assert mu.dtype == dtype
    assert float(mu.mean()) == pytest.approx(MEAN, abs=5 * SD / math.sqrt(4000))
    assert float(mu.std()) == pytest.approx(SD, rel=0.06)
    assert len(mu.unique()) > 3000
    assert "resampled" in draws.origin
    # Drawn in random order: neighbours have nothing to do with one another.
    assert abs(np.corrcoef(mu[0, 1:], mu[0, :-1])[0, 1]) < 0.08


def test_guide_that_leaves_too_much_out_is_not_resampled():
    with pytest.raises(pf.NotConvergedError, match=r"k-hat below 0.70.*got 0\.\d\d.*pf.neutra"):
        pf.resample(normal_model, normal_guide(share=0.4), Y, num_draws=1000)


def test_resampling_few_proposals_is_refused():
    """FAULTS 88."""
    with pytest.raises(pf.NotConvergedError, match=r"too few.*larger num_proposals"):
        pf.resample(normal_model, normal_guide(share=0.8), Y, num_proposals=10)
