"""Images that a flow draws, side by side."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots._axes import one_axes
from pyro_flows.diagnostics.plots._points import to_array
from pyro_flows.errors import DomainError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _RGB = 1, 3
# Numbers of a flow are rounded, and dequantised ones lie in [0, 256).
_ROUNDING, _BYTES, _LARGEST = 1e-3, 255.0, 256.0
_GAP_COLOUR = 0.5


def plot_images(images: Any, *, columns: int | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draw images in a grid, row by row.

    Args:
        images: Of shape ``(N, H, W)`` or ``(N, C, H, W)``, C being 1 for grey and 3 for red, green
            and blue, in the range of 0 to 1; or of 0 to 255, if any is above 1.
        columns: Number of images in a row; as many as there are rows if not given.
        ax: Axes to draw on; those of a new figure if not given.

    Returns:
        The axes, which hold one image.

    Raises:
        DomainError: A number is outside of the range, or matplotlib is missing.
        NonFiniteError: A number is NaN or infinite.
        ShapeError: The images have the wrong shape.

    Example:
        >>> import torch
        >>> plot_images(torch.rand(6, 8, 8), columns=3).images[0].get_array().shape
        (17, 26)
    """
    pixels = _pixels("plot_images", images, leading=1)
    if columns is None:
        columns = int(np.ceil(np.sqrt(len(pixels))))
    columns = _checks.check_count("plot_images", "columns", columns)
    ax = one_axes("plot_images", ax)
    _show(ax, _compose(pixels, min(columns, len(pixels))))
    return ax


def plot_interpolations(rows: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Draw rows of images, each a way from one image to another.

    Args:
        rows: R ways of S images, of shape ``(R, S, H, W)`` or ``(R, S, C, H, W)``, otherwise as in
            :func:`plot_images`.
        ax: Axes to draw on; those of a new figure if not given.

    Returns:
        The axes, which hold one image.

    Raises:
        DomainError: A number is outside of the range, or matplotlib is missing.
        NonFiniteError: A number is NaN or infinite.
        ShapeError: The images have the wrong shape.

    Example:
        >>> import torch
        >>> from pyro_flows.flows import realnvp
        >>> flow, share = realnvp(64), torch.linspace(0, 1, 5)[:, None]
        >>> first, last = torch.rand(2, 64).unbind()
        >>> with torch.no_grad():
        ...     ends = flow.transform.inv(first), flow.transform.inv(last)
        ...     way = flow.transform(torch.lerp(*ends, share)).clamp(0, 1)
        >>> plot_interpolations(way.reshape(1, 5, 8, 8)).get_xlabel()
        'share of the way'
    """
    pixels = _pixels("plot_interpolations", rows, leading=2)
    steps, width = pixels.shape[1], pixels.shape[-2]
    ax = one_axes("plot_interpolations", ax)
    _show(ax, _compose(pixels.reshape(-1, *pixels.shape[2:]), steps))
    first, last = (width - 1) / 2, (width - 1) / 2 + (steps - 1) * (width + 1)
    ax.set_axis_on()
    ax.set_yticks([])
    ax.set_xticks([first, (first + last) / 2, last] if steps > 1 else [first])
    ax.set_xticklabels(["0", "½", "1"] if steps > 1 else ["0"])
    ax.set_xlabel("share of the way")
    ax.spines[:].set_visible(False)
    return ax


def _pixels(who: str, images: Any, *, leading: int) -> np.ndarray:
    """Return images in [0, 1], of shape ``(..., H, W, C)``."""
    array = to_array(who, "images", images)
    if array.ndim == leading + 2:
        array = np.expand_dims(array, leading)
    if array.ndim != leading + 3 or array.shape[leading] not in {_GREY, _RGB}:
        front = ", ".join(["N"] if leading == 1 else ["R", "S"])
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"images of shape ({front}, H, W) or ({front}, C, H, W), with C = 1 or 3",
            got=f"shape {np.shape(images)}",
            advice="Reshape the flow's vectors first, with .reshape(-1, C, H, W).",
        )
    if array.min() < -_ROUNDING * _BYTES or array.max() > _LARGEST:
        raise _out_of_range(who, array)
    whole = array.max() > 1 + _ROUNDING
    if not whole and array.min() < -_ROUNDING:
        raise _out_of_range(who, array)
    return np.moveaxis(np.clip(array / _BYTES if whole else array, 0, 1), leading, -1)


def _out_of_range(who: str, array: np.ndarray) -> Exception:
    return _checks.refusal(
        DomainError,
        who,
        expected="images in the range of 0 to 1, or of 0 to 255",
        got=f"numbers from {array.min():g} to {array.max():g}",
        advice="Undo the scaling of the data first, or clamp them.",
    )


def _compose(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Return one image of all, a pixel apart; places left over are of the colour between them."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    canvas = np.full((rows, height + 1, columns, width + 1, channels), _GAP_COLOUR)
    for index, image in enumerate(pixels):
        canvas[index // columns, :height, index % columns, :width] = image
    canvas = canvas.reshape(rows * (height + 1), columns * (width + 1), channels)
    return canvas[:-1, :-1]


def _show(ax: "Axes", canvas: np.ndarray) -> None:
    grey = canvas.shape[-1] == _GREY
    image = canvas[..., 0] if grey else canvas
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
