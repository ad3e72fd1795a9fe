"""A flow in two dimensions: its density, and what it makes of a regular grid."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots import _plane
from pyro_flows.diagnostics.plots._axes import OTHER, OURS, one_axes
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A log-density further below the largest one, in nats, has the colour of this.
_DEPTH = 20.0
_POINTS_A_LINE = 400


def plot_density(
    flow: Flow,
    *,
    bounds: _plane.Bounds | None = None,
    context: Any = None,
    ax: "Axes | None" = None,
    log: bool = False,
    resolution: int = 200,
) -> "Axes":
    """Draw the density of a flow in two dimensions.

    Each pixel has the density at its middle.

    Args:
        flow: The flow.
        bounds: ``((low, high), (low, high))``, of the first and the second coordinate; where most
            draws are, if not given.
        context: The context of a flow that takes one, of shape ``(context_dim,)``.
        ax: Axes to draw on; those of a new figure if not given.
        log: Whether to draw the log-density, down to 20 nats below its largest value.
        resolution: Number of pixels along each axis.

    Returns:
        The axes.

    Raises:
        DomainError: An argument is not possible, the density is zero all over the picture, or
            matplotlib is missing.
        NonFiniteError: The density is NaN or infinite somewhere.
        ShapeError: The flow is not in two dimensions, or there is not one context.

    Example:
        >>> from pyro_flows.flows import realnvp
        >>> ax = plot_density(realnvp(2), bounds=((-3, 3), (-3, 3)), resolution=50)
        >>> ax.images[0].get_array().shape
        (50, 50)
    """
    flow = _plane.check_flow("plot_density", flow, context)
    count = _checks.check_count("plot_density", "resolution", resolution, least=2)
    if bounds is None:
        draws = _plane.push("plot_density", flow, _plane.base_draws("plot_density", flow))
        bounds = _plane.around(draws)
    (left, right), (bottom, top) = _plane.check_bounds("plot_density", bounds)
    points = _meshed(_middles(left, right, count), _middles(bottom, top, count))
    density = _plane.log_density("plot_density", flow, points).reshape(count, count)
    largest = density.max()
    if largest == -np.inf:
        raise _checks.refusal(
            DomainError,
            "plot_density",
            expected="bounds that meet the support of the flow",
            got=f"a density of zero at all of {density.size} points",
            advice="Leave the bounds out to see where the draws are.",
        )
    ax = one_axes("plot_density", ax)
    image = ax.imshow(
        density if log else np.exp(density),
        extent=(left, right, bottom, top),
        origin="lower",
        vmin=max(density.min(), largest - _DEPTH) if log else 0.0,
    )
    # Beside the axes, and as high as they are.
    beside = ax.inset_axes((1.03, 0.0, 0.04, 1.0))
    label = "log-density (nats)" if log else "density"
    ax.figure.colorbar(image, cax=beside, label=label)
    _plane.name_plane(ax)
    return ax


def plot_grid(
    flow: Flow,
    *,
    bounds: _plane.Bounds | None = None,
    context: Any = None,
    ax: "Axes | None" = None,
    lines: int = 21,
) -> "Axes":
    """Draw what the transform of a flow makes of a regular grid of its base.

    Along a thick line the first coordinate of the base is fixed, along a thin line the second.

    Args:
        flow: The flow, in two dimensions.
        bounds: ``((low, high), (low, high))``, the grid's in the base; -3 to 3 for the standard
            normal, and where most draws are for other bases, if not given.
        context: The context of a flow that takes one, of shape ``(context_dim,)``.
        ax: Axes to draw on; those of a new figure if not given.
        lines: Number of lines in each direction.

    Returns:
        The axes.

    Raises:
        DomainError: An argument is not possible, or matplotlib is missing.
        NonFiniteError: A point of the grid leaves the finite numbers.
        ShapeError: The flow is not in two dimensions, or there is not one context.

    Example:
        >>> from pyro_flows.flows import realnvp
        >>> len(plot_grid(realnvp(2), lines=7).lines)
        14
    """
    flow = _plane.check_flow("plot_grid", flow, context)
    count = _checks.check_count("plot_grid", "lines", lines, least=2)
    bounds = _plane.base_bounds("plot_grid", flow) if bounds is None else bounds
    (left, right), (bottom, top) = _plane.check_bounds("plot_grid", bounds)
    across, along = np.linspace(left, right, count), np.linspace(bottom, top, _POINTS_A_LINE)
    first = _meshed(across, along).reshape(_POINTS_A_LINE, count, 2).transpose(1, 0, 2)
    across, along = np.linspace(left, right, _POINTS_A_LINE), np.linspace(bottom, top, count)
    second = _meshed(across, along).reshape(count, _POINTS_A_LINE, 2)
    points = np.stack([first, second]).reshape(-1, 2)
    moved = _plane.push("plot_grid", flow, points).reshape(2, count, _POINTS_A_LINE, 2)
    ax = one_axes("plot_grid", ax)
    styles = [(OURS, 1.3, "first"), (OTHER, 0.7, "second")]
    for family, (color, width, which) in zip(moved, styles, strict=True):
        drawn = ax.plot(*family.transpose(2, 1, 0), color=color, lw=width)
        drawn[0].set_label(f"{which} coordinate of the base fixed")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")
    _plane.name_plane(ax)
    return ax


def _middles(low: float, high: float, count: int) -> np.ndarray:
    """Return the middles of that many pixels."""
    return low + (np.arange(count) + 0.5) * (high - low) / count


def _meshed(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return the points of a mesh, row by row from the bottom."""
    return np.stack(np.meshgrid(across, along), -1).reshape(-1, 2)
