"""Both directions of a flow in two dimensions, before and after training."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots import _plane
from pyro_flows.diagnostics.plots._axes import axes_grid
from pyro_flows.diagnostics.plots._points import to_array
from pyro_flows.distributions import Flow
from pyro_flows.distributions.normal import StandardNormal
from pyro_flows.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 3000
# Of the standard normal in two dimensions: radii that hold these shares of its draws.
_SHARES = (0.5, 0.95)


class _Panel(NamedTuple):
    """Points, the points that give them their colours, and what they are."""

    points: np.ndarray
    origin: np.ndarray
    title: str
    base: bool


def plot_directions(
    flow: Flow,
    data: Any,
    *,
    before: Flow | None = None,
    context: Any = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw where a flow moves data, and where it moves draws of its base.

    A point keeps its colour on its way, by the first coordinate of where it starts. A flow that
    fits takes the data to its base, and the base to the data. Circles hold 50 and 95 % of a
    standard normal base. At most 3,000 points are drawn, evenly from the data.

    Args:
        flow: The flow, in two dimensions.
        data: Points of shape ``(N, 2)``.
        before: The flow before training, such as a ``copy.deepcopy`` of then.
        context: The context of a flow that takes one: one for all, of shape ``(context_dim,)``,
            or one for each point, of shape ``(N, context_dim)``.
        axes: Axes to draw on, 2 x 2, or 2 x 4 with ``before``; those of a new figure if not given.

    Returns:
        An array of axes. Of shape ``(2, 2)``: data and what they are in the base; draws of the
        base and what they are in the data's plane. With ``before``, of shape ``(2, 4)``: these
        four in a row, before training and after.

    Raises:
        DomainError: An argument is not possible, or matplotlib is missing.
        NonFiniteError: A point is, or becomes, NaN or infinite.
        ShapeError: A shape is wrong.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, figure 1.

    Example:
        >>> import torch
        >>> from pyro_flows.flows import realnvp
        >>> axes = plot_directions(realnvp(2), torch.randn(100, 2))
        >>> axes[0, 1].get_title()
        'data → base'
    """
    who = "plot_directions"
    points = to_array(who, "data", data)
    if points.ndim != 2 or points.shape[1] != _plane.PLANE_DIM:
        raise _checks.refusal(
            ShapeError, who, expected="data of shape (N, 2)", got=f"shape {points.shape}"
        )
    chosen = np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).astype(int)
    if context is not None:
        context = to_array(who, "context", context)
        context = _chosen(context, len(points), chosen)
    given = [flow] if before is None else [before, flow]
    flows = [_plane.check_flow(who, each, context, rows=len(chosen)) for each in given]
    rows = [_row(who, each, points[chosen]) for each in flows]
    if before is not None:
        rows = [_titled(rows[0], "before: "), _titled(rows[1], "after: ")]
    shape = (2, 2) if before is None else (2, 4)
    grid = axes_grid(who, axes, *shape)
    panels = [panel for row in rows for panel in row]
    bounds = {base: _bounds(who, flow, panels, base) for base in (False, True)}
    circles = [isinstance(each.base_dist, StandardNormal) for each in flows for _ in range(4)]
    for ax, panel, normal in zip(grid.flat, panels, circles, strict=True):
        _draw(ax, panel, bounds[panel.base], circles=normal and panel.base)
    for ax in grid[:-1].flat:
        ax.set_xlabel("")
    for ax in grid[:, 1:].flat:
        ax.set_ylabel("")
    return grid


def _row(who: str, flow: Flow, points: np.ndarray) -> list[_Panel]:
    pulled = _plane.push(who, flow, points, inverse=True)
    draws = _plane.base_draws(who, flow, len(points))
    pushed = _plane.push(who, flow, draws)
    return [
        _Panel(points, points, "data", False),
        _Panel(pulled, points, "data → base", True),
        _Panel(draws, draws, "base", True),
        _Panel(pushed, draws, "base → data", False),
    ]


def _titled(row: list[_Panel], when: str) -> list[_Panel]:
    return [panel._replace(title=when + panel.title) for panel in row]


def _bounds(who: str, flow: Flow, panels: list[_Panel], base: bool) -> _plane.Bounds:
    points = [panel.points for panel in panels if panel.base is base]
    if base:
        points.append(np.array(_plane.base_bounds(who, flow)).T)
    return _squared(_plane.around(*points))


def _squared(bounds: _plane.Bounds) -> _plane.Bounds:
    """Return bounds of one length around the same middle, for panels of one size."""
    half = max(high - low for low, high in bounds) / 2
    across, along = ((low + high) / 2 for low, high in bounds)
    return (across - half, across + half), (along - half, along + half)


def _draw(ax: "Axes", panel: _Panel, bounds: _plane.Bounds, *, circles: bool) -> None:
    across, up = panel.points.T
    colours = _order(panel.origin[:, 0])
    ax.scatter(across, up, s=3.0, c=colours, lw=0, cmap="viridis", rasterized=True)
    if circles:
        angle = np.linspace(0, 2 * np.pi, 200)
        for share in _SHARES:
            radius = np.sqrt(-2 * np.log1p(-share))
            ax.plot(radius * np.cos(angle), radius * np.sin(angle), color="k", lw=0.8, ls="--")
    _plane.name_plane(ax, bounds)
    ax.set_title(panel.title)


def _order(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, so that no outlier takes all the colours."""
    return values.argsort().argsort()


def _chosen(context: np.ndarray, count: int, chosen: np.ndarray) -> np.ndarray:
    """Return the contexts of the chosen points, where there is one for each."""
    return context[chosen] if context.ndim == 2 and len(context) == count else context
