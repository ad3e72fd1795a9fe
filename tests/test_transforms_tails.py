"""The transforms of the tails: their indices, their limits, and where their pieces meet."""

import math

import contracts
import pytest
import scipy.special
import torch
import zoo

from pyro_flows.distributions import Flow
from pyro_flows.transforms import LOFT, Autoregressive, Coupling, LeakyTanh, TailTransform, TukeyH

DTYPES = [torch.float32, torch.float64]
# The straight line begins where h x^2 / 2 is this.
MOST = 15.0


def _tails(left, right, *, bound=4.0):
    """Return a one-dimensional transform with these two values of ``h``, in float64."""
    transform = TailTransform(1, bound=bound).double()
    h = torch.tensor([left, right]).double()
    with torch.no_grad():
        transform.conditioner.bias.copy_(bound * torch.atanh((h - 1e-10 / h) / bound))
    contracts.close(transform.heaviness()[:, 0], h, "h")
    return transform


# TailTransform.


@pytest.mark.parametrize("h", [0.05, 0.3, 0.5, 1.0])
def test_tail_index_of_a_normal_is_one_over_h(h):
    """The index is -d log P(Y > y) / d log y, exact through the inverse."""
    transform = _tails(h, 0.01)
    x = 0.9 * math.sqrt(2 * MOST / h)
    far = transform(torch.tensor([-x]).double())
    log_size = contracts.leaf(far.abs().log())
    log_tail = torch.special.log_ndtr(transform.inv(-log_size.exp()))
    index = -torch.autograd.grad(log_tail.sum(), log_size)[0]
    assert index.item() == pytest.approx(1 / h, rel=0.06)
    # There is a closed form as well, up to the next order of the normal's tail.
    assert index.item() == pytest.approx((x**2 + 1) / (h * x**2 + 1), rel=2 / x**4)


def test_hill_estimator_finds_the_index_of_each_tail():
    """From the ten thousand largest of a million draws."""
    left, right = 0.25, 0.75
    draws = Flow(_tails(left, right).float()).sample((10**6,))[:, 0]
    for h, size in ((left, -draws), (right, draws)):
        top = size.topk(10**4).values.double().log()
        # The estimate is the mean of log(y / y_0) beyond the quantile y_0, by a normal's draws.
        x = -torch.special.ndtri(torch.linspace(1e-6, 0.01, 10**5).double())
        log_y = x.log() + h * x.square() / 2
        assert (top - top[-1]).mean().item() == pytest.approx(
            (log_y - log_y[-1]).mean().item(), rel=0.05
        )


def test_inverse_is_lamberts():
    h = torch.logspace(-8, 0.5, 18).double()
    for value in h.tolist():
        transform = _tails(value, value)
        y = torch.logspace(-12, math.log10(math.sqrt(2 * MOST / value)) + 6, 50).double()[:, None]
        want = torch.from_numpy(scipy.special.lambertw(value * y.numpy() ** 2).real / value).sqrt()
        contracts.close(transform.inv(y), want, "inverse", inputs=y)
        contracts.close(transform.inv(-y), -want, "inverse", inputs=y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tails_come_back_at_a_million_points(dtype):
    """FAULTS 28: over all sizes and both pieces, the inverse is exact to rounding."""
    transform = TailTransform(10**4).to(dtype)
    torch.nn.init.normal_(transform.conditioner.bias, std=1.0)
    size = 10 ** torch.empty(100, 10**4, dtype=dtype).uniform_(-30, 30)
    x = size * torch.randn(100, 10**4, dtype=dtype).sign()
    for run, back in ((transform, transform.inv), (transform.inv, transform)):
        error = (back(run(x)) / x - 1).abs()
        assert error.max() < 200 * torch.finfo(dtype).eps


def test_pieces_of_the_tails_meet():
    """FAULTS 18: value and slope are continuous where the line begins."""
    for h in (1e-6, 0.1, 1.0):
        transform = _tails(h, h)
        knot = math.sqrt(2 * MOST / h)
        for sign in (1, -1):
            x = sign * knot * torch.tensor([[1 - 1e-9], [1 + 1e-9]]).double()
            for run in (transform.forward_and_ladj, transform.inverse_and_ladj):
                value, ladj = run(x)
                assert (value[1] / value[0]).item() == pytest.approx(1, abs=1e-6)
                assert (ladj[1] - ladj[0]).item() == pytest.approx(0, abs=1e-6)
                x = value


def test_slope_at_zero_is_one():
    """Neither side's piece is lost where they meet, with its gradient."""
    for transform in (_tails(0.3, 0.7), LOFT(1), LeakyTanh(1)):
        for _, run in contracts.directions(transform):
            for zero in (0.0, -0.0):
                x = torch.tensor([zero]).double().requires_grad_()
                value, ladj = run(x)
                assert torch.autograd.grad(value.sum(), x)[0].item() == pytest.approx(1)
                assert ladj.item() == pytest.approx(0, abs=1e-12)


def test_tails_start_at_the_identity_and_leave_it():
    """FAULTS 34: h is 1e-5, and its gradient is a half, not the 1e-5 of a softplus."""
    params = torch.zeros(2, 3, requires_grad=True)
    h = TukeyH().heaviness(params)
    assert h.flatten().tolist() == pytest.approx([1e-5] * 6)
    assert torch.autograd.grad(h.sum(), params)[0].flatten().tolist() == pytest.approx([0.5] * 6)


@pytest.mark.parametrize("raw", [-1e30, -1e8, -3.0, -0.4, 0.4, 3.0, 1e8, 1e30, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heaviness_is_positive_and_bounded_for_any_raw_value(raw, dtype):
    """FAULTS 22."""
    params = torch.tensor([raw], dtype=dtype, requires_grad=True)
    h = TukeyH(0.5).heaviness(params)
    assert 0 < h.item() <= 0.5 * (1 + 1e-6)
    exact = TukeyH(0.5).heaviness(params.double())
    contracts.close(h.double(), exact.detach(), "h")
    assert h.item() == pytest.approx(exact.item(), rel=1e-5)
    contracts.finite(torch.autograd.grad(h.sum(), params)[0], "gradient")


def test_nan_heaviness_stays_nan():
    """FAULTS 16."""
    for value, ladj in (
        run(torch.ones(4, 1), torch.full((4, 2, 1), torch.nan))
        for run in (TukeyH().forward_and_ladj, TukeyH().inverse_and_ladj)
    ):
        assert value.isnan().all()
        assert ladj.isnan().all()


@pytest.mark.parametrize("start", [0.0, -0.3])
def test_heaviness_is_learnt_from_data(start):
    """By maximum likelihood from the start, and from a start where h is all but zero."""
    want = torch.tensor([[0.1], [0.5]])
    data = Flow(_tails(0.1, 0.5).float()).sample((5000,))
    transform = TailTransform(1)
    torch.nn.init.constant_(transform.conditioner.bias, start)
    optimiser = torch.optim.Adam(transform.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        (-Flow(transform).log_prob(data).mean()).backward()
        # Without it, the first gradients of heavy-tailed data would slow Adam down for long.
        torch.nn.utils.clip_grad_value_(transform.parameters(), 1.0)
        optimiser.step()
    assert (transform.heaviness() - want).abs().max() < 0.05


def test_tails_depend_on_the_context():
    transform = zoo.build("tails", 3, 2)
    assert transform.heaviness(zoo.context_for(transform, 5)).shape == (5, 2, 3)


@pytest.mark.parametrize("kind", [Coupling, Autoregressive])
def test_tails_from_other_coordinates(kind):
    transform = zoo.randomise(kind(TukeyH(), 3, hidden_dims=(8,)).double())
    x = zoo.points(20, 3)
    contracts.round_trip(transform, x, None)
    contracts.ladj_is_slogdet(transform, x, None)


def test_heavy_density_has_the_mass_of_its_tails():
    """FAULTS 32: over a grid in log y, for tails too heavy for a box."""
    transform = _tails(1.0, 0.5)
    flow = Flow(transform)
    log_size = torch.linspace(-25, 12, 40001).double()
    size = log_size.exp()
    for sign in (-1.0, 1.0):
        mass = torch.trapezoid(flow.log_prob(sign * size[:, None]).exp() * size, log_size)
        want = torch.special.ndtr(transform.inv(sign * size[-1:]).abs()) - 0.5
        assert mass.item() == pytest.approx(want.item(), abs=1e-6)


# LOFT.


@pytest.mark.parametrize("dtype", DTYPES)
def test_loft_leaves_points_within_its_threshold(dtype):
    """FAULTS 18, 34: exactly, the threshold itself included; the slope is one on both sides."""
    transform = LOFT(1, threshold=10.0)
    edge = torch.tensor(10.0, dtype=dtype)
    x = torch.stack([torch.zeros_like(edge), edge / 3, edge, -edge, -edge / 3])[:, None]
    for _, run in contracts.directions(transform):
        start = contracts.leaf(x)
        value, ladj = run(start)
        assert torch.equal(value, x)
        assert (ladj == 0).all()
        assert (torch.autograd.grad(value.sum(), start)[0] == 1).all()
        value, ladj = run(torch.nextafter(x, torch.where(x < 0, -torch.inf, torch.inf).to(x)))
        contracts.close(value, x, "value beside the threshold")
        contracts.close(ladj, torch.zeros_like(ladj), "ladj beside the threshold")


def test_loft_is_the_formula_of_the_paper():
    x = torch.cat([zoo.points(50, 1), zoo.points(50, 1, scale=1e6)])
    want = x.sign() * (torch.log((x.abs() - 2).clamp(min=0) + 1) + x.abs().clamp(max=2))
    contracts.close(LOFT(1, threshold=2.0)(x), want, "value", inputs=x)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 100.0])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 88), (torch.float64, 709)])
def test_loft_inverse_overflows_to_infinity_with_the_density_zero(dtype, most, threshold):
    """FAULTS 15, 17: by nature; the density is neither a NaN nor finite, and has a gradient."""
    transform = LOFT(1, threshold=threshold)
    sizes = torch.tensor([most - 1, most + 1, 1e4, 1e30, torch.inf], dtype=dtype) + threshold
    for sign in (1, -1):
        y = contracts.leaf(sign * sizes[:, None])
        x, ladj = transform.inverse_and_ladj(y)
        assert x[:, 0].isinf().tolist() == [False, True, True, True, True]
        assert (x.sign() == sign).all()
        contracts.finite(ladj, "ladj", inputs=y.detach())
        for out in (x, ladj):
            gradient = torch.autograd.grad(out.sum(), y, retain_graph=True)[0]
            contracts.finite(gradient, "gradient", inputs=y.detach())
        base = torch.distributions.StudentT(torch.tensor(3.0, dtype=dtype))
        for log_prob in (base.log_prob(x[:, 0]) + ladj, Flow(transform).log_prob(y)):
            assert (log_prob[1:] == -torch.inf).all()
            gradient = torch.autograd.grad(log_prob[1:].sum(), y, retain_graph=True)[0]
            assert (gradient == 0).all()


@pytest.mark.parametrize("exponent", range(2, 31, 4))
def test_loft_forward_is_finite_at_any_size(exponent):
    """FAULTS 15: values, log-determinants and gradients of the direction that draws."""
    x = contracts.leaf(torch.tensor([[1.0, -1.0, 1e-30]]) * 10.0**exponent)
    y, ladj = LOFT(3).forward_and_ladj(x)
    for out in (y, ladj):
        contracts.finite(out, "output")
        contracts.finite(torch.autograd.grad(out.sum(), x, retain_graph=True)[0], "gradient")


# LeakyTanh.


@pytest.mark.parametrize("bound", [0.1, 1.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_leaky_tanh_does_not_saturate(dtype, bound):
    """FAULTS 24: a tanh is flat from 9 (float32) or 19 bounds on, and its inverse ends there."""
    sizes = torch.tensor([1e-8, 0.1, 1.0, 2.9, 3.1, 9.1, 20.0, 88.0, 1e4, 1e8], dtype=dtype)
    x = contracts.leaf(bound * torch.cat([sizes, -sizes])[:, None])
    transform = LeakyTanh(1, bound=bound)
    for name, run in contracts.directions(transform):
        value, ladj = run(x)
        contracts.finite(value, name)
        assert (ladj.abs() <= math.log(100) + 1e-5).all(), name
        slope = torch.autograd.grad(value.sum(), x, retain_graph=True)[0]
        contracts.close(slope[:, 0].log(), ladj.detach(), f"{name} ladj", inputs=x.detach())
        contracts.finite(torch.autograd.grad(ladj.sum(), x)[0], name)
    back = transform.inv(transform(x))
    assert (back / x - 1).abs().max() < 1000 * torch.finfo(dtype).eps


def test_leaky_tanh_is_a_tanh_inside_and_a_line_outside():
    x = torch.linspace(-3, 3, 101).double()[:, None] * 2.9 / 3
    transform = LeakyTanh(1, bound=2.0)
    contracts.close(transform(2 * x), 2 * x.tanh(), "value", inputs=x)
    far = transform(torch.tensor([[10.0], [11.0], [12.0]]).double())
    assert far.diff(dim=0).flatten().tolist() == pytest.approx([0.01, 0.01])


def test_pieces_of_the_leaky_tanh_meet():
    """FAULTS 18."""
    transform = LeakyTanh(1, bound=2.0)
    for knot, (_, run) in zip(transform._knot, contracts.directions(transform), strict=True):
        value, ladj = run(knot * torch.tensor([[1 - 1e-9], [1 + 1e-9]]).double())
        assert (value[1] - value[0]).item() == pytest.approx(0, abs=1e-6)
        assert (ladj[1] - ladj[0]).item() == pytest.approx(0, abs=1e-6)
