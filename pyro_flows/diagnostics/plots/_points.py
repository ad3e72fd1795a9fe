"""Numbers to draw, as arrays; and the range in which most of them lie."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError

# Outliers beyond these shares of the draws do not widen a picture.
_SHARES = (0.0025, 0.9975)
_MARGIN = 0.05


def to_array(who: str, name: str, value: Any, *, finite: bool = True) -> np.ndarray:
    """Return numbers as an array in double precision.

    Args:
        who: Named in the message.
        name: What the numbers are.
        value: A tensor on any device, an array, or what numpy makes one of.
        finite: Whether all of them have to be finite.

    Raises:
        DomainError: They are no real numbers, or there are none.
        NonFiniteError: Some are NaN or infinite.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value if value.is_complex() else value.double()).numpy()
    try:
        array = np.asarray(value)
    except (RuntimeError, TypeError, ValueError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf" or not array.size:
        none = array.dtype.kind in "biuf"
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{name} to be an array of real numbers, at least one",
            got=f"an array of shape {array.shape}" if none else f"{type(value).__name__}",
            advice="Pass a tensor or a numpy array.",
        )
    bad = array.size - int(np.isfinite(array).sum()) if finite else 0
    if bad:
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected=f"{name} to be finite",
            got=f"{bad} of {array.size} that are NaN or infinite",
            advice="Drop them knowingly, or look for where they came from.",
        )
    return array.astype(np.float64)


def vector(who: str, name: str, value: Any) -> np.ndarray:
    """Return finite numbers of shape ``(N,)``.

    Args:
        who: Named in the message.
        name: What the numbers are.
        value: As in :func:`to_array`.

    Raises:
        ShapeError: They have another number of axes.
    """
    array = to_array(who, name, value)
    if array.ndim != 1:
        raise _checks.refusal(
            ShapeError, who, expected=f"{name} of shape (N,)", got=f"shape {array.shape}"
        )
    return array


def coordinates(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Return each coordinate of a site under a label such as ``theta[2]``.

    Args:
        name: The name of the site.
        array: Its values, of shape ``(N,)`` + the site's shape.
    """
    shape = array.shape[1:]
    return {
        f"{name}[{', '.join(map(str, index))}]" if index else name: array[(slice(None), *index)]
        for index in np.ndindex(*shape)
    }


def named_vectors(who: str, name: str, values: Any) -> dict[str, np.ndarray]:
    """Return vectors by label: one without a name, or each coordinate of those of a mapping.

    Args:
        who: Named in the message.
        name: What the numbers are.
        values: Numbers of shape ``(N,)``, or a mapping to numbers of shape ``(N, ...)``.

    Raises:
        DomainError: The mapping is empty.
        ShapeError: The numbers do not have such a shape.
    """
    if not isinstance(values, Mapping):
        return {"": vector(who, name, values)}
    if not values:
        raise _checks.refusal(DomainError, who, expected=f"{name} of one site or more", got="none")
    found: dict[str, np.ndarray] = {}
    for site, value in values.items():
        array = to_array(who, f"{name} of {site!r}", value)
        if array.ndim == 0:
            vector(who, f"{name} of {site!r}", array)
        found |= coordinates(str(site), array)
    return found


def limits(*values: np.ndarray) -> tuple[float, float]:
    """Return a range that holds all but half a percent of each, with a margin.

    Args:
        *values: Numbers of shape ``(N,)``.
    """
    ends = np.array([np.quantile(numbers, _SHARES) for numbers in values])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    margin = _MARGIN * (high - low) or max(abs(low), 1.0) / 2
    return low - margin, high + margin
