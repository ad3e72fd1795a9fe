"""Sum-of-squares polynomial flows: the integral, its joints with the linear tails, its limits."""

import contracts
import numpy
import pytest
import torch
import zoo

from pyro_flows.transforms import SumOfSquares

DTYPES = [torch.float32, torch.float64]
SCALES = [0.4, 1.0, 3.0]
MAPS = {
    "line": SumOfSquares(1, 1),
    "parabola": SumOfSquares(2, 3),
    "default": SumOfSquares(),
    "high": SumOfSquares(9, 4, bound=2.0),
}
EVERY = pytest.mark.parametrize("univariate", MAPS.values(), ids=MAPS)


def _case(univariate, scale, *, count=300, dtype=torch.float64):
    params = zoo.points(univariate.num_params, count, dtype=dtype, scale=scale, seed=2)
    return zoo.points(count, dtype=dtype, scale=3.0), params


@EVERY
@pytest.mark.parametrize("scale", SCALES)
def test_map_is_the_integral_of_its_slope(univariate, scale):
    """By the trapezoidal rule over a fine grid, also across the bound."""
    _, params = _case(univariate, scale, count=20)
    x = torch.linspace(-6, 6, 6001).double()[:, None].expand(-1, 20)
    y, ladj = univariate.forward_and_ladj(x, params)
    integral = torch.cumulative_trapezoid(ladj.exp(), x, dim=0)
    assert torch.allclose(y[1:] - y[:1], integral, rtol=1e-4, atol=1e-4)


@EVERY
def test_slope_is_a_sum_of_squares(univariate):
    """By the formulae as they stand, from Legendre's polynomials of numpy."""
    _, params = _case(univariate, 0.4, count=1)
    t = torch.linspace(-1, 1, 50).double()
    count, width = univariate.num_polynomials, univariate.degree + 1
    share = 0.02 if count > 1 else 0.0
    coefficients = torch.tanh(params[:-1, 0]).view(count, width).T.numpy()
    values = torch.from_numpy(numpy.polynomial.legendre.legval(t.numpy(), coefficients))
    rest = torch.full_like(t, 0.001 + share)
    values[0] += (1 - 0.001 - share) ** 0.5
    for k in range(1, count):
        values[k] += (share / (count - 1)) ** 0.5 * t**k
        rest = rest - share / (count - 1) * t ** (2 * k)
    _, ladj = univariate.forward_and_ladj(t * univariate.bound, params.expand(-1, 50))
    assert torch.allclose(ladj.exp(), values.square().sum(0) + rest)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_at_the_identity_to_rounding(univariate, dtype):
    """FAULTS 34: at any magnitude; a slope is one as well."""
    x = torch.cat([zoo.points(100, dtype=dtype), torch.tensor([4.0, -1e30, 1e30], dtype=dtype)])
    y, ladj = univariate.forward_and_ladj(x, x.new_zeros(univariate.num_params, len(x)))
    eps = torch.finfo(dtype).eps
    assert torch.allclose(y, x, rtol=16 * eps, atol=16 * eps)
    assert ladj.abs().max() < 16 * eps


def test_polynomials_differ_at_the_start():
    """Each has gradients of its own, or it would stay where it is, or with another."""
    univariate = SumOfSquares(3, 3)
    params = torch.zeros(univariate.num_params, 1, requires_grad=True)
    _, ladj = univariate.forward_and_ladj(torch.tensor([1.3]), params)
    gradients = torch.autograd.grad(ladj.sum(), params)[0][:-1, 0].view(3, 4)
    assert (gradients.abs() > 1e-3).any(1).all()
    assert (gradients[:, None] - gradients).abs().amax(-1).fill_diagonal_(1).min() > 1e-3


@EVERY
@pytest.mark.parametrize("scale", SCALES)
def test_log_slope_is_autodiffs(univariate, scale):
    """FAULTS 33: inside the bound, outside, and far away."""
    x, params = _case(univariate, scale)
    x = torch.cat([x[:200], x[200:] * 1e29]).requires_grad_()
    y, ladj = univariate.forward_and_ladj(x, params)
    slope = torch.autograd.grad(y.sum(), x)[0]
    contracts.close(ladj.detach(), slope.log(), "log-slope", inputs=x.detach(), slack=10)


@EVERY
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_tails_join_smoothly(univariate, sign):
    """FAULTS 18: value and slope, on the bound and one number to either side."""
    _, params = _case(univariate, 1.0)
    edge = torch.full((300,), sign * univariate.bound).double()
    values = [
        univariate.forward_and_ladj(torch.nextafter(edge, edge * scale), params)
        for scale in (0.0, 1.0, 2.0)
    ]
    for y, ladj in values:
        assert torch.allclose(y, values[1][0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(ladj, values[1][1], atol=1e-10)
    far, far_ladj = univariate.forward_and_ladj(edge * 1e3, params)
    assert torch.allclose(far_ladj, values[1][1])
    assert torch.allclose(far - values[1][0], 999 * edge * far_ladj.exp())


@EVERY
@pytest.mark.parametrize("raw", [1e8, -1e8, 1e30, -1e30])
def test_slope_stays_within_what_is_stated(univariate, raw):
    """FAULTS 22, 28: at saturated coefficients of equal and of mixed signs."""
    x, params = _case(univariate, 1.0, dtype=torch.float32, count=50)
    x = x.requires_grad_()
    width = (univariate.degree + 1) * univariate.coefficient_bound
    most = univariate.num_polynomials * (1 + width) ** 2 + 1
    for every in (1, 2, 3):
        wild = params.clone()
        wild[:-1:every] = raw
        wild.requires_grad_()
        y, ladj = univariate.forward_and_ladj(x, wild)
        assert (ladj.exp() >= 0.00099).all()
        assert (ladj.exp() <= most).all()
        for result in (y, ladj, *torch.autograd.grad(y.sum() + ladj.sum(), [x, wild])):
            contracts.finite(result, "result")
        contracts.finite(univariate.inverse(y.detach(), wild.detach()), "inverse")


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e2, 1e6, 1e30])
def test_every_target_has_its_root(univariate, size, scale, dtype):
    """FAULTS 15, 28."""
    y, params = _case(univariate, scale, dtype=dtype)
    y = y.sign() * size
    x = univariate.inverse(y, params)
    value, ladj = univariate.forward_and_ladj(x, params)
    error = (value - y).abs() / (1 + y.abs() + x.abs() * ladj.exp())
    assert error.max() <= 64 * torch.finfo(dtype).eps


@EVERY
def test_inverse_beyond_the_bound_is_exact(univariate):
    """FAULTS 28: the map is linear there, and no search is needed."""
    x, params = _case(univariate, 1.0)
    x = x.sign() * univariate.bound * (1 + x.abs())
    y, ladj = univariate.forward_and_ladj(x, params)
    back, inverse_ladj = univariate.inverse_and_ladj(y, params)
    assert torch.allclose(back, x, rtol=1e-12)
    assert torch.allclose(inverse_ladj, -ladj, atol=1e-12)


def test_transform_at_large_weights():
    """FAULTS 33: both directions and triangularity, where rows are well conditioned."""
    transform = zoo.build("polynomial_autoregressive", 4, scale=1.0)
    x = zoo.points(50, 4)
    matrix = contracts.jacobian(transform.forward_and_ladj, x, None)
    x = x[torch.linalg.cond(matrix) < 1e6]
    assert len(x) > 25
    contracts.round_trip(transform, x, None)
    contracts.ladj_is_slogdet(transform, x, None)
    contracts.autoregressive(transform, x, None)
