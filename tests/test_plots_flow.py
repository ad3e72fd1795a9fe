"""Pictures of flows in two dimensions, by their artists."""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from pyro.distributions import constraints

from pyro_flows.diagnostics import plots
from pyro_flows.distributions import Box, Flow, StudentT
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.flows import realnvp
from pyro_flows.transforms import ElementwiseAffine, FlowTransform


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def bent(*, seed=0, dtype=torch.float32, **options):
    """Return a flow that is far from the identity."""
    flow = realnvp(2, num_transforms=4, **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.4 * noise.to(dtype))
    return flow


def mesh(bounds, count):
    """Return the middles of pixels, of shape ``(count, count, 2)``, rows from the bottom."""
    (left, right), (bottom, top) = bounds
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    across, up = left + (right - left) * steps, bottom + (top - bottom) * steps
    return torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)


# The density.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log", [False, True])
def test_density_is_that_of_the_flow(dtype, log):
    flow, bounds = bent(dtype=dtype), ((-3.0, 2.0), (-1.0, 4.0))
    ax = plots.plot_density(flow, bounds=bounds, resolution=40, log=log)
    (image,) = ax.images
    expected = flow.log_prob(mesh(bounds, 40).to(dtype)).detach().double()
    expected = expected if log else expected.exp()
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-4, atol=1e-6)
    assert image.get_extent() == [-3.0, 2.0, -1.0, 4.0]
    assert image.origin == "lower"
    assert ax.get_aspect() == 1.0
    assert ax.child_axes[0].get_ylabel() == ("log-density (nats)" if log else "density")


def test_density_of_a_normal_is_the_right_way_up():
    affine = ElementwiseAffine(2)
    with torch.no_grad():
        affine.loc.copy_(torch.tensor([5.0, -2.0]))
    image = plots.plot_density(Flow(affine), resolution=101).images[0]
    row, column = np.unravel_index(image.get_array().argmax(), (101, 101))
    left, right, bottom, top = image.get_extent()
    assert left + (column + 0.5) / 101 * (right - left) == pytest.approx(5.0, abs=0.1)
    assert bottom + (row + 0.5) / 101 * (top - bottom) == pytest.approx(-2.0, abs=0.1)
    assert image.get_array().max() == pytest.approx(1 / (2 * math.pi), rel=0.01)


@pytest.mark.parametrize("base", [None, StudentT(2, df=5.0)])
def test_default_bounds_hold_nearly_all(base):
    flow = bent() if base is None else Flow(bent().transform, base=base)
    left, right, bottom, top = plots.plot_density(flow, resolution=9).images[0].get_extent()
    x, y = flow.sample((20_000,)).unbind(-1)
    inside = (x > left) & (x < right) & (y > bottom) & (y < top)
    assert 0.985 < inside.float().mean() < 1


def test_log_density_ends_where_colours_do():
    flow = Flow(ElementwiseAffine(2))
    image = plots.plot_density(flow, bounds=((-50, 50), (-50, 50)), log=True).images[0]
    low, high = image.get_clim()
    assert high - low == pytest.approx(20.0)
    assert image.get_array().min() < -1000


class _Turn(FlowTransform):
    """Turn angles in [-2, 2]."""

    domain = codomain = constraints.independent(constraints.interval(-2.0, 2.0), 1)

    def _forward_and_ladj(self, x, context):
        return -2.0 + (x + 2.5) % 4.0, x.new_zeros(x.shape[:-1])

    def _inverse_and_ladj(self, y, context):
        return -2.0 + (y + 1.5) % 4.0, y.new_zeros(y.shape[:-1])


def test_density_off_the_support_is_zero():
    flow = Flow(_Turn(2), base=Box(2, low=-2.0, high=2.0))
    bounds = ((-3.0, 3.0), (-2.0, 4.0))
    density = plots.plot_density(flow, bounds=bounds, resolution=60).images[0].get_array()
    inside = (mesh(bounds, 60).abs() <= 2.0).all(-1)
    np.testing.assert_allclose(density, inside / 16.0, rtol=1e-5)
    plots.plot_density(flow, bounds=bounds, resolution=60, log=True).figure.canvas.draw()
    with pytest.raises(DomainError, match="bounds that meet the support"):
        plots.plot_density(flow, bounds=((3, 4), (3, 4)), resolution=5)
    # The grid of the base ends with the base.
    points = np.concatenate([line.get_xydata() for line in plots.plot_grid(flow).lines])
    assert np.abs(points).max() <= 2.0


def broken():
    flow = bent()
    with torch.no_grad():
        next(flow.parameters()).fill_(math.nan)
    return flow


@pytest.mark.parametrize(
    "draw",
    [
        plots.plot_density,
        lambda flow: plots.plot_density(flow, bounds=((-1, 1), (-1, 1))),
        plots.plot_grid,
        lambda flow: plots.plot_directions(flow, torch.randn(9, 2)),
    ],
)
def test_flow_with_nan_is_refused(draw):
    with pytest.raises(NonFiniteError, match=r"^plot_\w+: expected .*NaN or infinite"):
        draw(broken())


# Contexts.


def test_one_context():
    flow, context = bent(context_dim=1), torch.tensor([0.7])
    bounds = ((-3, 3), (-3, 3))
    given = plots.plot_density(flow, context=[0.7], bounds=bounds, resolution=9).images[0]
    fixed = plots.plot_density(flow.condition(context), bounds=bounds, resolution=9).images[0]
    expected = flow.condition(context).log_prob(mesh(bounds, 9).float()).detach().double().exp()
    np.testing.assert_allclose(given.get_array(), expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fixed.get_array(), expected, rtol=1e-4, atol=1e-9)
    lines = plots.plot_grid(flow, context=context, lines=2).lines
    start = flow.transform.forward_and_ladj(torch.tensor([-3.0, -3.0]), context)[0]
    np.testing.assert_allclose(lines[0].get_xydata()[0], start.detach(), rtol=1e-4)
    for contexts in (torch.zeros(5, 1), torch.zeros(5, 2)):
        with pytest.raises(ShapeError, match=r"^plot_density: expected"):
            plots.plot_density(flow, context=contexts)


def test_a_context_for_each_point():
    flow = bent(context_dim=1)
    data, contexts = torch.randn(50, 2), torch.randn(50, 1)
    axes = plots.plot_directions(flow, data, context=contexts)
    expected = flow.transform.inverse_and_ladj(data, contexts)[0].detach()
    np.testing.assert_allclose(offsets(axes[0, 1]), expected, atol=1e-5)
    draws = torch.as_tensor(offsets(axes[1, 0])).float()
    expected = flow.transform.forward_and_ladj(draws, contexts)[0].detach()
    np.testing.assert_allclose(offsets(axes[1, 1]), expected, atol=1e-5)
    plots.plot_directions(flow, data, context=contexts[0])
    # Contexts are thinned with the points.
    plots.plot_directions(flow, torch.randn(4000, 2), context=torch.randn(4000, 1))
    with pytest.raises(ShapeError, match="expected one context, or 50, one for each point"):
        plots.plot_directions(flow, data, context=contexts[:9])


# The grid.


def test_grid_is_the_image_of_straight_lines():
    flow = bent()
    ax = plots.plot_grid(flow, lines=5)
    assert len(ax.lines) == 10
    along = torch.linspace(-3, 3, 400)
    for index, fixed in enumerate([-3.0, -1.5, 0.0, 1.5, 3.0]):
        constant = torch.full_like(along, fixed)
        for line, straight in (
            (ax.lines[index], torch.stack([constant, along], -1)),
            (ax.lines[5 + index], torch.stack([along, constant], -1)),
        ):
            expected = flow.transform(straight).detach()
            np.testing.assert_allclose(line.get_xydata(), expected, rtol=1e-4, atol=1e-4)
    first, second = ax.lines[0], ax.lines[5]
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_color() != second.get_color()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"{which} coordinate of the base fixed" for which in ("first", "second")]
    assert ax.get_aspect() == 1.0


def test_grid_of_bounds():
    flow = Flow(ElementwiseAffine(2))
    corners = plots.plot_grid(flow, lines=2, bounds=((0, 1), (5, 7))).lines
    points = np.concatenate([line.get_xydata() for line in corners])
    np.testing.assert_allclose([points.min(0), points.max(0)], [[0, 5], [1, 7]], atol=1e-6)


# Both directions.


def offsets(ax):
    return np.asarray(ax.collections[0].get_offsets())


def test_directions():
    flow, data = bent(), torch.randn(300, 2)
    axes = plots.plot_directions(flow, data)
    titles = [ax.get_title() for ax in axes.flat]
    assert titles == ["data", "data → base", "base", "base → data"]
    np.testing.assert_allclose(offsets(axes[0, 0]), data)
    pulled = flow.transform.inv(data).detach()
    np.testing.assert_allclose(offsets(axes[0, 1]), pulled, atol=1e-4)
    draws = torch.as_tensor(offsets(axes[1, 0])).float()
    np.testing.assert_allclose(offsets(axes[1, 1]), flow.transform(draws).detach(), atol=1e-4)
    assert draws.shape == (300, 2)
    assert dist.Normal(0, 1).log_prob(draws).mean() == pytest.approx(-1.42, abs=0.15)
    for start, end in axes:
        np.testing.assert_array_equal(
            start.collections[0].get_array(), end.collections[0].get_array()
        )
        order = np.argsort(offsets(start)[:, 0])
        assert (np.diff(start.collections[0].get_array()[order]) > 0).all()
    # Planes of the same kind have the same limits, and both units are equally long.
    assert axes[0, 0].get_xlim() == axes[1, 1].get_xlim()
    assert axes[0, 1].get_ylim() == axes[1, 0].get_ylim()
    assert {ax.get_aspect() for ax in axes.flat} == {1.0}


def test_circles_hold_their_shares_of_the_base():
    axes = plots.plot_directions(bent(), torch.randn(3000, 2))
    assert [len(ax.lines) for ax in axes.flat] == [0, 2, 2, 0]
    radius = np.linalg.norm(offsets(axes[1, 0]), axis=1)
    for line, share in zip(axes[1, 0].lines, (0.5, 0.95), strict=True):
        (edge,) = set(np.round(np.linalg.norm(line.get_xydata(), axis=1), 9))
        assert (radius < edge).mean() == pytest.approx(share, abs=0.03)
    heavy = Flow(bent().transform, base=StudentT(2, df=5.0))
    axes = plots.plot_directions(heavy, torch.randn(100, 2))
    assert not any(ax.lines for ax in axes.flat)


def test_directions_before_and_after():
    flow, data = bent(), torch.randn(100, 2)
    before = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.5)
    axes = plots.plot_directions(flow, data, before=before)
    assert axes.shape == (2, 4)
    words = ["data", "data → base", "base", "base → data"]
    assert [ax.get_title() for ax in axes[0]] == [f"before: {word}" for word in words]
    assert [ax.get_title() for ax in axes[1]] == [f"after: {word}" for word in words]
    for row, each in zip(axes, (before, flow), strict=True):
        np.testing.assert_allclose(offsets(row[1]), each.transform.inv(data).detach(), atol=1e-4)
    np.testing.assert_array_equal(offsets(axes[0, 2]), offsets(axes[1, 2]))
    assert not np.allclose(offsets(axes[0, 3]), offsets(axes[1, 3]))


def test_many_points_are_thinned_evenly():
    data = torch.stack([torch.arange(9000.0), torch.zeros(9000)], -1) / 9000
    points = offsets(plots.plot_directions(realnvp(2), data)[0, 0])
    assert len(points) == 3000
    assert (points[0, 0], points[-1, 0]) == pytest.approx((0.0, 8999 / 9000))
