"""Rational-quadratic splines: their formulas, their knots, their limits, and angles."""

import math

import contracts
import pytest
import torch
import zoo

from pyro_flows.errors import DomainError
from pyro_flows.transforms import (
    Autoregressive,
    CircularSpline,
    Compose,
    Coupling,
    Elementwise,
    ElementwiseSpline,
    RationalQuadraticSpline,
    SplineAutoregressive,
    SplineCoupling,
)

DTYPES = [torch.float32, torch.float64]
LINE, CIRCLE = RationalQuadraticSpline(bound=2.0), CircularSpline()
BOTH = pytest.mark.parametrize("spline", [LINE, CIRCLE], ids=["line", "circle"])


def _params(spline, *batch, scale=1.0, dtype=torch.float64, seed=3):
    shape = (*batch[:-1], spline.num_params, *batch[-1:])
    return zoo.points(*shape, dtype=dtype, scale=scale, seed=seed)


def _knots(spline, params):
    """Return the knots and their slopes by the formulas of the paper, from (K, n) parameters."""
    bins, m = spline.count_bins, spline.min_bin_size
    if spline is CIRCLE:
        params = params[1:]
    sizes = m + (1 - bins * m) * params[: 2 * bins].unflatten(0, (2, bins)).softmax(1)
    ends = torch.nn.functional.pad(sizes.cumsum(1), (0, 0, 1, 0))
    e = params[2 * bins :].exp()
    slopes = (e + spline.min_slope) / (1 + spline.min_slope * e)
    one = torch.ones_like(slopes[:1])
    slopes = torch.cat([slopes, slopes[:1]] if spline is CIRCLE else [one, slopes, one])
    return *((2 * ends - 1) * spline.bound), slopes


def _by_the_paper(spline, x, params):
    """Durkan et al. (2019), equations 4-5, as printed, for x of shape (n,) between the bounds."""
    left, low, slopes = _knots(spline, params)
    k = (x >= left[1:-1]).sum(0)[None]

    def at(values, k):
        return values.gather(0, k)[0]

    width, height = at(left, k + 1) - at(left, k), at(low, k + 1) - at(low, k)
    d0, d1, s, xi = at(slopes, k), at(slopes, k + 1), height / width, (x - at(left, k)) / width
    beta = s + (d1 + d0 - 2 * s) * xi * (1 - xi)
    y = at(low, k) + height * (s * xi**2 + d0 * xi * (1 - xi)) / beta
    slope = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / beta**2
    if spline is CIRCLE:
        y = (y + params[0] + spline.bound) % (2 * spline.bound) - spline.bound
    return y, slope.log()


def _gradients(outputs, *inputs):
    return torch.autograd.grad(sum(out.sin().sum() for out in outputs), inputs)


def _inside(spline, *shape, dtype=torch.float64, part=0.99):
    generator = torch.Generator().manual_seed(4)
    unit = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (part * spline.bound * (2 * unit - 1)).to(dtype)


@BOTH
def test_values_and_gradients_are_those_of_the_paper(spline):
    """The gradients are written out: autodiff of the formulas, as printed, checks them."""
    x, params = _inside(spline, 500).requires_grad_(), _params(spline, 500).requires_grad_()
    got, want = spline.forward_and_ladj(x, params), _by_the_paper(spline, x, params)
    for a, b in zip(
        (*got, *_gradients(got, x, params)), (*want, *_gradients(want, x, params)), strict=True
    ):
        contracts.close(a, b, "value or gradient", inputs=x)


@BOTH
def test_all_derivatives(spline):
    """FAULTS 33: first and second ones of both directions, in reverse and in forward mode."""
    x, params = _inside(spline, 2, 3).requires_grad_(), _params(spline, 2, 3).requires_grad_()
    for run in (spline.forward_and_ladj, spline.inverse_and_ladj):
        assert torch.autograd.gradcheck(run, (x, params), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (x, params), fast_mode=True)

        def value(x, params, run=run):
            return sum(out.sin().sum() for out in run(x, params))

        args = x[0].detach(), params[0].detach()
        for i in (0, 1):
            reverse = torch.func.jacrev(torch.func.jacrev(value, i), i)(*args)
            contracts.close(torch.func.hessian(value, i)(*args), reverse, "hessian")
            forward = torch.func.jacfwd(torch.func.jacfwd(value, i), i)(*args)
            contracts.close(forward, reverse, "hessian in forward mode")


@BOTH
@pytest.mark.parametrize("batches", [((), (4,)), ((4,), ()), ((3, 1), (4,)), ((), ())], ids=str)
def test_parameters_broadcast(spline, batches):
    """FAULTS 3: and so do the gradients, back."""
    x = _inside(spline, *batches[0], 5).requires_grad_()
    params = _params(spline, *batches[1], 5).requires_grad_()
    batch = torch.broadcast_shapes(*batches)
    wide = x.expand(*batch, 5), params.expand(*batch, *params.shape[-2:])
    for run in (spline.forward_and_ladj, spline.inverse_and_ladj):
        got, want = run(x, params), run(*wide)
        for a, b in zip(
            (*got, *_gradients(got, x, params)), (*want, *_gradients(want, x, params)), strict=True
        ):
            contracts.close(a, b, "value or gradient")


def test_slope_and_pull_are_autograds():
    x, params = 1.5 * _inside(LINE, 7, 3).requires_grad_(), _params(LINE, 7, 3).requires_grad_()
    want = torch.autograd.grad(LINE.forward_and_ladj(x, params)[0].sum(), (x, params))
    for got, expected in zip(LINE.slope_and_pull(x, params), want, strict=True):
        assert not got.requires_grad
        contracts.close(got, expected, "slope and pull")


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_parameters_are_the_identity(spline, dtype):
    """FAULTS 34: to rounding, at any point, with a slope of one."""
    x = torch.cat([_inside(spline, 1000, dtype=dtype), torch.tensor([0.0, 1e-30], dtype=dtype)])
    params = torch.zeros(spline.num_params, len(x), dtype=dtype)
    for run in (spline.forward_and_ladj, spline.inverse_and_ladj):
        y, ladj = run(x, params)
        assert (y - x).abs().max() < 8 * torch.finfo(dtype).eps * spline.bound
        assert ladj.abs().max() < 8 * torch.finfo(dtype).eps


# Knots, bounds and tails.


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_slope_are_continuous_at_every_knot(spline, dtype):
    """FAULTS 18: on a knot or a bound, and a unit in the last place to either side."""
    params = _params(spline, 200, dtype=dtype)
    if spline is CIRCLE:
        params[0] = 0
    left, low, slopes = _knots(spline, params)
    if spline is CIRCLE:
        # The turn aside, the ends of a circle meet where the map is checked elsewhere.
        left, low, slopes = left[1:-1], low[1:-1], slopes[1:-1]
    tolerance = 300 * torch.finfo(dtype).eps
    for x, y, slope in zip(left, low, slopes, strict=True):
        for run, at, to, ladj in (
            (spline.forward_and_ladj, x, y, slope.log()),
            (spline.inverse_and_ladj, y, x, -slope.log()),
        ):
            for towards in (-math.inf, at, math.inf):
                beside = torch.nextafter(at, torch.as_tensor(towards, dtype=dtype).expand_as(at))
                value, log_slope = run(beside.requires_grad_(), params)
                bend = torch.autograd.grad(log_slope.sum(), beside)[0].abs()
                # What a rounding of the point makes of it: more, where a bin is narrow.
                assert ((value - to).abs() / (1 + ladj.exp())).max() < tolerance, towards
                assert ((log_slope - ladj).abs() / (1 + bend)).max() < tolerance, towards


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_tails_are_the_identity(dtype, scale):
    """FAULTS 18, 20: the slope is one at the bound and beyond; gradients are finite."""
    bound = LINE.bound
    sizes = torch.tensor([1.0, 1.0 + 1e-6, 1.5, 10.0, 1e10, 1e30], dtype=dtype) * bound
    x = torch.cat([-sizes, sizes]).requires_grad_()
    params = _params(LINE, len(x), dtype=dtype, scale=scale).requires_grad_()
    for run in (LINE.forward_and_ladj, LINE.inverse_and_ladj):
        y, ladj = run(x, params)
        assert torch.equal(y, x)
        assert not ladj.any()
        by_x, by_params = torch.autograd.grad(y.sum() + ladj.sum(), (x, params))
        assert torch.equal(by_x, torch.ones_like(x))
        assert torch.equal(by_params, torch.zeros_like(params))


def test_nan_is_not_hidden_by_a_tail():
    """FAULTS 16: neither that of a point, nor that of a parameter."""
    params = torch.zeros(LINE.num_params, 3)
    params[:, 1] = torch.nan
    x = torch.tensor([torch.nan, 100.0, 100.0])
    for run in (LINE.forward_and_ladj, LINE.inverse_and_ladj):
        y, ladj = run(x, params)
        assert y.isnan().tolist() == ladj.isnan().tolist() == [True, True, False]


# Limits.


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@BOTH
def test_inverse_of_a_million_random_splines(spline, scale):
    """FAULTS 19: no discriminant turns negative in float32; the root is one, to rounding."""
    bound = spline.bound
    for seed in range(10):
        params = _params(spline, 10**5, scale=scale, dtype=torch.float32, seed=seed)
        y = _inside(spline, 10**5, dtype=torch.float32, part=1.0)
        x, ladj = spline.inverse_and_ladj(y, params)
        contracts.finite(ladj, "ladj", inputs=y)
        assert (x.abs() <= bound).all()
        back, forward_ladj = spline.forward_and_ladj(x, params)
        contracts.finite(forward_ladj, "ladj", inputs=x)
        turn = 2 * bound if spline is CIRCLE else math.inf
        error = (back - y).abs()
        error = torch.minimum(error, (turn - error).abs())
        # A rounding of x is as many times larger in y as the map is steep there.
        steepest = torch.maximum(forward_ladj, -ladj).exp()
        assert (error / (1 + steepest)).max() < 2e-5 * bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inverse_of_nearly_straight_pieces(dtype):
    """FAULTS 19: where the square's coefficient vanishes, and on either side of it."""
    y = _inside(LINE, 4001, dtype=dtype)
    for size in (0.0, 1e-30, 1e-12, 1e-7, 1e-3):
        params = _params(LINE, len(y), dtype=dtype, scale=size)
        x, ladj = LINE.inverse_and_ladj(y, params)
        eps = torch.finfo(dtype).eps
        assert (LINE.forward_and_ladj(x, params)[0] - y).abs().max() < 10 * eps * LINE.bound
        assert ladj.abs().max() < 10 * size + 10 * eps


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_extreme_parameters_keep_to_the_limits(spline, dtype, size):
    """FAULTS 21: logits and slopes of any sign, alone or together."""
    params = size * _params(spline, 2000, dtype=dtype).sign()
    params[:, :500] *= _params(spline, 500, dtype=dtype, seed=8).sign().clamp(min=0)
    params[:, 500:1000] = size
    params.requires_grad_()
    x = _inside(spline, 2000, dtype=dtype).requires_grad_()
    left, low, _ = _knots(spline, params.detach().clamp(-80, 80))
    least = spline.min_bin_size * 2 * spline.bound
    assert left.diff(dim=0).min() > 0.99 * least
    assert low.diff(dim=0).min() > 0.99 * least
    for run in (spline.forward_and_ladj, spline.inverse_and_ladj):
        y, ladj = run(x, params)
        assert (y.abs() <= spline.bound).all()
        # The least slope in a bin is above 2 s^2 / (s + d), and the largest below 2 s.
        assert (ladj.abs() < math.log(1e9)).all()
        for got in torch.autograd.grad(y.sum() + ladj.sum(), (x, params)):
            contracts.finite(got, "gradient", inputs=x)


@pytest.mark.parametrize("value", [1e30, -1e30])
@BOTH
def test_slopes_at_knots_reach_their_limits_and_no_further(spline, value):
    """FAULTS 21."""
    params = torch.zeros(spline.num_params, 1).double()
    params[-(spline.count_bins - 1) :] = value
    middle = torch.zeros(1).double()
    _, ladj = spline.forward_and_ladj(middle, params)
    least = math.log(spline.min_slope)
    assert ladj.item() == pytest.approx(-least if value > 0 else least)


def test_a_hundred_layers_at_their_limits_stay_finite():
    """FAULTS 23: values, log-determinants and gradients, in float32."""
    layers = [ElementwiseSpline(3, bound=3.0) for _ in range(100)]
    for seed, layer in enumerate(layers):
        zoo.randomise(layer, scale=1e3, seed=seed)
    contracts.finite_at(Compose(layers), zoo.points(100, 3, dtype=torch.float32), None)


# Arguments.


@pytest.mark.parametrize("kind", [RationalQuadraticSpline, CircularSpline])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count_bins": 1}, "count_bins to be an integer >= 2; got 1"),
        ({"count_bins": 2.5}, "count_bins to be an integer >= 2; got 2.5"),
        ({"bound": 0}, "bound to be a finite number > 0; got 0"),
        ({"bound": math.inf}, "bound to be a finite number > 0; got inf"),
        ({"min_bin_size": -1}, "min_bin_size to be a finite number > 0; got -1"),
        ({"min_slope": 0}, "min_slope to be a finite number > 0; got 0"),
        ({"min_slope": 1.5}, "min_slope < 1, the slope of the identity; got 1.5"),
        (
            {"count_bins": 20, "min_bin_size": 0.05},
            r"count_bins \* min_bin_size < 1; got 20 \* 0.05. Take fewer bins",
        ),
    ],
)
def test_bad_arguments(kind, options, words):
    """FAULTS 11: impossible hyper-parameters, with the numbers."""
    with pytest.raises(DomainError, match=f"^{kind.__name__}: expected {words}"):
        kind(**options)


def test_options_reach_the_spline():
    assert ElementwiseSpline(2, count_bins=4).univariate == RationalQuadraticSpline(4, 5.0)
    assert SplineCoupling(2, bound=3).univariate == RationalQuadraticSpline(8, 3)
    assert SplineCoupling(2, circular=True).univariate == CircularSpline(8, math.pi)
    assert SplineAutoregressive(2, bound=3).univariate == RationalQuadraticSpline(8, 3)
    with pytest.raises(DomainError, match="count_bins"):
        SplineAutoregressive(2, count_bins=0)
    finer = RationalQuadraticSpline(4, min_bin_size=0.1, min_slope=0.5)
    for transform in (Elementwise(finer, 2), Coupling(finer, 2), Autoregressive(finer, 2)):
        contracts.round_trip(zoo.randomise(transform.double()), zoo.points(9, 2), None)
