"""Huge, infinite and undefined points, and parameters at their limits."""

import contracts
import pytest
import torch
import zoo

from pyro_flows.distributions import Flow
from pyro_flows.transforms import AffineAutoregressive, AffineCoupling, Planar

NUM_POINTS = 40


def _case(name, c, x):
    transform = zoo.build(name, x.shape[-1], c, dtype=x.dtype)
    return transform, x, zoo.context_for(transform, dtype=x.dtype)


def _huge(exponent, d, *, alone):
    """Return points of that magnitude, in every coordinate or in the first one alone."""
    x = zoo.points(NUM_POINTS, d, dtype=torch.float32, scale=1.0)
    huge = x.sign() * 10.0**exponent
    return torch.cat([huge[:, :1], x[:, 1:]], -1) if alone else huge


@pytest.mark.parametrize(("name", "c"), zoo.rows(zoo.FINITE))
def test_huge_points_stay_finite(name, c):
    """FAULTS 15: values, log-determinants and gradients from 1e2 to 1e30, in float32."""
    for exponent in range(2, 31, 4):
        for alone in (False, True):
            case = _case(name, c, _huge(exponent, 3, alone=alone))
            contracts.finite_at(*case)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_huge_points_come_back(name, d):
    """FAULTS 15: the round trip is exact relative to a row's largest entry."""
    for exponent in range(2, 31, 4):
        contracts.relative_round_trip(*_case(name, 0, _huge(exponent, d, alone=False)))


@pytest.mark.parametrize("name", zoo.FINITE)
def test_any_magnitude_stays_finite(name):
    """FAULTS 15: points of 10^U(-30, 30), both zeros, and the smallest numbers."""
    generator = torch.Generator().manual_seed(5)
    exponents = torch.rand(200, 3, generator=generator) * 60 - 30
    signs = torch.rand(200, 3, generator=generator).sub(0.5).sign()
    limits = torch.finfo(torch.float32)
    special = torch.tensor([0.0, -0.0, limits.tiny, limits.smallest_normal / 8, -limits.tiny, 1.0])
    x = torch.cat([signs * 10**exponents, torch.cartesian_prod(special, special, special)])
    contracts.finite_at(*_case(name, 0, x))


def test_density_of_huge_points_is_finite_or_minus_infinity():
    """FAULTS 15: finite, with its gradient, up to the root of the largest number; then -inf."""
    flow = Flow(AffineCoupling(2))
    for exponent in range(2, 31):
        x = torch.full((2,), 10.0**exponent, requires_grad=True)
        log_prob = flow.log_prob(x)
        if exponent <= 19:
            contracts.finite(log_prob, "log-density", inputs=x)
            assert torch.equal(torch.autograd.grad(log_prob, x)[0], -x.detach())
        else:
            assert log_prob == -torch.inf


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize(("name", "c"), zoo.rows())
def test_faulty_row_stays_alone(name, c, fault):
    """FAULTS 16, 17: whichever coordinate holds the fault."""
    for coordinate in range(3):
        x = zoo.points(6, 3)
        x[0, coordinate] = fault
        contracts.faulty_row_stays_alone(*_case(name, c, x))


@pytest.mark.parametrize("name", zoo.names(2))
def test_nan_in_the_context_is_not_hidden(name):
    """FAULTS 16: a NaN in one row's context leaves the other rows alone."""
    transform, x = zoo.build(name, 3, 2), zoo.points(6, 3)
    context = zoo.context_for(transform, 6)
    clean = Flow(transform).condition(context).log_prob(x)
    context = context.clone()
    context[0, 1] = torch.nan
    log_prob = Flow(transform).condition(context).log_prob(x)
    assert log_prob[0].isnan()
    contracts.close(log_prob[1:], clean[1:], "log-density of the other rows", inputs=x[1:])


@pytest.mark.parametrize("raw", [1e8, -1e8, 1e30, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [AffineCoupling, AffineAutoregressive])
def test_log_scale_is_bounded_for_any_raw_value(kind, raw):
    """FAULTS 22: what the network puts out is squashed, never clipped to nonsense."""
    transform = kind(3, hidden_dims=(8,))
    last = transform.conditioner.layers[-1]
    with torch.no_grad():
        last.bias.chunk(2)[1].fill_(raw)
    x = zoo.points(5, 3, dtype=torch.float32)
    for _, direction in contracts.directions(transform):
        value, ladj = direction(x)
        contracts.finite(value, "value", inputs=x)
        assert (ladj.abs() <= 3 * transform.univariate.log_scale_bound + 1e-5).all()
        assert (ladj.abs() > 2).all()


@pytest.mark.parametrize("kind", [AffineCoupling, AffineAutoregressive])
def test_nan_log_scale_stays_nan(kind):
    """FAULTS 16, 22: a bound must not turn a NaN of the network into a number."""
    transform = kind(3, hidden_dims=(8,))
    with torch.no_grad():
        transform.conditioner.layers[-1].bias.fill_(torch.nan)
    for _, direction in contracts.directions(transform):
        assert direction(torch.zeros(3))[1].isnan()


@pytest.mark.parametrize("direction", [0.0, 1e-30, 1.0, -1.0, -1e4])
@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-12, 1.0, 1e3])
def test_planar_survives_any_parameters(weight, direction):
    """FAULTS 25: a vanishing normal, and a bend at the limit of invertibility."""
    transform = Planar(3)
    with torch.no_grad():
        transform.weight.fill_(weight)
        transform.direction.fill_(direction)
    x = zoo.points(100, 3, dtype=torch.float32)
    contracts.finite_at(transform, x, None)
    y, _ = transform.forward_and_ladj(x)
    back, inverse_ladj = transform.inverse_and_ladj(y)
    contracts.finite(back, "inverse", inputs=x)
    contracts.finite(inverse_ladj, "inverse ladj", inputs=x)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_planar_inverse_converges_at_the_steepest_bend(size):
    """FAULTS 25, 28: the slope falls to a thousandth; the iteration still ends at the root."""
    transform = Planar(1).double()
    with torch.no_grad():
        transform.weight.fill_(size)
        transform.direction.fill_(-1e3 / size)
        transform.bias.fill_(0.3)
    y = torch.cat([torch.linspace(-3, 3, 2001), torch.logspace(-12, 8, 201)]).double()[:, None]
    x, _ = transform.inverse_and_ladj(y / size)
    contracts.close(transform(x), y / size, "forward of inverse", inputs=y / size)
