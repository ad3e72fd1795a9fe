"""The bases of flows: densities against references, draws and their gradients, and extremes."""

import math

import bases
import contracts
import pytest
import scipy.stats
import torch
import zoo

from pyro_flows.distributions import (
    Box,
    DiagonalNormal,
    GaussianMixture,
    StandardLogistic,
    StudentT,
)
from pyro_flows.errors import DomainError

DTYPES = [torch.float32, torch.float64]
EVERY = pytest.mark.parametrize("name", bases.BASES)
EVERY_TRAINED = pytest.mark.parametrize("name", bases.TRAINED)


def _reference(base, x):
    """Return the log-density as SciPy has it."""
    x = x.numpy()
    if isinstance(base, Box):
        low, high = base.low.numpy(), base.high.numpy()
        return scipy.stats.uniform(low, high - low).logpdf(x).sum(-1)
    if isinstance(base, StudentT):
        return scipy.stats.t(base.df.detach().numpy()).logpdf(x).sum(-1)
    if isinstance(base, StandardLogistic):
        return scipy.stats.logistic().logpdf(x).sum(-1)
    if isinstance(base, GaussianMixture):
        locs, scales = base.locs.detach().numpy(), base.log_scales.exp().detach().numpy()
        terms = scipy.stats.norm(locs, scales).logpdf(x[..., None, :]).sum(-1)
        weights = base.logits.softmax(-1).detach().numpy()
        return scipy.special.logsumexp(terms, axis=-1, b=weights)
    if isinstance(base, DiagonalNormal):
        scale = base.log_scale.exp().detach().numpy()
        return scipy.stats.norm(base.loc.detach().numpy(), scale).logpdf(x).sum(-1)
    return scipy.stats.norm().logpdf(x).sum(-1)


@pytest.mark.parametrize("d", [1, 3])
@EVERY
def test_log_density_is_scipys(name, d):
    base = bases.build(name, d)
    x = torch.cat([bases.points(base, 50), zoo.points(50, d, scale=5.0)])
    want = torch.as_tensor(_reference(base, x))
    contracts.close(base.log_prob(x).detach(), want, "log-density", inputs=x)


@pytest.mark.parametrize("df", [1.01, 1.5, 30.0, 1e3, 1e4])
def test_student_is_scipys_for_any_df(df):
    """In float32 as well, where the two log-gammas would cancel."""
    x = torch.tensor([[0.0], [0.3], [1.0], [-4.0], [50.0], [1e6]])
    want = torch.as_tensor(scipy.stats.t(df).logpdf(x.double().numpy()).sum(-1)).float()
    contracts.close(StudentT(1, df=df).log_prob(x).detach(), want, "log-density", inputs=x)


def test_student_at_its_scale():
    """Where the two forms of log(1 + r^2) meet, the gradient is that of one of them."""
    x = contracts.leaf(torch.full((1,), math.sqrt(5.0), dtype=torch.float64))
    base = StudentT(1).double()
    (gradient,) = torch.autograd.grad(base.log_prob(x), x)
    assert gradient.item() == pytest.approx(-6 * x.item() / (5 + x.item() ** 2))


@EVERY
def test_gradients_of_the_log_density_are_those_of_differences(name):
    """Of points and parameters, to the second order."""
    base = bases.build(name)
    keys = [key for key, _ in base.named_parameters()]

    def value(x, *values):
        given = dict(zip(keys, values, strict=True))
        return torch.func.functional_call(bases.Scorer(base), bases.prefixed(given), (x,))

    leaves = [contracts.leaf(tensor) for tensor in (bases.points(base, 3), *base.parameters())]
    assert torch.autograd.gradcheck(value, leaves)
    if name != "box":
        assert torch.autograd.gradgradcheck(value, leaves)


@EVERY
def test_density_integrates_to_one(name):
    """In one dimension, out to 1e13 on a grid that widens with the distance."""
    base = bases.build(name, 1)
    u = torch.linspace(-31.0, 31.0, 200_001, dtype=torch.float64)
    with torch.no_grad():
        density = base.log_prob(torch.sinh(u)[:, None]).exp() * torch.cosh(u)
    assert torch.trapezoid(density, u).item() == pytest.approx(1, abs=1e-3)


# Draws.


@EVERY
def test_draws_have_the_moments_of_the_density(name):
    base = bases.build(name, 1) if name != "student" else StudentT(1, df=7.0).double()
    x = base.expand((3,)).sample((100_000,))
    u = torch.linspace(-31.0, 31.0, 100_001, dtype=torch.float64)
    with torch.no_grad():
        grid = torch.sinh(u)
        mass = base.log_prob(grid[:, None]).exp() * torch.cosh(u)
    for power in (1, 2):
        want = torch.trapezoid(mass * grid**power, u).item()
        spread = x.pow(power).std(0) / len(x) ** 0.5
        z = (x.pow(power).mean(0) - want) / spread
        assert z.abs().max() < 4.5, f"moment {power}: {x.pow(power).mean(0)}, expected {want}"


@pytest.mark.parametrize("d", [1, 2])
@EVERY_TRAINED
def test_gradients_of_draws_are_unbiased(name, d):
    """Against the derivative of an integral on a grid, for a function that ends well inside."""
    base, side = bases.build(name, d), torch.linspace(-9.0, 9.0, 181, dtype=torch.float64)
    parameters = list(base.parameters())

    def bump(x):
        return torch.exp(-0.5 * (x - 0.7).square().sum(-1)) * torch.sin(x.sum(-1) + 0.3)

    grid = torch.stack(torch.meshgrid(*[side] * d, indexing="ij"), -1)
    integral = (bump(grid) * base.log_prob(grid).exp()).sum() * (side[1] - side[0]) ** d
    want = torch.cat([g.flatten() for g in torch.autograd.grad(integral, parameters)])
    runs = [
        torch.cat([g.flatten() for g in torch.autograd.grad(bump(x).mean(), parameters)])
        for x in (base.rsample((4000,)) for _ in range(100))
    ]
    got = torch.stack(runs)
    z = (got.mean(0) - want) / (got.std(0) / len(got) ** 0.5)
    assert want.abs().max() > 1e-3
    assert z.abs().max() < 4.5, f"{got.mean(0)}, expected {want}"


@pytest.mark.parametrize("d", [1, 4])
def test_gradients_of_draws_of_a_mixture_are_the_closed_form(d):
    """The mean of a cosine is that of its components, by their characteristic functions."""
    base, direction = bases.build("mixture", d, scale=0.8), zoo.points(d, scale=1.0)
    weights, scales = base.logits.softmax(-1), base.log_scales.exp()
    damping = torch.exp(-0.5 * (scales * direction).square().sum(-1))
    mean = (weights * torch.cos(base.locs @ direction + 0.3) * damping).sum()
    parameters = list(base.parameters())
    want = torch.cat([g.flatten() for g in torch.autograd.grad(mean, parameters)])
    runs = []
    for _ in range(100):
        value = torch.cos(base.rsample((4000,)) @ direction + 0.3).mean()
        runs.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    got = torch.stack(runs)
    z = (got.mean(0) - want) / (got.std(0) / len(got) ** 0.5)
    assert z.abs().max() < 4.5
    assert z.square().mean() < 2


def test_mixture_of_equal_components_is_one():
    """The weights then move no draw, and the locations share the gradient."""
    base = GaussianMixture(2, 4).double()
    with torch.no_grad():
        base.locs.fill_(0.5)
    base.rsample((10,)).sum().backward()
    assert base.logits.grad.abs().max() < 1e-12
    contracts.close(base.locs.grad, torch.full((4, 2), 2.5).double(), "gradient of the locations")


@pytest.mark.parametrize("gap", [20.0, 1e10])
def test_mixture_of_distant_components(gap):
    """Gradients stay finite where no draw is between them; also with scales far apart."""
    base = GaussianMixture(2, 2)
    with torch.no_grad():
        base.locs.copy_(torch.tensor([[-gap, 0.0], [gap, 0.0]]))
        base.log_scales.copy_(torch.tensor([[-40.0, 0.0], [3.0, 20.0]]))
    x = base.rsample((1000,))
    assert {True, False} == set((x[:, 0] > 0).tolist())
    (x.sum() + base.log_prob(x.detach()).sum()).backward()
    for key, parameter in base.named_parameters():
        contracts.finite(parameter.grad, f"gradient of {key}")


def test_mixture_starts_at_unit_variance():
    base = GaussianMixture(3, 4)
    mean, square = base.locs.mean(0), (base.locs.square() + base.log_scales.exp() ** 2).mean(0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-6)
    assert torch.allclose(square, torch.ones(3), atol=1e-6)
    assert (base.locs[0] - base.locs[1]).abs().max() > 1e-3


def test_second_derivative_of_a_draw_of_a_mixture_is_refused():
    base = GaussianMixture(2, 2)
    x = base.rsample((3,)).square().sum()
    (gradient,) = torch.autograd.grad(x, base.logits, create_graph=True)
    with pytest.raises(DomainError, match="GaussianMixture: expected no more than the first"):
        gradient.square().sum().backward()


# Extremes and faults.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY
def test_points_of_any_magnitude(name, dtype):
    """FAULTS 15: never a NaN; for the Student-t always finite, else to the root of the range."""
    base = bases.build(name, 3, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    exponents = torch.rand(400, 3, generator=generator) * 60 - 30
    signs = torch.rand(400, 3, generator=generator).sub(0.5).sign()
    alone = torch.tensor([1e30, 1e-30, 0.0, -0.0, 1e19, -1e30])
    x = torch.cat([signs * 10**exponents, torch.cartesian_prod(alone, alone, alone)]).to(dtype)
    x = contracts.leaf(x)
    log_prob = base.log_prob(x)
    log_prob.sum().backward()
    assert not log_prob.isnan().any()
    contracts.finite(x.grad, "gradient of the points", inputs=x)
    near = x.detach().abs().amax(-1) < 1e18
    if name != "box":
        contracts.finite(log_prob[near], "log-density", inputs=x[near])
        assert (log_prob.isfinite() | (log_prob == -torch.inf)).all()
    if name == "student":
        contracts.finite(log_prob, "log-density", inputs=x)
        contracts.finite(base.raw_df.grad, "gradient of the degrees of freedom")


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
@EVERY
def test_faulty_row_stays_alone(name, fault):
    """FAULTS 16, 17: a NaN stays one, and an infinity has no density."""
    base = bases.build(name)
    x = bases.points(base, 4)
    clean = base.log_prob(x)
    x[0, 1] = fault
    x = contracts.leaf(x)
    log_prob = base.log_prob(x)
    assert log_prob[0].isnan() if math.isnan(fault) else log_prob[0] == -torch.inf
    contracts.close(log_prob[1:], clean[1:], "log-density of the other rows", inputs=x)
    log_prob[1:].sum().backward()
    contracts.finite(x.grad[1:], "gradient of the other rows", inputs=x)


@pytest.mark.parametrize("raw", [1e4, -1e4, torch.inf])
def test_df_stays_in_its_range(raw):
    """FAULTS 22."""
    base = StudentT(2)
    base.raw_df.data.fill_(raw)
    assert ((base.df > 1) & (base.df < 1e5)).all()
    x = base.rsample((100,))
    contracts.finite(x, "draws")
    contracts.finite(base.log_prob(x), "log-density", inputs=x)


def test_box_holds_its_faces_and_its_draws():
    base = Box(2, low=-1.0, high=3.0)
    assert base.support.check(base.sample((1000,))).all()
    inside, beyond = torch.tensor([-1.0, 3.0]), torch.tensor([-1.0001, 3.0])
    assert base.log_prob(inside).item() == pytest.approx(-2 * math.log(4.0))
    assert base.log_prob(beyond) == -torch.inf
    assert (base.support.check(inside), base.support.check(beyond)) == (True, False)
