"""Splines of angles: the circle closes, and the density of a torus has no seam."""

import math

import contracts
import pytest
import torch
import zoo

from pyro_flows.distributions import Box, Flow
from pyro_flows.errors import DomainError
from pyro_flows.transforms import (
    Autoregressive,
    CircularSpline,
    Compose,
    ElementwiseSpline,
    SplineCoupling,
)

KINDS = {"elementwise": ElementwiseSpline, "coupling": SplineCoupling}


def _angles(*shape, bound=math.pi, dtype=torch.float64):
    """Return angles that are uniform but for the neighbourhood of the ends."""
    generator = torch.Generator().manual_seed(4)
    unit = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (0.99 * bound * (2 * unit - 1)).to(dtype)


def _circular(name, d, c=0, **options):
    """Return a transform of angles, at random parameters in float64."""
    made = KINDS[name](d, circular=True, count_bins=5, context_dim=c, hidden_dims=(8,), **options)
    return zoo.randomise(made.double(), scale=0.3)


ANGLES = pytest.mark.parametrize("name", KINDS)


@ANGLES
@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_contracts_of_angles(name, d, c):
    """FAULTS 4, 10, 33, 35, 37, 38: what every transform promises, for points in the box."""
    transform, x = _circular(name, d, c), _angles(7, d)
    context = zoo.context_for(transform, 7)
    case = transform, x, context
    contracts.round_trip(*case)
    contracts.inverse_ladj_negates(*case)
    contracts.ladj_is_slogdet(*case)
    contracts.gradients_match_differences(*case)
    contracts.every_parameter_learns(*case)
    contracts.vmap_is_batch(*case)
    contracts.batch_is_loop(*case)
    contracts.layout_does_not_matter(transform, x, x.T.contiguous().T, context)
    contracts.copies_are_equal(*case)
    contracts.trace_is_eager(transform, x, 0.5 * x, context)
    contracts.empty_batch(transform, zoo.context_for(transform))
    contracts.tensors_are_state(transform)


@ANGLES
def test_angles_start_at_the_identity(name):
    """FAULTS 34."""
    x = _angles(100, 3, dtype=torch.float32)
    contracts.starts_at_identity(KINDS[name](3, circular=True), x, None)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("coordinate", [0, 1, 2])
@ANGLES
def test_faulty_angle_stays_alone(name, coordinate, fault):
    """FAULTS 16, 17."""
    transform, x = _circular(name, 3), _angles(4, 3)
    clean = transform(x)
    x[0, coordinate] = fault
    y, ladj = transform.forward_and_ladj(x)
    assert not y[0].isfinite().all()
    assert ladj[1:].isfinite().all()
    assert torch.equal(y[1:], clean[1:])


@pytest.mark.parametrize("bound", [math.pi, 1.0])
@pytest.mark.parametrize("turn", [-7.0, -0.4, 0.0, 0.4, 1e6])
def test_circle_closes(turn, bound):
    """Value, slope and their derivatives agree at both ends, and a turn more changes nothing."""
    spline = CircularSpline(bound=bound)
    params = zoo.points(spline.num_params, 50, scale=0.5)
    params[0] = turn
    step = 1e-9
    ends = torch.tensor([-bound + step, bound - step]).double()[:, None].expand(2, 50)
    for run in (spline.forward_and_ladj, spline.inverse_and_ladj):
        y, ladj = run(ends, params)
        assert (y.abs() <= bound).all()
        gap = (y[0] - y[1]).remainder(2 * bound)
        assert torch.minimum(gap, 2 * bound - gap).max() < 1e5 * step
        assert (ladj[0] - ladj[1]).abs().max() < 1e5 * step
        x = _angles(50, bound=bound)
        for got, want in zip(run(x + 6 * bound, params), run(x, params), strict=True):
            contracts.close(got, want, "a turn more", inputs=x)


def _torus():
    masks = [[True, False], [False, True]]
    layers = [_circular("coupling", 2, mask=mask) for mask in masks]
    return Flow(
        Compose([*layers, _circular("elementwise", 2)]), Box(2, -math.pi, math.pi).double()
    )


def test_density_on_the_torus_integrates_to_one():
    """FAULTS 32: over the box, and its draws lie inside."""
    flow = _torus()
    draws = flow.sample((1000,))
    assert (draws.abs() <= math.pi).all()
    axis = torch.linspace(-math.pi, math.pi, 401).double()[:-1] + math.pi / 400
    density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.mean().item() * (2 * math.pi) ** 2 == pytest.approx(1, abs=1e-4)
    assert density.max() > 2 * density.min()


@pytest.mark.parametrize("axis", [0, 1])
def test_density_on_the_torus_has_no_seam(axis):
    """On either side of where the circles were cut open."""
    flow, at = _torus(), _angles(200, 2)
    sides = []
    for end in (-math.pi + 1e-9, math.pi - 1e-9):
        x = at.clone()
        x[:, axis] = end
        sides.append(flow.log_prob(x))
    contracts.close(sides[0], sides[1], "log-density", inputs=at, slack=10)


def test_network_sees_cosine_and_sine():
    x = torch.tensor([[0.0, 0.5, -1.0]])
    seen = CircularSpline(bound=1.0).features(x)
    want = torch.tensor([[1.0, 0.0, -1.0, 0.0, 1.0, 0.0]])
    contracts.close(seen, want, "features")
    assert SplineCoupling(5, circular=True).conditioner.input_dim == 4


def test_autoregressive_refuses_angles():
    with pytest.raises(DomainError, match="Use a Coupling, whose network sees angles"):
        Autoregressive(CircularSpline(), 3)


@ANGLES
def test_half_precision_of_angles(name):
    """FAULTS 7."""
    x = _angles(4, 3, dtype=torch.bfloat16)
    y, ladj = _circular(name, 3).bfloat16().forward_and_ladj(x)
    assert (y.dtype, ladj.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
# Dynamo itself instantiates autograd.Function, and reads .grad of what is no leaf.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@ANGLES
def test_compiled_angles_are_eager(name):
    """FAULTS 35: torch.compile."""
    torch._dynamo.reset()
    x = _angles(4, 3)
    contracts.compiled_is_eager(_circular(name, 3), x, 0.5 * x, None)
