"""Start values: near the posterior where there is a mode, and no worse than before where not."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    density_of,
    normal_data,
    normal_model,
    ready,
    regression_data,
    regression_model,
    regression_posterior,
)
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value

import pyro_flows as pf
from pyro_flows.infer import LogDensity, Start
from pyro_flows.infer.guides.gaussian import gaussian_elbo
from pyro_flows.infer.guides.mode import FULL_RANK_LIMIT
from pyro_flows.infer.guides.start import laplace_start


def test_log_density_is_that_of_the_unconstrained_latents():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.5, 2.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.tensor(1.5))

    density, z = density_of(model), torch.tensor([0.3])
    expected = dist.Normal(0.5, 2.0).log_prob(z) + dist.Normal(0.0, z.exp()).log_prob(
        torch.tensor(1.5)
    )
    assert density(z) == pytest.approx(expected.item(), abs=1e-6)
    _, grad = density.value_and_grad(z.double())
    numeric = (density(z.double() + 1e-5) - density(z.double() - 1e-5)) / 2e-5
    assert grad.item() == pytest.approx(numeric.item(), abs=1e-6)
    hessian = density.hessian(z.double())
    plus, minus = (density.value_and_grad(z.double() + h)[1] for h in (1e-5, -1e-5))
    assert hessian.item() == pytest.approx(((plus - minus) / 2e-5).item(), abs=1e-6)


def test_hessian_diagonal_estimate_meets_the_diagonal():
    x, y = regression_data(dtype=torch.float64)
    density, z = density_of(regression_model, x, y), torch.zeros(4).double()
    exact = density.hessian(z)
    estimate = density.hessian_diagonal(z, num_probes=2000)
    # Each probe's error is the sum of the off-diagonal entries of the row, with random signs.
    error_sd = (exact.square().sum(-1) - exact.diagonal().square()).sqrt() / 2000**0.5
    assert ((estimate - exact.diagonal()) / error_sd).abs().max() < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laplace_start_is_exact_for_a_collinear_regression_far_from_the_origin(dtype):
    x, y = regression_data(dtype=dtype)
    y = y + 500 * x[:, 0]
    mean, covariance, evidence = regression_posterior(x, y)
    density = density_of(regression_model, x, y)
    start = laplace_start(density, [torch.zeros(4, dtype=dtype)])
    sd = covariance.diagonal().sqrt()
    # The search is in float64 for either; what it hands over is rounded to the data's dtype.
    rounded = dtype == torch.float32
    assert ((start.loc.double() - mean) / sd).abs().max() < (2e-3 if rounded else 1e-6)
    ours = start.scale.double() @ start.scale.double().T
    assert ((ours - covariance) / sd / sd[:, None]).abs().max() < (1e-4 if rounded else 1e-6)
    if not rounded:
        assert gaussian_elbo(density, start) == pytest.approx(evidence, rel=1e-6)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_laplace_start_minds_no_units(unit):
    """With flat priors, incomes and heights say: a mode at tens of thousands, and none at zero."""
    generator = torch.Generator().manual_seed(0)
    height = 65 + 4 * torch.randn(1000, generator=generator)
    noise = torch.randn(1000, generator=generator)
    income = unit * (-6.0 + 0.12 * height + 2 * noise)

    def model(height, income):
        beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("person", len(height)):
            pyro.sample("income", dist.Normal(beta[0] + beta[1] * height, sigma), obs=income)

    guide = pf.AutoFlow(model, start="laplace")
    guide.initialise(height, income)
    median = guide.median()
    x = torch.stack([torch.ones(1000), height], -1).double()
    least_squares = torch.linalg.lstsq(x, income.double()[:, None]).solution[:, 0]
    rest = income.double() - x @ least_squares
    sd = rest.std() * torch.linalg.inv(x.T @ x).diagonal().sqrt()
    assert ((median["beta"].double() - least_squares) / sd).abs().max() < 0.01
    assert median["sigma"].item() == pytest.approx(rest.std().item(), rel=2e-3)
    scale = guide.get_transform().parts[-1].fixed_scale
    assert torch.allclose(scale.norm(dim=-1)[:2].double(), sd, rtol=0.01)


def test_a_prior_without_draws_is_searched_from_several_points():
    def model():
        pyro.sample("flat", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(torch.tensor(0.0), 1.0), obs=torch.tensor(0.0))

    seen = []

    def start(density, inits):
        seen.extend(inits)
        return Start(inits[0], torch.ones(1), "here")

    pf.AutoFlow(model, start=start).initialise()
    assert seen[0] == 0.0
    assert len({z.item() for z in seen}) == len(seen) > 1


def centered(num=8):
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", num):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=torch.linspace(-10, 20, num))


def test_a_density_without_a_mode_still_gets_a_start():
    """The joint density of a centered hierarchy grows without bound as tau falls to zero."""
    elbos = {}
    for start in ("auto", "prior"):
        torch.manual_seed(0)
        guide = pf.AutoFlow(centered, start=start)
        guide.initialise()
        density = LogDensity(centered, guide, (), {})
        affine = guide.get_transform().parts[-1]
        scale = affine.fixed_scale * affine.log_scale.detach().exp()
        elbos[start] = gaussian_elbo(density, Start(affine.fixed_loc, scale, start))
    assert elbos["auto"] > elbos["prior"] + 1


def rats(num=30):
    """A centered hierarchy with flat priors on its scales: no mode, and many ways to collapse."""
    generator = torch.Generator().manual_seed(4)
    x = torch.tensor([-14.0, -7.0, 0.0, 7.0, 14.0])
    a, b, e = (torch.randn(num, k, generator=generator) for k in (1, 1, 5))
    y = 242.0 + 14.0 * a + (6.2 + 0.5 * b) * x + 6.0 * e

    def model():
        mean = [pyro.sample(f"mean_{k}", dist.Normal(0.0, 100.0)) for k in range(2)]
        positive = dist.ImproperUniform(constraints.positive, (), ())
        spread = [pyro.sample(f"spread_{k}", positive) for k in range(2)]
        noise = pyro.sample("noise", positive)
        with pyro.plate("rat", num):
            a = pyro.sample("a", dist.Normal(mean[0], spread[0]))
            b = pyro.sample("b", dist.Normal(mean[1], spread[1]))
            line = a[:, None] + b[:, None] * x
            pyro.sample("y", dist.Normal(line, noise).to_event(1), obs=y)

    return model


def test_a_hierarchy_without_a_mode_does_not_start_collapsed():
    torch.manual_seed(0)
    guide = pf.AutoFlow(rats())
    guide.initialise()
    median = guide.median()
    # Within what 30 rats tell: three standard errors, of 1 / sqrt(2 * 30) each.
    assert 0.5 * 0.6 < median["spread_1"].item() < 0.5 * 1.5
    assert 14.0 * 0.6 < median["spread_0"].item() < 14.0 * 1.5
    assert median["noise"].item() == pytest.approx(6.0, rel=0.25)


def test_a_model_that_raises_far_out_still_gets_a_start():
    """A Gaussian process whose covariance is singular in float32 at long length scales."""
    x = torch.linspace(0.0, 1.0, 40)
    y = torch.sin(6.0 * x)
    squares = (x[:, None] - x).square()

    def model():
        length = pyro.sample("length", dist.LogNormal(0.0, 2.0))
        noise = pyro.sample("noise", dist.LogNormal(-4.0, 2.0))
        kernel = torch.exp(-0.5 * squares / length**2) + (noise**2 + 1e-7) * torch.eye(40)
        zero = torch.zeros(40)
        pyro.sample("y", dist.MultivariateNormal(zero, kernel, validate_args=False), obs=y)

    torch.manual_seed(0)
    guide = pf.AutoFlow(model)
    guide.initialise()
    assert 0.05 < guide.median()["length"].item() < 2.0


def test_a_vague_prior_without_a_usable_median_still_gets_a_start():
    """BUGS' Gamma(0.001, 0.001): its median is a precision of 1e-300."""

    def model():
        tau = pyro.sample("tau", dist.Gamma(0.001, 0.001))
        with pyro.plate("row", 8):
            z = pyro.sample("z", dist.Normal(0.0, tau**-0.5))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.linspace(-4, 4, 8))

    torch.manual_seed(0)
    guide = pf.AutoFlow(model)
    guide.initialise()
    assert 0.5 < guide.median()["tau"].item() ** -0.5 < 6.0


@pytest.mark.parametrize(("power", "modes"), [(2, 2), (1, 1)])
def test_modes_that_the_guide_may_miss_are_reported(power, modes, caplog):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(x**power, 0.5), obs=torch.tensor(4.0))

    torch.manual_seed(0)
    pf.AutoFlow(model).initialise()
    found = [record for record in caplog.records if "found" in record.message]
    assert [f"found {modes} modes" in record.message for record in found] == [True] * (modes - 1)


def test_auto_start_falls_back_and_says_why(caplog):
    def hostile():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        # The gradient is NaN everywhere, so that no search for a mode can begin.
        pyro.factor("f", torch.sqrt(z.square().sum(-1) * 0.0))

    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        pf.AutoFlow(hostile).initialise()
    assert "fell back to a point where searches begin" in caplog.text
    with pytest.raises(pf.NotConvergedError, match='start="prior"'):
        pf.AutoFlow(hostile, start="laplace").initialise()


def test_latents_hidden_from_the_guide_do_not_mislead_the_search():
    def model():
        which = pyro.sample("which", dist.Bernoulli(0.5))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + 100 * which, 1.0), obs=torch.tensor(0.0))

    guide = pf.AutoFlow(poutine.block(model, hide=["which"]))
    guide.initialise()
    assert guide.median()["a"].abs() < 2


def test_forced_starts():
    y = normal_data()
    prior = pf.AutoFlow(
        normal_model, start="prior", init_loc_fn=init_to_value(values={"mu": torch.tensor(7.0)})
    )
    prior.initialise(y)
    assert prior.median()["mu"] == pytest.approx(7.0, abs=0.02)
    assert prior.quantiles([0.8413])["mu"] == pytest.approx(7.1, abs=0.02)

    def own(density, inits):
        assert density.input_dim == 1
        return Start(torch.tensor([3.0]), torch.tensor([0.5]), "the test")

    guide = pf.AutoFlow(normal_model, start=own)
    guide.initialise(y)
    assert guide.median()["mu"] == pytest.approx(3.0, abs=0.05)


def test_infeasible_initial_points_are_drawn_again():
    """FAULTS 50."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(z > 0.3, 0.0, -torch.inf))

    torch.manual_seed(0)
    guide = pf.AutoFlow(model, start="prior", init_loc_fn=init_to_sample)
    guide.initialise()
    assert guide.median()["z"] > 0.3


def test_many_latents_get_a_diagonal_start():
    dim = FULL_RANK_LIMIT + 20

    def model():
        pyro.sample(
            "z", dist.Normal(5.0 * torch.ones(dim), torch.linspace(0.1, 3, dim)).to_event(1)
        )

    guide = pf.AutoFlow(model, lambda d: pf.flows.realnvp(d, num_transforms=2, hidden_dims=(8,)))
    guide.initialise()
    with torch.no_grad(), pyro.plate("draws", 2000, dim=-1):
        draws = guide()["z"]
    sd = torch.linspace(0.1, 3, dim)
    assert ((draws.mean(0) - 5) / sd).abs().max() < 0.15
    assert (draws.std(0) / sd).log().abs().max() < 0.1


def test_many_points_are_scored_as_one_by_one_is():
    x, y = regression_data()
    guide = ready(regression_model, x, y, flow="planar")
    density = LogDensity(regression_model, guide, (x, y), {})
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(density.at_many(points), torch.stack([density(z) for z in points]))


def test_a_model_that_reads_values_is_scored_point_by_point():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(float(z.item() > 0)))

    guide = ready(model, flow="planar", start="prior")
    density = LogDensity(model, guide, (), {})
    points = torch.tensor([[-1.0], [1.0], [2.0]])
    assert torch.equal(density.at_many(points), torch.stack([density(z) for z in points]))


def test_a_search_that_raises_does_not_lose_the_others(caplog):
    """Far out the model raises, as a factorisation of a matrix does."""
    caplog.set_level("INFO", "pyro_flows")

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if torch.is_grad_enabled() and float(x.detach()) > 5.0:
            raise ValueError("not positive definite")

    inits = [torch.tensor([9.0]), torch.tensor([1.0])]
    start = laplace_start(density_of(model), inits)
    assert start.loc.item() == pytest.approx(0.0, abs=1e-4)
    assert "a search for a mode ended" in caplog.text
