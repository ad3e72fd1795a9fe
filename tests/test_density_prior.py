"""A flow as a prior: at a sample site of a model, where its density was set or trained."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_flows as pf
from pyro_flows.density import FlowDensity, fit_mle
from pyro_flows.density.toy import TwoMoons
from pyro_flows.transforms import ElementwiseAffine, LowerTriangularAffine

MEAN = torch.tensor([1.0, -2.0])
FACTOR = torch.tensor([[1.5, 0.0], [-0.8, 0.6]])
NOISE_SD = 0.5
Y = torch.tensor([[0.5, -1.0], [2.0, -3.0], [1.5, -2.5]])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def gaussian_flow(dtype=torch.float32):
    """Return a flow that is N(MEAN, FACTOR FACTOR^T), by fixed buffers."""
    affine = LowerTriangularAffine(2, loc=MEAN.to(dtype), scale_tril=FACTOR.to(dtype))
    # A coupling starts at the identity, with parameters that a fit could move.
    coupling = pf.flows.realnvp(2, num_transforms=1).transform.to(dtype)
    return pf.Flow([coupling, affine])


def gaussian(dtype=torch.float64):
    return torch.distributions.MultivariateNormal(MEAN.to(dtype), scale_tril=FACTOR.to(dtype))


def model_of(prior):
    def model(y):
        z = pyro.sample("z", prior)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z[..., None, :], NOISE_SD).to_event(1), obs=y)

    return model


def posterior(y):
    """Return mean and covariance of z given y, and the log evidence."""
    y, precision = y.double(), gaussian().precision_matrix
    covariance = torch.linalg.inv(precision + torch.eye(2) * len(y) / NOISE_SD**2)
    mean = covariance @ (precision @ MEAN.double() + y.sum(0) / NOISE_SD**2)
    like = torch.distributions.Normal(mean, NOISE_SD).log_prob(y).sum()
    after = torch.distributions.MultivariateNormal(mean, covariance).log_prob(mean)
    return mean, covariance, float(gaussian().log_prob(mean) + like - after)


def fitted(model, *args, steps=30, recipe=LowerTriangularAffine, **options):
    """Return a guide, by default a Gaussian, and how its fit went."""
    guide = pf.AutoFlow(model, lambda input_dim: pf.Flow(recipe(input_dim)))
    defaults = {"particles": 64, "engine": "eager", "refine": False, "seed": 0, "progress": False}
    return guide, pf.fit(model, guide, *args, steps=steps, **{**defaults, **options})


def couplings(input_dim):
    return pf.flows.realnvp(input_dim, num_transforms=4).transform


def assert_posterior(guide, y, tolerance):
    mean, covariance, _ = posterior(y)
    with torch.no_grad(), pyro.plate("draws", 20_000):
        draws = guide(y)["z"].double()
    sds = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() / sds).max() < tolerance
    ratio = torch.cov(draws.T) / torch.outer(sds, sds)
    assert (ratio - covariance / torch.outer(sds, sds)).abs().max() < 2 * tolerance


@DTYPES
def test_joint_log_density_is_that_of_the_closed_form(dtype):
    y = Y.to(dtype)
    trace = poutine.trace(model_of(gaussian_flow(dtype))).get_trace(y)
    z = trace.nodes["z"]["value"]
    exact = gaussian().log_prob(z.double())
    exact = exact + torch.distributions.Normal(z.double(), NOISE_SD).log_prob(y.double()).sum()
    assert z.dtype == dtype
    assert trace.log_prob_sum().item() == pytest.approx(exact.item(), rel=1e-5)


@DTYPES
def test_posterior_under_a_gaussian_flow_is_the_conjugate_one(dtype):
    """Its evidence as well; and the prior's parameters stay as they are."""
    prior, y = gaussian_flow(dtype), Y.to(dtype)
    before = [parameter.detach().clone() for parameter in prior.parameters()]
    guide, result = fitted(model_of(prior), y)
    assert_posterior(guide, y, 0.05)
    assert result.elbo == pytest.approx(posterior(y)[2], abs=0.02)
    assert all(map(torch.equal, before, prior.parameters()))


@pytest.mark.parametrize("way", ["fit_mle", "FlowDensity"])
def test_posterior_under_a_trained_flow_is_near_the_conjugate_one(way):
    data = gaussian(torch.float32).sample((4000,))
    if way == "fit_mle":
        prior = pf.Flow(LowerTriangularAffine(2))
        fit_mle(prior, data, epochs=40, lr=0.03, seed=0, progress=False)
    else:
        options = {"epochs": 12, "lr": 0.01, "random_state": 0}
        prior = FlowDensity(pf.flows.realnvp, **options).fit(data).flow_
    guide, result = fitted(model_of(prior), Y)
    # The mean log-density of 4,000 draws has a standard error of 0.016.
    assert_posterior(guide, Y, 0.15)
    assert result.elbo == pytest.approx(posterior(Y)[2], abs=0.15)


@pytest.mark.parametrize("registered", [False, True])
def test_prior_is_trained_where_it_is_registered_alone(registered):
    prior = gaussian_flow()
    plain = model_of(prior)

    def model(y):
        if registered:
            pyro.module("prior", prior)
        plain(y)

    guide = pf.AutoFlow(model, "planar")
    guide.initialise(Y)
    before = [parameter.detach().clone() for parameter in prior.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(Y)
    moved = [not torch.equal(*pair) for pair in zip(before, prior.parameters(), strict=True)]
    assert any(moved) == registered
    prior_names = {name for name in pyro.get_param_store() if name.startswith("prior$$$")}
    assert len(prior_names) == (len(before) if registered else 0)


def test_registered_prior_learns_by_the_fit():
    """Empirical Bayes: the best prior of one observation's mean is centred at the observation."""
    prior = pf.Flow(ElementwiseAffine(2))

    def model(y):
        pyro.module("prior", prior)
        model_of(prior)(y)

    y = torch.full((1, 2), 3.0)
    fitted(model, y, steps=150, lr=0.1)
    torch.testing.assert_close(prior.sample((10_000,)).mean(0), y[0], atol=0.1, rtol=0)


@DTYPES
def test_prior_in_a_plate(dtype):
    """Independent draws, each with its own observation and its own posterior."""
    prior, y = gaussian_flow(dtype), Y.to(dtype)

    def model(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, NOISE_SD).to_event(1), obs=y)

    trace = poutine.trace(model).get_trace(y)
    trace.compute_log_prob()
    site = trace.nodes["z"]
    exact = gaussian().log_prob(site["value"].double())
    torch.testing.assert_close(site["log_prob"].double(), exact, rtol=1e-5, atol=1e-5)
    guide, result = fitted(model, y)
    evidence = sum(posterior(row[None])[2] for row in y)
    assert result.elbo == pytest.approx(evidence, abs=0.05)
    means = torch.stack([posterior(row[None])[0] for row in y])
    torch.testing.assert_close(guide.median(y)["z"].double(), means, atol=0.1, rtol=0)


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_draws_from_the_prior(parallel):
    prior = gaussian_flow()

    def model():
        with pyro.plate("rows", 3):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, NOISE_SD).to_event(1))

    num = 20_000 if parallel else 50
    draws = Predictive(model, num_samples=num, parallel=parallel)()
    assert draws["y"].shape == (num, 3, 2)
    if parallel:
        covariance = gaussian().covariance_matrix + NOISE_SD**2 * torch.eye(2)
        flat = draws["y"].reshape(-1, 2).double()
        torch.testing.assert_close(flat.mean(0), MEAN.double(), atol=0.05, rtol=0)
        torch.testing.assert_close(torch.cov(flat.T), covariance, atol=0.08, rtol=0)


@DTYPES
def test_conditional_prior_is_given_its_context_row_by_row(dtype):
    """A context that shifts the mean: each row's posterior is that of its own prior."""
    affine = ElementwiseAffine(2, context_dim=1, hidden_dims=()).to(dtype)
    with torch.no_grad():
        affine.conditioner.from_context.weight[:2] = torch.tensor([[2.0], [-1.0]])
    prior = pf.Flow(affine)
    context, y = torch.tensor([[0.0], [1.0], [-2.0]], dtype=dtype), Y.to(dtype)

    def model(context, y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", prior.condition(context))
            pyro.sample("y", dist.Normal(z, NOISE_SD).to_event(1), obs=y)

    guide, result = fitted(model, context, y)
    priors = torch.distributions.Normal(context * torch.tensor([2.0, -1.0]).to(dtype), 1.0)
    marginal = torch.distributions.Normal(priors.mean, math.hypot(1.0, NOISE_SD))
    assert result.elbo == pytest.approx(marginal.log_prob(y).sum().item(), abs=0.05)
    weight = 1 / (1 + NOISE_SD**2)
    means = weight * y + (1 - weight) * priors.mean
    torch.testing.assert_close(guide.median(context, y)["z"], means, atol=0.1, rtol=0)


def moons_prior():
    data = TwoMoons(noise=0.2).seeded(3000, seed=0)
    prior = pf.flows.realnvp(2)
    fit_mle(prior, data, epochs=25, lr=5e-3, seed=0, progress=False)
    return prior.eval()


def grid_moments(log_density, lows, highs, num=300):
    """Return the mean and sds of a density over a rectangle, and the log of its integral."""
    edges = [torch.linspace(*ends, num).double() for ends in zip(lows, highs, strict=True)]
    points = torch.cartesian_prod(*edges)
    cell = math.prod((edge[1] - edge[0]).item() for edge in edges)
    scores = log_density(points)
    mass = (scores.logsumexp(0)).item() + math.log(cell)
    weights = scores.softmax(0)[:, None]
    mean = (weights * points).sum(0)
    return mean, (weights * (points - mean).square()).sum(0).sqrt(), mass


@pytest.mark.slow
def test_posterior_under_two_moons_is_that_on_a_grid():
    """One observation at the top of the upper moon, far from the lower one."""
    prior, y = moons_prior(), torch.tensor([[0.0, 1.2]])
    model = model_of(prior)

    def joint(points, prior_log_prob):
        likelihood = torch.distributions.Normal(points, NOISE_SD).log_prob(y.double()).sum(-1)
        return prior_log_prob + likelihood

    @torch.no_grad()
    def of_flow(points):
        return joint(points, prior.log_prob(points.float()).double())

    def of_moons(points):
        return joint(points, TwoMoons(noise=0.2).log_prob(points))

    mean, sd, evidence = grid_moments(of_flow, (-3.0, -3.0), (4.0, 3.0))
    # What the trained prior says is near what the density that it learnt does ...
    true_mean, true_sd, true_evidence = grid_moments(of_moons, (-3.0, -3.0), (4.0, 3.0))
    assert ((mean - true_mean).abs() / true_sd).max() < 0.15
    assert evidence == pytest.approx(true_evidence, abs=0.1)
    # ... and a guide finds it.
    guide, result = fitted(model, y, steps=300, recipe=couplings)
    with torch.no_grad(), pyro.plate("draws", 10_000):
        draws = guide(y)["z"].double()
    assert ((draws.mean(0) - mean).abs() / sd).max() < 0.1
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    assert evidence - 0.15 < result.elbo < evidence + 0.02
