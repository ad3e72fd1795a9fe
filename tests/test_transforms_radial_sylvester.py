"""The radial and the Sylvester transform at their limits, and against their special cases."""

import contracts
import pytest
import torch
import zoo

from pyro_flows.numerics import solve_bend
from pyro_flows.transforms import Planar, Radial, Sylvester

FRAMES = {
    "orthogonal": {},
    "narrow": {"num_hidden": 2},
    "householder": {"num_reflections": 2},
    "triangular": {"num_reflections": 0},
    "reversed": {"num_reflections": 0, "reverse": True},
    "narrow and reversed": {"num_hidden": 2, "num_reflections": 1, "reverse": True},
}
EVERY_FRAME = pytest.mark.parametrize("options", FRAMES.values(), ids=FRAMES)


def _fill(transform, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(transform, name).copy_(torch.as_tensor(value))
    return transform


# Radial.


def _many_radial(count):
    """Return parameters, of any size and at every limit, and points as far as 1e8 from them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high):
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    def normal():
        return torch.randn(count, 3, generator=generator)

    signs = uniform(0, 1).sub(0.5).sign()
    push = torch.where(signs < 0, -(10 ** uniform(-3, 3)), 10 ** uniform(-3, 6))
    center = normal() * 10 ** uniform(-3, 3)
    return center, uniform(-12, 12), push, normal() * 10 ** uniform(-6, 8)


def _radial(name, center, log_radius, push, points):
    """Run one direction with parameters of their own for each point."""
    caller = contracts.Caller(Radial(3), name)

    def run(center, log_radius, push, point):
        values = {"center": center, "log_radius": log_radius, "push": push}
        given = {f"transform.{key}": value for key, value in values.items()}
        return torch.func.functional_call(caller, given, (point,))

    return torch.func.vmap(run)(center, log_radius, push, points)


def test_radial_comes_back_at_a_million_random_parameters():
    """FAULTS 25, 28: in float32, with beta down to -0.999 alpha and up to a million alpha."""
    center, log_radius, push, x = _many_radial(10**6)
    with torch.no_grad():
        y, ladj = _radial("forward", center, log_radius, push, x)
        back, inverse_ladj = _radial("inverse", center, log_radius, push, y)
    for out in (y, ladj, back, inverse_ladj):
        contracts.finite(out, "output")
    size = torch.maximum(x.abs().amax(-1), center.abs().amax(-1))
    assert ((back - x).abs().amax(-1) / size).max() < 3e-4
    assert (inverse_ladj + ladj).abs().max() < 1e-3


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_radial_is_as_exact_in_float32(direction):
    """Values, log-determinants and all gradients are those of float64, at every limit."""
    inputs = _many_radial(10**4)

    def outputs(dtype):
        leaves = [contracts.leaf(tensor.to(dtype)) for tensor in inputs]
        value, ladj = _radial(direction, *leaves)
        return [value, ladj, *torch.autograd.grad(value.sum() + ladj.sum(), leaves)]

    size = torch.maximum(inputs[0].abs(), inputs[-1].abs()).amax(-1, keepdim=True)
    (value, *rest), (exact_value, *exact_rest) = outputs(torch.float32), outputs(torch.float64)
    assert ((value - exact_value).abs() / (size + exact_value.abs())).max() < 1e-4
    for got, want in zip(rest, exact_rest, strict=True):
        assert ((got - want).abs() / (1 + want.abs())).max() < 1e-2
        assert ((got - want).abs() / (1 + want.abs())).mean() < 1e-5


def test_radial_log_determinant_is_exact_at_the_steepest_descent():
    """The log of 1 - 0.999 / (1 + s), a hundred times: log1p alone loses three digits there."""
    transform = _fill(Radial(101), push=[-1e3])
    ratio = transform._params(None)[2].detach()
    s = torch.logspace(-8, 8, 1001)[:, None]
    got, want = transform._ladj(s, ratio), transform._ladj(s.double(), ratio.double())
    assert want.min() < -600
    assert ((got - want).abs() <= 1e-4 + 1e-6 * want.abs()).all()


@pytest.mark.parametrize("push", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_radial_at_its_center(push):
    """FAULTS 24: the gradient of a norm is not defined there; that of the map is."""
    transform = _fill(Radial(3).double(), push=[push], center=[0.3, -1.0, 2.0])
    x = contracts.leaf(transform.center)
    stretch = 1 + transform._params(None)[2].detach()
    for _, direction in contracts.directions(transform):
        y, ladj = direction(x)
        contracts.close(y.detach(), x.detach(), "the centre")
        contracts.close(ladj.detach(), 3 * stretch[0].log(), "ladj")
        matrix = torch.func.jacrev(lambda x: direction(x)[0])(x.detach())  # noqa: B023
        contracts.close(matrix, stretch * torch.eye(3).double(), "Jacobian", slack=10)
        for gradient in torch.autograd.grad(ladj, [x, transform.push, transform.log_radius]):
            contracts.finite(gradient, "gradient")
        stretch = 1 / stretch


def test_radial_is_the_formula_of_the_paper():
    transform, x = zoo.build("radial", 4), zoo.points(20, 4)
    center, alpha, ratio = transform._params(None)
    r = torch.linalg.vector_norm(x - center, dim=-1, keepdim=True)
    beta = alpha * ratio
    want = x + beta * (x - center) / (alpha + r)
    h, slope = 1 / (alpha + r), -((alpha + r) ** -2)
    ladj = 3 * torch.log(1 + beta * h) + torch.log(1 + beta * h + beta * slope * r)
    got = transform.forward_and_ladj(x)
    contracts.close(got[0], want, "value", inputs=x)
    contracts.close(got[1], ladj[..., 0], "ladj", inputs=x)


# Sylvester.


def _sylvester(options, *, scale=1.0, seed=0, d=4):
    return zoo.randomise(Sylvester(d, **options).double(), scale=scale, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@EVERY_FRAME
def test_sylvester_log_determinant_at_large_weights(options, seed):
    """FAULTS 4: where an approximation for small weights would be seen."""
    transform, x = _sylvester(options, scale=2.0, seed=seed), zoo.points(20, 4)
    want = torch.linalg.slogdet(contracts.jacobian(transform.forward_and_ladj, x, None))
    assert (want.sign == 1).all()
    contracts.close(transform.forward_and_ladj(x)[1], want.logabsdet, "ladj", inputs=x)


@EVERY_FRAME
def test_sylvester_frame_is_orthonormal(options):
    frame = _sylvester(options)._params(None).frame
    eye = torch.eye(frame.shape[-1], dtype=frame.dtype)
    contracts.close(frame.mT @ frame, eye, "the frame's Gram matrix")


@EVERY_FRAME
def test_sylvester_inverse_converges_at_the_steepest_bends(options):
    """FAULTS 25, 28: every slope falls to a thousandth; the walk still ends at the root."""
    transform = _sylvester(options)
    m = transform.num_hidden
    with torch.no_grad():
        transform.outer[:m] = -1e3
        transform.bias.zero_()
    y = torch.cat(
        [zoo.points(500, 4), zoo.points(50, 4, scale=1e-6), zoo.points(50, 4, scale=1e6)]
    )
    with torch.no_grad():
        x, ladj = transform.inverse_and_ladj(y)
        again, forward_ladj = transform.forward_and_ladj(x)
    contracts.close(again, y, "forward of inverse", inputs=y)
    contracts.close(forward_ladj, -ladj, "ladj", inputs=y)
    assert ladj.max() > 5
    contracts.close(
        transform.inverse_and_ladj(y)[0].detach(), x, "with a graph", inputs=y, slack=100
    )


def test_sylvester_of_one_unit_is_planar():
    """With ``M = 1``, the direction is bound to the normal: w = e^s q and u = m(c) e^-s q."""
    transform = _sylvester({"num_hidden": 1})
    p = transform._params(None)
    planar = _fill(
        Planar(4).double(),
        weight=(p.frame @ p.inner)[:, 0],
        direction=(p.frame @ p.outer)[:, 0],
        bias=p.bias,
    )
    # Above zero, the bound that makes a map invertible is the identity.
    assert p.bend > 0
    x = zoo.points(20, 4)
    for name in ("forward_and_ladj", "inverse_and_ladj"):
        for got, want in zip(getattr(transform, name)(x), getattr(planar, name)(x), strict=True):
            contracts.close(got.detach(), want.detach(), name, inputs=x)


@pytest.mark.parametrize("reverse", [False, True])
def test_sylvester_without_reflections_is_triangular(reverse):
    transform, x = _sylvester({"num_reflections": 0, "reverse": reverse}), zoo.points(5, 4)
    for _, direction in contracts.directions(transform):
        matrix = contracts.jacobian(direction, x, None)
        kept = matrix.tril() if reverse else matrix.triu()
        contracts.close(matrix, kept, "Jacobian", inputs=x)
        assert (matrix != 0).double().mean() > 0.6


@pytest.mark.parametrize("options", [{}, {"num_hidden": 2}], ids=["square", "narrow"])
def test_sylvester_third_derivatives_of_the_inverse(options):
    transform, y = _sylvester(options, scale=0.7), zoo.points(4)

    def hessian(y):
        return torch.func.hessian(lambda y: transform._inverse(y).sin().sum())(y)

    step = 1e-5 * torch.eye(4, dtype=y.dtype)
    want = [(hessian(y + h) - hessian(y - h)) / 2e-5 for h in step]
    got = torch.func.jacrev(hessian)(y)
    contracts.close(got, torch.stack(want, -1), "third derivatives", slack=100)


@pytest.mark.parametrize("d", [2, 8])
def test_sylvester_moves_its_frame_with_the_context(d):
    transform = zoo.randomise(Sylvester(d, context_dim=2, hidden_dims=(8,)))
    frame = transform._params(torch.randn(5, 2)).frame
    assert frame.shape == (5, d, d)
    assert (frame[1:] - frame[:1]).abs().amax((1, 2)).min() > 1e-2


def test_solve_bend_solves_its_equation():
    """From the steepest descent to a jump of ten thousand, at every size of the right side."""
    for bend in (-0.999, -0.5, 0.0, 1.0, 1e2, 1e4):
        c = torch.tensor(bend, dtype=torch.float64)
        r = torch.cat([torch.logspace(-12, 8, 201), torch.linspace(0, 2 * bend + 5, 501)]).double()
        r = torch.cat([r, -r])
        t = solve_bend(r, c)
        assert ((t + c * t.tanh() - r).abs() <= 1e-11 * (1 + r.abs())).all(), bend
