"""Gaussians in the unconstrained space: their ELBO, and how they climb it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import density_of, normal_data, normal_model
from pyro.distributions import constraints

from pyro_flows.infer import Start
from pyro_flows.infer.guides.gaussian import ClimbingGaussian, gaussian_elbo

CURVATURE = torch.tensor([[4.0, 1.9, 0.0], [1.9, 1.0, 0.0], [0.0, 0.0, 1e-6]]).double()


def test_gaussian_elbo_against_its_closed_form():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))

    loc, scale = torch.tensor([0.5, 0.0, -1.0]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    kl = 0.5 * float((scale**2 + loc**2 - 1 - 2 * scale.log()).sum())
    errors = [
        gaussian_elbo(density_of(model), start) + kl
        for start in (Start(loc, scale, ""), Start(loc, scale.diag(), ""))
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-9)
    # 32 antithetic draws, each with the error sum (scale^2 - 1) (eps^2 - 1) / 2.
    assert abs(errors[0]) < 4 * math.sqrt(float(((scale**2 - 1) ** 2).sum()) / 32)


def correlated():
    """Return a density, of the evidence 0.5, with a mean in the thousands."""

    def model():
        mean = torch.tensor([1.0, -2.0, 3000.0]).double()
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (3,)))
        normal = dist.MultivariateNormal(mean, precision_matrix=CURVATURE, validate_args=False)
        pyro.factor("p", normal.log_prob(z) + 0.5)

    return density_of(model)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_climbing_gaussian_arrives_where_the_best_one_is(diagonal):
    """The best diagonal precision is the diagonal of the precision."""
    scale = torch.full((3,), 0.1).double()
    start = Start(torch.zeros(3).double(), scale if diagonal else scale.diag_embed(), "zero")
    climbing = ClimbingGaussian(correlated(), start, torch.Generator().manual_seed(0))
    climbing.climb(200)
    found = climbing.result()
    expected = CURVATURE.diagonal().rsqrt() if diagonal else CURVATURE.inverse()
    ours = found.scale if diagonal else found.scale @ found.scale.T
    rtol = 0.1 if diagonal else 1e-3
    assert torch.allclose(ours, expected, rtol=rtol, atol=1e-3)
    kl = 0.5 * float(CURVATURE.diagonal().log().sum() - CURVATURE.logdet()) if diagonal else 0.0
    assert climbing.elbo == pytest.approx(0.5 - kl, abs=0.05 if diagonal else 1e-4)
    assert f"{climbing.elbo:.5g}, fitted from zero" in found.origin


def test_a_climbing_gaussian_survives_a_density_that_ends():
    """Draws beyond the edge have a log-density of minus infinity, and gradients of no use."""

    def model():
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        inside = z.abs().max(-1).values < 30.0
        value = torch.where(inside, -0.5 * z.square().sum(-1), -torch.inf)
        pyro.factor("p", torch.where(inside, value, torch.nan))

    density = density_of(model)
    wide = Start(torch.zeros(2), 1e4 * torch.eye(2), "too wide")
    climbing = ClimbingGaussian(density, wide, torch.Generator().manual_seed(0))
    climbing.climb(10)
    assert climbing.result() is None
    fair = Start(torch.full((2,), 20.0), torch.eye(2), "inside")
    climbing = ClimbingGaussian(density, fair, torch.Generator().manual_seed(0))
    climbing.climb(100)
    assert climbing.elbo == pytest.approx(math.log(2 * math.pi), abs=1e-3)


class Cliff:
    """A log-density that is finite but at the first points it is asked for."""

    def __init__(self):
        self._asked = 0

    def peak_memory(self, z):
        return 1

    def values_and_grads(self, points):
        self._asked += 1
        value = 0.0 if self._asked == 1 else -math.inf
        return torch.full_like(points[:, 0], value), torch.ones_like(points)


def test_gaussian_that_has_not_moved_trains_in_the_units_it_began_with():
    start = start_of(2)
    generator = torch.Generator().manual_seed(0)
    climbing = ClimbingGaussian(Cliff(), start, generator)
    assert climbing.result() is None
    climbing.climb(5)
    assert torch.equal(climbing.result().scale, start.scale)
    assert not climbing.result().whitened
    climbing = ClimbingGaussian(density_of(normal_model, normal_data()), start_of(1), generator)
    climbing.climb(5)
    assert climbing.result().whitened


def start_of(size):
    return Start(torch.zeros(size), torch.full((size,), 0.1), "somewhere", whitened=False)


def test_draws_are_evaluated_in_chunks_where_an_evaluation_takes_much_memory():
    """A matrix of the rows by the rows counts, though its density is one number."""

    def process(x):
        rho = pyro.sample("rho", dist.LogNormal(0.0, 1.0))
        cov = (-(x[:, None] - x).square() / rho).exp() + torch.eye(len(x))
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(len(x)), cov), obs=torch.zeros(len(x))
        )

    sizes = []
    for number in (20, 200):
        x = torch.linspace(0.0, 1.0, number)
        sizes.append(density_of(process, x).peak_memory(torch.zeros(1)))
    assert sizes[1] > 4 * 200 * 200
    assert 50 < sizes[1] / sizes[0] < 200
