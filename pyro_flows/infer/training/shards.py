"""Each process of a run sees members of its own of a subsampled plate."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

Message = Any


class Shard(Messenger):
    r"""Draw the subsample of a plate from every :math:`W`-th member, from one's own number on.

    The sites of that plate count :math:`W |S_r| / N` times as much, for a share of :math:`|S_r|`
    members, so that the mean over the processes has no bias where shares are not of one size. It
    is the first plate that draws fewer members than each share has. All others draw as ever:
    were two plates shared out, pairs of members of different shares would never meet.

    Args:
        rank: The number of this process.
        size: How many there are, :math:`W`.

    Example:
        >>> import pyro
        >>> with Shard(1, 2), pyro.plate("rows", 6, subsample_size=3) as rows:
        ...     sorted(rows.tolist())
        [1, 3, 5]
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self._rank, self._size = rank, size
        self._plate: str | None = None
        self._factor = 1.0

    def _pyro_sample(self, msg: Message) -> None:
        if isinstance(msg["fn"], _Subsample):
            if msg["value"] is None:
                self._draw(msg)
        elif any(frame.name == self._plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self._factor

    def _draw(self, msg: Message) -> None:
        plate = msg["fn"]
        num, total = plate.subsample_size, plate.size
        if num is None or num > total // self._size or self._plate not in (None, msg["name"]):
            return
        self._plate = msg["name"]
        share = -(-(total - self._rank) // self._size)
        self._factor = self._size * share / total
        chosen = torch.randperm(share, device=plate.device)[:num]
        msg["value"] = self._rank + self._size * chosen
