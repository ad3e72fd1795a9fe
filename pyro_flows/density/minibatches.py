"""Rows of a table, in shuffled batches of one size."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError

Augment = Callable[[Tensor], Tensor]
Prepare = Callable[..., tuple[Tensor, ...]]


class Minibatches:
    """Go through some rows in a new order at each pass, in batches of one size.

    The rows that are left over by a pass, fewer than a batch, are others at each pass. All batches
    have one shape, so that one recorded step serves them all.

    Args:
        tensors: Tensors with the same number of rows.
        batch_size: Rows of a batch; all rows where there are fewer.
        prepare: Returns other tensors for those of a batch; the same ones if not given.

    Example:
        >>> import torch
        >>> batches = Minibatches([torch.arange(10.0)], batch_size=4)
        >>> len(batches), [len(x) for (x,) in batches]
        (2, [4, 4])
    """

    def __init__(
        self, tensors: Sequence[Tensor], batch_size: int, prepare: Prepare | None = None
    ) -> None:
        self._tensors, self._prepare = list(tensors), prepare
        self.num_rows = len(self._tensors[0])
        self.batch_size = min(batch_size, self.num_rows)

    def __len__(self) -> int:
        return self.num_rows // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(self.num_rows).to(self._tensors[0].device)
        for k in range(len(self)):
            rows = order[k * self.batch_size : (k + 1) * self.batch_size]
            # Three times as fast as indexing.
            batch = tuple(tensor.index_select(0, rows) for tensor in self._tensors)
            yield batch if self._prepare is None else self._prepare(*batch)


def split(who: str, tensors: Sequence[Tensor], share: float) -> tuple[list[Tensor], list[Tensor]]:
    """Split rows at random into those to train on, and those held out.

    Args:
        who: The caller, for the errors' messages.
        tensors: Tensors with the same number of rows.
        share: The share that is held out, above 0 and below 1; at least one row on either side.

    Raises:
        DomainError: The share is not possible, or there is a single row.
    """
    num_rows = len(tensors[0])
    if not _is_share(share):
        raise _checks.refusal(
            DomainError,
            who,
            expected="validation to be a share above 0 and below 1, held-out rows, or None",
            got=f"{share!r}",
            advice="Pass validation=0.1, say.",
        )
    if num_rows < 2:
        raise _checks.refusal(
            DomainError,
            who,
            expected="at least two rows, one of them to be held out",
            got="1 sample",
            advice="Pass more rows.",
        )
    held_out = min(max(1, math.floor(share * num_rows)), num_rows - 1)
    order = torch.randperm(num_rows).to(tensors[0].device)
    parts = order[held_out:], order[:held_out]
    train, left_out = ([t.index_select(0, part) for t in tensors] for part in parts)
    return train, left_out


def _is_share(value: object) -> bool:
    numbers = float | np.floating
    return isinstance(value, numbers) and 0.0 < float(value) < 1.0


def check_rows(who: str, data: Tensor, context: Tensor | None) -> list[Tensor]:
    """Return data and context, if any, as tensors with the same number of rows.

    Args:
        who: The caller, for the errors' messages.
        data: Of shape ``(N, ...)``.
        context: Of shape ``(N, context_dim)``, or none.

    Raises:
        DomainError: There are no rows, or they are no tensor.
        ShapeError: The numbers of rows differ.
    """
    for name, value in {"data": data, "context": context}.items():
        if value is not None and not isinstance(value, Tensor):
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"{name} to be a tensor",
                got=f"a {type(value).__name__}",
                advice=f"Pass torch.as_tensor({name}), in the flow's dtype.",
            )
    if data.dim() < 2 or not len(data):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a table of at least one row and one column",
            got=_checks.describe(data),
        )
    if context is None:
        return [data]
    if context.dim() < 2 or len(context) != len(data):
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"a context of {len(data)} rows, one for each of the data's",
            got=_checks.describe(context),
        )
    return [data, context]
