"""The numerical kernels, against exact values and autodiff."""

import math

import contracts
import pytest
import torch

from pyro_flows import numerics

DTYPES = [torch.float32, torch.float64]
SIZES = [0.0, 1e-30, 1e-8, 0.1, 1.0, 9.1, 20.0, 88.0, 710.0, 1e4, 1e8, 1e30, 3e38]


def _both_signs(dtype):
    return torch.tensor([sign * size for size in SIZES for sign in (1.0, -1.0)], dtype=dtype)


@pytest.mark.parametrize("bound", [0.1, 3.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_bound_is_bounded_odd_and_increasing(dtype, bound):
    """FAULTS 22: also where a clamp that keeps gradients would turn 1e8 into zero."""
    x = torch.linspace(-5 * bound, 5 * bound, 1001, dtype=dtype)
    y = numerics.soft_bound(x, bound)
    assert (y.diff() > 0).all()
    assert torch.equal(y, -numerics.soft_bound(-x, bound))
    huge = numerics.soft_bound(_both_signs(dtype), bound)
    assert (huge.abs() <= bound * (1 + torch.finfo(dtype).eps)).all()
    assert numerics.soft_bound(torch.tensor(1e8), bound) == pytest.approx(bound)


def test_soft_bound_keeps_small_values_and_faults():
    """FAULTS 16, 22."""
    x = torch.tensor([1e-4, 0.0, torch.inf, -torch.inf, torch.nan])
    y = numerics.soft_bound(x, 3.0)
    assert torch.allclose(y[:2], x[:2])
    assert y[2:4].tolist() == [3.0, -3.0]
    assert y[4].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_bound_slope_is_its_derivative(dtype):
    """FAULTS 24: saturation has the slope zero, never less and never a NaN."""
    x = contracts.leaf(torch.cat([_both_signs(dtype), torch.linspace(-9, 9, 101, dtype=dtype)]))
    y = numerics.soft_bound(x, 3.0)
    want = torch.autograd.grad(y.sum(), x)[0]
    contracts.close(numerics.soft_bound_slope(y.detach(), 3.0), want, "slope", inputs=x.detach())
    assert (want >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_sech_square_is_exact_where_tanh_saturates(dtype):
    """FAULTS 24: the form log(1 - tanh^2) is minus infinity from 9 (float32) or 19 on."""
    x = _both_signs(dtype)
    size = x.double().abs()
    want = 2 * (math.log(2) - size - torch.exp(-2 * size).log1p())
    contracts.close(numerics.log_sech_square(x), want.to(dtype), "log sech^2", inputs=x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_sech_square_has_finite_derivatives(dtype):
    """FAULTS 24: the first is -2 tanh, the second -2 sech^2, at zero as well."""
    x = contracts.leaf(
        torch.cat([_both_signs(dtype)[:-2], torch.linspace(-9, 9, 101, dtype=dtype)])
    )
    first = torch.autograd.grad(numerics.log_sech_square(x).sum(), x, create_graph=True)[0]
    contracts.close(first.detach(), -2 * x.detach().tanh(), "first derivative", inputs=x.detach())
    second = torch.autograd.grad(first.sum(), x)[0]
    want = -2 * numerics.log_sech_square(x.detach()).exp()
    contracts.close(second, want, "second derivative", inputs=x.detach())


def test_log_sech_square_keeps_a_nan():
    """FAULTS 16."""
    assert numerics.log_sech_square(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widen_is_float32_at_least(dtype, wide):
    """FAULTS 7."""
    x = torch.ones(3, 2, dtype=dtype)
    assert numerics.widen(x).dtype == wide
    ladj = numerics.zero_ladj(x)
    assert (ladj.dtype, ladj.tolist()) == (wide, [0, 0, 0])
