"""Axes to draw on: made where none are given, checked where they are."""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The first two colours of the user's style; line styles tell them apart in grey.
OURS, OTHER, FAINT = "C0", "C1", "0.6"
# Of the figures made here, in inches: a panel, and the most of a side that is not for labels.
_PANEL, _LARGEST = 2.6, 11.0


def pyplot(who: str) -> Any:
    """Import ``matplotlib.pyplot``, which an extra of the package installs.

    Args:
        who: Named in the message.

    Raises:
        DomainError: It is not installed.
    """
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise _checks.refusal(
            DomainError,
            who,
            expected="matplotlib to be installed",
            got=f"no module {error.name!r}",
            advice="Run pip install 'pyro-flows[plots]'.",
        ) from error


def one_axes(who: str, ax: "Axes | None") -> "Axes":
    """Return the axes that are given, or those of a new figure.

    Args:
        who: Named in the message.
        ax: The axes to draw on.

    Raises:
        DomainError: They are no axes.
    """
    plt = pyplot(who)
    if ax is None:
        axes: Axes = plt.subplots(layout="constrained")[1]
        return axes
    if not isinstance(ax, plt.Axes):
        raise _checks.refusal(
            DomainError,
            who,
            expected="ax to be matplotlib axes",
            got=f"{type(ax).__name__}",
            advice="Pass one of what plt.subplots() returns, or leave it out.",
        )
    return ax


def axes_grid(who: str, axes: Any, rows: int, columns: int) -> np.ndarray:
    """Return the array of axes that is given, or that of a new figure.

    Args:
        who: Named in the message.
        axes: As many axes as there are panels, in any shape.
        rows: Number of rows.
        columns: Number of columns.

    Returns:
        An array of axes, of shape ``(rows, columns)``.

    Raises:
        DomainError: They are no axes.
        ShapeError: They are more or fewer.
    """
    if axes is None:
        size = [min(_PANEL * max(count, 1.7), _LARGEST) for count in (columns, rows)]
        made = pyplot(who).subplots(
            rows, columns, squeeze=False, figsize=size, layout="constrained"
        )
        return np.asarray(made[1])
    given = np.asarray(axes, dtype=object)
    if given.size != rows * columns:
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"{rows * columns} axes, {rows} x {columns}",
            got=f"{given.size}",
            advice=f"Pass plt.subplots({rows}, {columns})[1], or leave them out.",
        )
    for ax in given.flat:
        one_axes(who, ax)
    return given.reshape(rows, columns)


def panels(who: str, axes: Any, count: int) -> np.ndarray:
    """Return that many axes in a grid that is about square; those left over show nothing.

    Args:
        who: Named in the message.
        axes: The axes to draw on, ``count`` of them.
        count: Number of panels.

    Returns:
        An array of axes, of shape ``(count,)`` if they are given, else of shape
        ``(rows, columns)``.
    """
    if axes is not None:
        return axes_grid(who, axes, 1, count)[0]
    columns = int(np.ceil(np.sqrt(count)))
    grid = axes_grid(who, None, -(-count // columns), columns)
    for ax in grid.flat[count:]:
        ax.set_axis_off()
    return grid
