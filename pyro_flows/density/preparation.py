"""What is done to a table before a flow sees it, as a part of the density."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.transforms import ElementwiseAffine, FlowTransform, LowerTriangularAffine

logger = logging.getLogger("pyro_flows")

WAYS = ("sd", "robust", "whiten", "none")
# A quartile of the standard normal.
_QUARTILE = 0.6745
_MOST_NAMED = 10


def as_table(who: str, name: str, values: Any, dtype: torch.dtype) -> Tensor:
    """Return numbers of any kind as a tensor of rows and columns.

    Args:
        who: The caller, for the errors' messages.
        name: What the numbers are.
        values: An array, a tensor, or what numpy makes one of.
        dtype: The dtype of the result.

    Raises:
        DomainError: They are no table of real numbers.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{name} to be a table of real numbers, one row for each observation",
            got=f"an array of shape {array.shape} and dtype {array.dtype}",
            advice="Reshape a single column with values.reshape(-1, 1)."
            if array.ndim == 1
            else "",
        )
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def complete_rows(who: str, tables: list[Tensor], *, drop_missing: bool) -> list[Tensor]:
    """Return the rows without NaN and infinities.

    Args:
        who: The caller, for the errors' messages.
        tables: Tables with the same number of rows: data, and contexts, if any.
        drop_missing: Whether to drop the others, with a line in the log.

    Raises:
        NonFiniteError: There are others, and they are not to be dropped.
    """
    table = torch.cat(tables, 1)
    bad = ~table.isfinite()
    rows = bad.any(1)
    if not bool(rows.any()):
        return tables
    counts = bad.sum(0)
    named = [f"{int(counts[k])} in column {k}" for k in counts.nonzero().flatten()[:_MOST_NAMED]]
    if not drop_missing:
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected="numbers without NaN and infinities",
            got=f"{', '.join(named)}, of {len(table)} rows",
            advice="Pass drop_missing=True to drop those rows.",
        )
    logger.warning("%s: dropped %d rows with NaN or infinities", who, int(rows.sum()))
    return [each[~rows] for each in tables]


def check_columns(who: str, data: Tensor) -> None:
    """Refuse constant columns, and warn of what makes a likelihood grow without bound.

    Args:
        who: The caller, for the messages.
        data: The rows to train on.

    Raises:
        DomainError: A column is constant.
    """
    constant = (data == data[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise _checks.refusal(
            DomainError,
            who,
            expected="columns that vary",
            got=f"constant ones: {', '.join(map(str, constant[:_MOST_NAMED]))}",
            advice="Drop them.",
        )
    integers = (data == data.round()).all(0).nonzero().flatten().tolist()
    if integers:
        logger.warning(
            "%s: columns %s hold integers, on which a density grows without bound; "
            "dequantise=True adds uniform noise",
            who,
            ", ".join(map(str, integers[:_MOST_NAMED])),
        )
    different = len(data.unique(dim=0))
    if different < len(data):
        logger.warning(
            "%s: %d of %d rows repeat others, on which a density can grow without bound",
            who,
            len(data) - different,
            len(data),
        )


def scaling(who: str, way: str, data: Tensor) -> FlowTransform | None:
    """Return the affine map from the flow's side to the data's, frozen; none for ``"none"``.

    Args:
        who: The caller, for the messages.
        way: ``"sd"``: by means and sds; ``"robust"``: by medians and quartiles; ``"whiten"``: by
            the mean and the Cholesky factor of the covariance.
        data: The rows to train on.
    """
    if way == "none":
        return None
    wide = data.double()
    transform: FlowTransform
    if way == "whiten":
        loc = wide.mean(0)
        scale_tril = _factor(wide - loc)
        transform = LowerTriangularAffine(data.shape[1], loc=loc, scale_tril=scale_tril)
    else:
        loc, scale = _robust(wide) if way == "robust" else (wide.mean(0), wide.std(0))
        transform = ElementwiseAffine(data.shape[1], loc=loc, scale=scale)
    transform = transform.to(data.dtype).requires_grad_(False)
    _warn_of_merged(who, data, transform)
    return transform


def _factor(centred: Tensor) -> Tensor:
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    # Columns that nearly depend on one another leave a factor that is nearly singular.
    ridge = 1e-8 * covariance.diagonal().diag()
    return torch.linalg.cholesky(covariance + ridge)


def _robust(data: Tensor) -> tuple[Tensor, Tensor]:
    low, middle, high = torch.tensor(
        np.quantile(data.numpy(), [0.25, 0.5, 0.75], axis=0), dtype=data.dtype
    )
    scale = (high - low) / (2 * _QUARTILE)
    return middle, torch.where(scale > 0, scale, data.std(0))


def _warn_of_merged(who: str, data: Tensor, transform: FlowTransform) -> None:
    """Warn where outliers make the scale so wide that different rows become the same."""
    with torch.no_grad():
        after = len(transform.inv(data).unique(dim=0))
    before = len(data.unique(dim=0))
    if after < before:
        logger.warning(
            "%s: scaled by outliers, %d different rows become %d; standardise='robust', or "
            "float64, keeps them apart",
            who,
            before,
            after,
        )
