"""Draws of a guide against reference draws, two coordinates at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots._axes import OTHER, OURS, axes_grid
from pyro_flows.diagnostics.plots._columns import Columns, read_columns
from pyro_flows.diagnostics.plots._points import limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair = tuple[np.ndarray, np.ndarray]
Range = tuple[float, float]

_BINS, _CELLS = 40, 64
_TINY = 1e-300
# Contours hold these shares of the draws.
_SHARES = (0.9, 0.5)
_MOST_POINTS = 1000
_STYLES = {"draws": (OURS, "-"), "reference": (OTHER, "--")}


def plot_pairs(
    draws: Any,
    reference: Any = None,
    *,
    sites: Sequence[str] | None = None,
    max_dims: int = 6,
    axes: Any = None,
) -> np.ndarray:
    """Draw the marginals of draws and every pair of coordinates, over those of a reference.

    On the diagonal are densities, below it at most 1,000 draws as points, and contours that hold
    50 and 90 % of all draws. A panel leaves out the outermost half percent of the draws. Both are
    draws in one of these forms: a mapping from sites to values of shape ``(N, *site shape)``; a
    :class:`~pyro_flows.PosteriorDraws`; what ``to_arviz`` returns, or another ``InferenceData``,
    ``DataTree`` or ``Dataset``.

    Args:
        draws: The draws, of a guide for example.
        reference: Those to compare with, of any number; none if not given.
        sites: Which sites to draw, or which coordinates of them, as ``"theta[2]"``; by default,
            those that both have. Coordinates that are constant, as in a Cholesky factor, are left
            out unless they are named themselves.
        max_dims: Largest number of coordinates; the first ones are drawn, and the picture says how
            many there are.
        axes: Axes to draw on, as many as there are panels, those above the diagonal included;
            those of a new figure if not given.

    Returns:
        An array of axes, of shape ``(D, D)`` for D coordinates.

    Raises:
        DomainError: An argument is not possible, a site is missing, or matplotlib is.
        NonFiniteError: A draw is NaN or infinite.
        ShapeError: A site has another shape in the reference, or two sites differ in their numbers
            of draws.

    Example:
        >>> import torch
        >>> draws = {"mu": torch.randn(500), "theta": torch.randn(500, 2)}
        >>> reference = {"mu": torch.randn(300), "theta": torch.randn(300, 2)}
        >>> axes = plot_pairs(draws, reference)
        >>> [ax.get_xlabel() for ax in axes[-1]]
        ['mu', 'theta[0]', 'theta[1]']
    """
    max_dims = _checks.check_count("plot_pairs", "max_dims", max_dims)
    given = {"draws": draws} if reference is None else {"draws": draws, "reference": reference}
    labels, columns = read_columns("plot_pairs", given, sites)
    shown = labels[:max_dims]
    grid = axes_grid("plot_pairs", axes, len(shown), len(shown))
    ranges = {label: limits(*(each[label] for each in columns.values())) for label in shown}
    for row, below in enumerate(shown):
        for column, across in enumerate(shown):
            ax = grid[row, column]
            if column > row:
                ax.set_axis_off()
                continue
            if column == row:
                _draw_marginals(ax, columns, across, ranges[across])
            else:
                _draw_pair(ax, columns, (across, below), (ranges[across], ranges[below]))
            ax.set_xlim(ranges[across])
            _name(ax, across, below, last=row == len(shown) - 1, first=column == 0)
    more = f"{len(shown)} of {len(labels)} coordinates" if len(labels) > len(shown) else None
    _add_legend(grid, more)
    return grid


def _draw_marginals(ax: "Axes", columns: dict[str, Columns], label: str, span: Range) -> None:
    edges = np.linspace(*span, _BINS + 1)
    for kind, each in columns.items():
        color, style = _STYLES[kind]
        counts = np.histogram(each[label], edges)[0]
        heights = counts / (each[label].size * (edges[1] - edges[0]))
        if kind == "draws":
            ax.stairs(heights, edges, fill=True, color=color, alpha=0.35, lw=0)
        ax.stairs(heights, edges, color=color, ls=style, lw=1.3, label=kind)
    ax.set_yticks([])


def _draw_pair(
    ax: "Axes", columns: dict[str, Columns], labels: tuple[str, str], spans: tuple[Range, Range]
) -> None:
    for kind, each in columns.items():
        color, style = _STYLES[kind]
        pair = each[labels[0]], each[labels[1]]
        if kind == "draws":
            some = slice(None, None, -(-pair[0].size // _MOST_POINTS))
            ax.plot(pair[0][some], pair[1][some], ".", ms=3, alpha=0.4, color=color, mew=0)
        middles, density = _smooth_density(pair, spans)
        levels = np.unique(_levels(density))
        ax.contour(*middles, density.T, levels, colors=color, linestyles=style, linewidths=1.2)
    ax.set_ylim(spans[1])


def _smooth_density(pair: Pair, spans: tuple[Range, Range]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the middles of cells, and a histogram over them smoothed by Scott's bandwidth."""
    counts, *edges = np.histogram2d(*pair, bins=_CELLS, range=spans)
    for axis, (values, edge) in enumerate(zip(pair, edges, strict=True)):
        quarters = np.quantile(values, [0.25, 0.75])
        scale = min(values.std(), (quarters[1] - quarters[0]) / 1.349) or values.std()
        width = max(scale * values.size ** (-1 / 6) / (edge[1] - edge[0]), 0.5)
        offsets = np.arange(_CELLS)[:, None] - np.arange(_CELLS)
        kernel = np.exp(-0.5 * (offsets / width) ** 2)
        # Nothing is smoothed over the edge of a support.
        kernel[(edge[1:] < values.min()) | (edge[:-1] > values.max())] = 0
        counts = np.moveaxis(
            np.tensordot(kernel / np.maximum(kernel.sum(0), _TINY), counts, (1, axis)), 0, axis
        )
    return [(edge[1:] + edge[:-1]) / 2 for edge in edges], counts


def _levels(density: np.ndarray) -> list[float]:
    """Return the densities above which the shares of the draws lie."""
    ordered = np.sort(density, axis=None)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[np.searchsorted(held, share)]) for share in _SHARES]


def _name(ax: "Axes", across: str, below: str, *, last: bool, first: bool) -> None:
    if last:
        ax.set_xlabel(across)
    else:
        ax.tick_params(labelbottom=False)
    if first:
        ax.set_ylabel(below)
    else:
        ax.tick_params(labelleft=False)


def _add_legend(grid: np.ndarray, title: str | None) -> None:
    handles, labels = grid[0, 0].get_legend_handles_labels()
    corner = grid[0, 1] if len(grid) > 1 else grid[0, 0]
    place = "upper left" if len(grid) > 1 else "upper right"
    corner.legend(handles, labels, title=title, loc=place, fontsize="small")
