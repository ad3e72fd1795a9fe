"""What is done to a table before a flow sees it, as a part of the density."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.density.repeats import num_different
from pyro_flows.errors import DomainError
from pyro_flows.transforms import ElementwiseAffine, FlowTransform, LowerTriangularAffine

logger = logging.getLogger("pyro_flows")

WAYS = ("sd", "robust", "whiten", "none")
# A quartile of the standard normal.
_QUARTILE = 0.6745
_MOST_NAMED = 10
# In double precision, a long table is gone through in pieces.
_ROWS_AT_ONCE = 2**16
# The rounding of a number that is told of, as a share of its column's scale.
_COARSE = 1e-3


def check_columns(who: str, data: Tensor) -> int:
    """Refuse constant columns, and warn of what makes a likelihood grow without bound.

    Returns the number of different rows.

    Args:
        who: The caller, for the messages.
        data: The rows to train on.

    Raises:
        DomainError: A column is constant, or there is a single row.
    """
    if len(data) < 2:
        expected = "at least two rows to train on"
        raise _checks.refusal(DomainError, who, expected=expected, got="1 sample")
    columns = data.unbind(1)
    constant = [k for k, column in enumerate(columns) if bool((column == column[0]).all())]
    if constant:
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"columns that vary, in {str(data.dtype).removeprefix('torch.')}",
            got=f"constant ones: {_listed(constant)}",
            advice="Drop them.",
        )
    integers = [k for k, column in enumerate(columns) if bool((column == column.round()).all())]
    if integers:
        logger.warning(
            "%s: columns %s hold integers, on which a density grows without bound; "
            "dequantise=True adds uniform noise",
            who,
            _listed(integers),
        )
    different = num_different([data])
    if different < len(data):
        logger.warning(
            "%s: %d of %d rows repeat others, on which a density can grow without bound",
            who,
            len(data) - different,
            len(data),
        )
    return different


def scaling(who: str, way: str, data: Tensor, different: int) -> FlowTransform | None:
    """Return the affine map from the flow's side to the data's, frozen; none for ``"none"``.

    Args:
        who: The caller, for the messages.
        way: ``"sd"``: by means and sds; ``"robust"``: by medians and quartiles; ``"whiten"``: by
            the mean and the Cholesky factor of the covariance.
        data: The rows to train on.
        different: How many of them differ.

    Raises:
        DomainError: The numbers are too large for their scale, or their covariance, to be finite.
    """
    if way == "none":
        return None
    transform: FlowTransform
    if way == "whiten":
        loc, scale_tril = _mean(data), _factor(who, data)
        transform = LowerTriangularAffine(data.shape[1], loc=loc, scale_tril=scale_tril)
    else:
        loc, scale = location_and_scale(way, data)
        _warn_of_rounding(who, data.dtype, loc, scale)
        transform = ElementwiseAffine(data.shape[1], loc=loc, scale=scale)
    transform = transform.to(data.dtype).requires_grad_(False)
    _warn_of_merged(who, data, different, transform)
    return transform


def location_and_scale(way: str, data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle and the width of each column, in double precision.

    Args:
        way: ``"robust"``: medians and quartiles, and the sd of a column whose quartiles are the
            same; else means and sds.
        data: Of shape ``(N, D)``.
    """
    loc = _mean(data)
    squares = (((chunk - loc.numpy()) ** 2).sum(0) for chunk in _in_double(data))
    sd = torch.from_numpy(np.sqrt(sum(squares) / max(len(data) - 1, 1)))
    if way != "robust":
        return loc, sd
    columns = (column.double().numpy() for column in data.unbind(1))
    quartiles = np.stack([np.quantile(column, [0.25, 0.5, 0.75]) for column in columns])
    low, middle, high = torch.from_numpy(quartiles).unbind(1)
    scale = (high - low) / (2 * _QUARTILE)
    return middle, torch.where(scale > 0, scale, sd)


# By numpy: its sums are the same whatever the number of threads.
def _mean(data: Tensor) -> Tensor:
    return torch.from_numpy(sum(chunk.sum(0) for chunk in _in_double(data)) / len(data))


def _in_double(data: Tensor) -> Iterator[np.ndarray]:
    for chunk in data.split(_ROWS_AT_ONCE):
        with np.errstate(over="ignore", invalid="ignore"):
            yield chunk.double().numpy()


def _factor(who: str, data: Tensor) -> Tensor:
    loc = _mean(data).numpy()
    products = ((chunk - loc).T @ (chunk - loc) for chunk in _in_double(data))
    covariance = torch.from_numpy(sum(products) / max(len(data) - 1, 1))
    # Columns that nearly depend on one another leave a factor that is nearly singular.
    ridge = 1e-8 * covariance.diagonal().diag()
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge)
    if int(failed):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a covariance of the columns that can be factored",
            got="one that is not finite, or not positive",
            advice="Pass standardise='sd'.",
        )
    return factor


def _warn_of_rounding(who: str, dtype: torch.dtype, loc: Tensor, scale: Tensor) -> None:
    """Warn where columns lie so far from zero that little of their spread is left."""
    coarse = (loc.abs() * torch.finfo(dtype).eps > _COARSE * scale).nonzero().flatten().tolist()
    if coarse:
        logger.warning(
            "%s: columns %s lie so far from zero that %s rounds their spread to less than three "
            "digits; subtract a constant, or pass dtype='float64'",
            who,
            _listed(coarse),
            str(dtype).removeprefix("torch."),
        )


@torch.no_grad()
def _warn_of_merged(who: str, data: Tensor, before: int, transform: FlowTransform) -> None:
    """Warn where outliers make the scale so wide that different rows become the same."""
    after = num_different(transform.inv(chunk) for chunk in data.split(_ROWS_AT_ONCE))
    if after < before:
        logger.warning(
            "%s: scaled by outliers, %d different rows become %d; standardise='robust', or "
            "float64, keeps them apart",
            who,
            before,
            after,
        )


def _listed(columns: list[int]) -> str:
    more = f" and {len(columns) - _MOST_NAMED} more" if len(columns) > _MOST_NAMED else ""
    return ", ".join(map(str, columns[:_MOST_NAMED])) + more
