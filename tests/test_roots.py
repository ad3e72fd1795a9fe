"""The root finder, against closed forms and at its limits."""

import math

import pytest
import torch
import zoo
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows.errors import NotConvergedError
from pyro_flows.numerics import log_sech_square
from pyro_flows.roots import solve_increasing
from pyro_flows.transforms import DeepSigmoid, SumOfSquares

DTYPES = [torch.float32, torch.float64]


def _constant(x, slope):
    return torch.full_like(x, math.log(slope))


def _kink(x):
    slope = torch.where(x < 1, 1e-3, 1e3)
    return (x - 1) * slope, slope.to(x.dtype).log()


# From x to f(x) and log f'(x), over the whole line.
FUNCTIONS = {
    "identity": lambda x: (x, _constant(x, 1.0)),
    "cubic": lambda x: (x**3 + x, torch.log(3 * x * x + 1)),
    "step": lambda x: (x + torch.tanh(x), torch.log1p(log_sech_square(x).exp())),
    "steep_step": lambda x: (
        x + 50 * torch.tanh(50 * (x - 1)),
        torch.log1p(2500 * log_sech_square(50 * (x - 1)).exp()),
    ),
    "flat_bend": lambda x: (
        x - 0.999 * torch.tanh(x),
        torch.log1p(-0.999 * log_sech_square(x).exp()),
    ),
    "flat": lambda x: (1e-6 * x + 3, _constant(x, 1e-6)),
    "steep": lambda x: (1e6 * x + 3, _constant(x, 1e6)),
    "kink": _kink,
    "sinh": lambda x: (x.sinh(), x.cosh().log()),
}
# Evaluations that targets of ordinary size take at most.
EVALUATIONS = {"identity": 1, "flat": 4, "steep": 4, "flat_bend": 15, "kink": 12, "steep_step": 20}


def _magnitudes(dtype, count=2000):
    generator = torch.Generator().manual_seed(3)
    exponents = torch.rand(count, generator=generator, dtype=torch.float64) * 60 - 30
    signs = torch.rand(count, generator=generator).sub(0.5).sign()
    special = torch.tensor([0.0, -0.0, 1.0, torch.finfo(dtype).tiny], dtype=torch.float64)
    return torch.cat([signs * 10**exponents, special]).to(dtype)


def _meets(function, x, target):
    """The residual is within what the docstring states."""
    value, ladj = function(x.double())
    target = target.double()
    scale = 1 + target.abs() + x.double().abs() * ladj.exp()
    error = (value - target).abs() / scale / torch.finfo(x.dtype).eps
    worst = int(error.argmax())
    assert error[worst] <= 32, f"off by {error[worst]} roundings at the target {target[worst]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_roots_of_any_magnitude(name, dtype):
    """FAULTS 15, 28: targets of 10^U(-30, 30), both signs and both zeros."""
    target = _magnitudes(dtype)
    x = solve_increasing(FUNCTIONS[name], target, who="test")
    assert x.dtype == dtype
    _meets(FUNCTIONS[name], x, target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_root_is_the_closed_form(dtype):
    target = zoo.points(500, dtype=dtype)
    x = solve_increasing(FUNCTIONS["sinh"], target, who="test")
    assert torch.allclose(x, target.asinh(), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_few_evaluations_do(name, dtype):
    calls = []

    def counted(x):
        calls.append(x)
        return FUNCTIONS[name](x)

    solve_increasing(counted, zoo.points(1000, dtype=dtype), who="test")
    assert len(calls) <= EVALUATIONS.get(name, 9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bracket_is_kept_and_narrows_the_search(dtype):
    target = zoo.points(1000, dtype=dtype)
    low, high = target.clamp(max=0) - 1, target.clamp(min=0) + 1
    calls = []

    def counted(x):
        assert ((low <= x) & (x <= high)).all()
        calls.append(x)
        return FUNCTIONS["steep_step"](x)

    x = solve_increasing(counted, target, bracket=(low, high), who="test")
    _meets(FUNCTIONS["steep_step"], x, target)
    assert len(calls) <= 16


def test_bracket_that_is_the_root():
    """As of a map that knows its root in its linear part."""
    target = _magnitudes(torch.float32)
    x = solve_increasing(FUNCTIONS["identity"], target, bracket=(target, target), who="test")
    assert torch.equal(x, target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noisy_function_still_has_a_root(dtype):
    """Where rounding inside the function is all that is left, the search ends."""

    def noisy(x):
        return (x + 1e3) - 1e3, torch.zeros_like(x)

    target = zoo.points(1000, dtype=dtype)
    x = solve_increasing(noisy, target, who="test")
    assert ((x - target).abs() <= 1e3 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("target", "missed"), [(2, "1"), (-1e6, "999999"), (1e30, "1e+30")])
def test_saturating_function_is_refused(target, missed, dtype):
    """FAULTS 28: no saturated value comes back as if it were a root."""
    targets = torch.tensor([0.5, target, 0.0], dtype=dtype)
    with pytest.raises(NotConvergedError) as caught:
        solve_increasing(lambda x: (x.tanh(), log_sech_square(x)), targets, who="Mine")
    assert str(caught.value) == (
        "Mine: expected targets that a finite point is mapped to; got 1 out of reach, such as "
        f"{target:g}, missed by {missed}. "
        "Check the parameters: the map may have become flat, or not finite."
    )


def test_target_outside_the_bracket_is_refused():
    """FAULTS 28."""
    bracket = torch.tensor([-1.0]), torch.tensor([1.0])
    with pytest.raises(NotConvergedError, match="1 out of reach, such as 3, missed by 2"):
        solve_increasing(FUNCTIONS["identity"], torch.tensor([3.0]), bracket=bracket, who="Mine")


@pytest.mark.parametrize("bracketed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_alone(dtype, bracketed):
    """FAULTS 16, 17."""
    target = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0], dtype=dtype)
    bracket = (target - 1, target + 1) if bracketed else None
    x = solve_increasing(FUNCTIONS["step"], target, bracket=bracket, who="test")
    assert x[0].isnan()
    assert x[1:3].tolist() == [torch.inf, -torch.inf]
    _meets(FUNCTIONS["step"], x[3:], target[3:])


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_function_that_is_not_finite_gives_a_nan(fault):
    """FAULTS 16: a faulty parameter makes its own element a NaN, and no other."""
    shift = torch.tensor([0.0, fault, 0.0])
    x = solve_increasing(lambda x: (x + shift, _constant(x, 1.0)), torch.ones(3), who="test")
    assert x[1].isnan()
    assert x[[0, 2]].tolist() == [1.0, 1.0]


def test_no_targets():
    """FAULTS 6."""
    assert solve_increasing(FUNCTIONS["cubic"], torch.empty(0, 3), who="test").shape == (0, 3)


def test_result_carries_no_gradient():
    target = torch.ones(3, requires_grad=True)
    assert not solve_increasing(FUNCTIONS["cubic"], target, who="test").requires_grad


@pytest.mark.parametrize("name", ["cubic", "steep_step"])
def test_traced_search_is_the_eager_one(name):
    """FAULTS 35: traced at some targets, run at others."""

    def run(target):
        return solve_increasing(FUNCTIONS[name], target, who="test")

    target = zoo.points(200)
    got = make_fx(run)(zoo.points(200, seed=9))(target)
    assert torch.allclose(got, run(target), rtol=1e-9, atol=1e-12)


def test_traced_search_gives_a_nan_where_there_is_no_root():
    """FAULTS 28: a graph cannot raise."""

    def run(target):
        return solve_increasing(lambda x: (x.tanh(), log_sech_square(x)), target, who="test")

    got = make_fx(run)(torch.zeros(2))(torch.tensor([2.0, 0.5]))
    assert got[0].isnan()
    assert torch.allclose(got[1], torch.tensor(0.5).atanh())


# The maps that are inverted by the search, at their own parameters.

UNIVARIATES = {"bend": zoo.Bend(), "neural": DeepSigmoid(4), "polynomial": SumOfSquares(3)}


def _case(name, *batch):
    univariate = UNIVARIATES[name]
    return univariate, zoo.points(*batch, 3), zoo.points(*batch, univariate.num_params, 3, seed=4)


@pytest.mark.parametrize("name", UNIVARIATES)
def test_inverse_of_a_map_under_vmap(name):
    """FAULTS 35: over both, over targets alone, over parameters alone."""
    univariate, y, params = _case(name, 5)
    want = univariate.inverse(y, params)
    assert torch.allclose(torch.func.vmap(univariate.inverse)(y, params), want)
    for in_dims, pair in (((0, None), (y, params[0])), ((None, 0), (y[0], params))):
        mapped = torch.func.vmap(univariate.inverse, in_dims=in_dims)(*pair)
        assert torch.allclose(mapped, univariate.inverse(*pair))


@pytest.mark.parametrize("name", UNIVARIATES)
def test_derivatives_of_the_inverse_of_a_map(name):
    """FAULTS 33: by finite differences, to second order."""
    univariate, y, params = _case(name)
    inputs = y.requires_grad_(), (0.7 * params).requires_grad_()
    assert torch.autograd.gradcheck(univariate.inverse_and_ladj, inputs)
    assert torch.autograd.gradgradcheck(univariate.inverse_and_ladj, inputs)


@pytest.mark.parametrize("name", UNIVARIATES)
def test_slope_and_pull_are_derivatives(name):
    """FAULTS 33, 35: also under vmap, inside another derivative, and traced."""
    univariate, x, params = _case(name, 5)

    def value(x, params):
        return univariate.forward_and_ladj(x, params)[0].sum()

    want = torch.func.vmap(torch.func.grad(value, argnums=(0, 1)))(x, params)

    def run(x, params):
        return univariate.slope_and_pull(x, params)

    ways = [
        run,
        torch.func.vmap(run),
        make_fx(run)(x, params),
        lambda x, params: torch.func.vjp(lambda x: run(x, params), x)[0],
    ]
    for way in ways:
        for got, derivative in zip(way(x, params), want, strict=True):
            assert torch.allclose(got, derivative, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(run(x, params)[0], want[0])
    inside = torch.func.jacrev(run)(x, params)[0]
    assert not inside.any()
