"""Tables as they are given: numbers of any kind, the columns' names, and rows with gaps."""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError

logger = logging.getLogger("pyro_flows")

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_MOST_NAMED = 10


class NotNumbersError(DomainError, TypeError):
    """A table holds what is no real number; a ``TypeError`` as well, as scikit-learn has it."""


class MissingValuesError(NonFiniteError, ValueError):
    """A table has gaps; a ``ValueError`` as well, as scikit-learn has it."""


class Columns(NamedTuple):
    """The columns of a table that an estimator was fitted to.

    Attributes:
        num: Number of columns.
        names: Their names, where all have one that is a text.
    """

    num: int
    names: tuple[str, ...] | None

    def check(self, who: str, name: str, theirs: "Columns") -> None:
        """Refuse a table of other columns; one without names may go by their order.

        Args:
            who: The caller, for the errors' messages.
            name: What the table is.
            theirs: Its columns.

        Raises:
            ShapeError: There are more or fewer.
            DomainError: They have other names, or another order.
        """
        if theirs.num != self.num:
            # The brackets are what scikit-learn's own estimators say.
            got = (
                f"{theirs.num} ({name} has {theirs.num} features, but {who} is expecting "
                f"{self.num} features as input)"
            )
            expected = f"{name} of {self.num} columns, as it was fitted to"
            raise _checks.refusal(ShapeError, who, expected=expected, got=got)
        if self.names is not None and theirs.names not in (None, self.names):
            assumed = zip(self.names, theirs.names or (), strict=True)
            place, (ours, other) = next((k, p) for k, p in enumerate(assumed) if p[0] != p[1])
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"the columns of {name} by the names and in the order of the fit, "
                f"{ours!r} as column {place}",
                got=repr(other),
                advice=f"Pass {name}[density.{_attribute(name)}].",
            )


def _attribute(name: str) -> str:
    return "feature_names_in_" if name == "X" else "context_names_in_"


def columns_of(values: Any, table: Tensor) -> Columns:
    """Return the columns of a table.

    Args:
        values: As it was given.
        table: The same as a tensor.
    """
    listed = getattr(values, "columns", None)
    names = () if listed is None else tuple(listed)
    texts = bool(names) and all(isinstance(name, str) for name in names)
    return Columns(table.shape[1], tuple(map(str, names)) if texts else None)


def as_table(who: str, name: str, values: Any, dtype: torch.dtype) -> Tensor:
    """Return numbers of any kind as a tensor of rows and columns, without a copy where possible.

    Args:
        who: The caller, for the errors' messages.
        name: What the numbers are.
        values: An array, a tensor, a data frame, or what numpy makes an array of.
        dtype: The dtype of the result.

    Raises:
        DomainError: They are no table of real numbers.
    """
    array = _as_array(who, name, values)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        advice = "Reshape a single column with values.reshape(-1, 1)." if array.ndim == 1 else ""
        if array.dtype.kind == "c":
            advice = "Complex data not supported: pass real and imaginary parts as columns."
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{name} to be a table of real numbers, one row for each observation",
            got=f"an array of shape {array.shape} and dtype {array.dtype}",
            advice=advice,
        )
    if 0 in array.shape:
        # The words are those of scikit-learn's own estimators.
        what = "feature(s)" if array.shape[0] else "sample(s)"
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{name} to be a table of at least one row and one column",
            got=f"0 {what} (shape={array.shape}) while a minimum of 1 is required",
        )
    # What overflows becomes infinite, which is told of later. A tensor must be writable.
    with np.errstate(over="ignore"):
        array = np.require(array, _NUMPY[dtype], ["C", "W"])
    # A single row may be in order and yet go backwards, which torch does not take.
    return torch.from_numpy(array if min(array.strides) > 0 else array.copy())


def _as_array(who: str, name: str, values: Any) -> Any:
    if isinstance(values, Tensor) and values.layout == torch.strided:
        values = values.detach().cpu()
        # There is none of numpy's for bfloat16.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, Tensor) or hasattr(values, "tocsr"):
        raise _checks.refusal(
            NotNumbersError,
            who,
            expected=f"{name} to be a dense table",
            got=f"sparse data of type {type(values).__name__}",
            advice="Pass values.toarray(), or values.to_dense() of a tensor.",
        )
    try:
        array = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind == "O" else array
    except (TypeError, ValueError) as error:
        raise _checks.refusal(
            NotNumbersError,
            who,
            expected=f"{name} to be a table of real numbers, one row for each observation",
            got=f"{type(values).__name__} with the error {str(error)!r}",
        ) from error


def complete_rows(
    who: str, tables: list[Tensor], *, drop_missing: bool, advice: str = ""
) -> list[Tensor]:
    """Return the rows without NaN and infinities.

    Args:
        who: The caller, for the errors' messages.
        tables: Tables with the same number of rows: data, and contexts, if any.
        drop_missing: Whether to drop the others, with a line in the log.
        advice: What to do where they are not to be dropped.

    Raises:
        MissingValuesError: There are others, and they are not to be dropped.
        DomainError: Only others are left.
    """
    bad = [~table.isfinite() for table in tables]
    rows = torch.stack([each.any(1) for each in bad]).any(0)
    num_bad = int(rows.sum())
    if num_bad == 0:
        return tables
    if not drop_missing:
        dtype = str(tables[0].dtype).removeprefix("torch.")
        raise _checks.refusal(
            MissingValuesError,
            who,
            expected=f"numbers without NaN and infinities, in {dtype}",
            got=f"{_counted(bad)}, of {len(rows)} rows",
            advice=advice,
        )
    if num_bad == len(rows):
        expected = "a row without NaN and infinities"
        raise _checks.refusal(DomainError, who, expected=expected, got=_counted(bad))
    logger.warning(
        "%s: dropped %d of %d rows with NaN or infinities: %s",
        *(who, num_bad, len(rows), _counted(bad)),
    )
    return [each[~rows] for each in tables]


def _counted(bad: list[Tensor]) -> str:
    """Say how many entries of which columns are bad."""
    named = []
    for name, table in zip(("", " of the context"), bad, strict=False):
        counts = table.sum(0)
        for k in counts.nonzero().flatten().tolist():
            named.append(f"{int(counts[k])} in column {k}{name}")
    more = f" and {len(named) - _MOST_NAMED} columns more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more
