"""The fit of a density in a file: what it must share with the run that goes on from it."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_flows.checkpoint import JSON
from pyro_flows.density.options import MleOptions
from pyro_flows.infer.random import aside
from pyro_flows.infer.training.run_file import beginning_of

# Digits of a SHA-256, enough to tell tables apart by.
_DIGITS = 16


class Beginning:
    """The random state that a run splits its rows in: its own, or that of the run in a file.

    A run that goes on elsewhere has to hold out the same rows; they are drawn anew, so that the
    file need not hold them.

    Args:
        checkpoint: The file of the run.
        kind: Which sort of run it must be.
        resume: Whether to go on from it, if it is there.

    Attributes:
        state: Torch's random state.
        goes_on: Whether there is a run to go on from.

    Raises:
        CheckpointError: The file is damaged, or is no such run's.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str] | None, *, kind: str, resume: bool
    ) -> None:
        self.goes_on = resume and checkpoint is not None and Path(checkpoint).exists()
        self.state = torch.get_rng_state()
        if self.goes_on and checkpoint is not None:
            self.state = beginning_of(checkpoint, kind)
        self._context = aside() if self.goes_on else nullcontext()

    def __enter__(self) -> None:
        self._context.__enter__()
        torch.set_rng_state(self.state)

    def __exit__(self, *error: object) -> None:
        # What goes on takes its random state from the file.
        self._context.__exit__(None, None, None)


def to_share(
    options: MleOptions,
    flow: nn.Module,
    tensors: Sequence[Tensor],
    held_out: list[Tensor] | float | None,
) -> dict[str, JSON]:
    """Return what must be the same when a run goes on.

    Args:
        options: The options.
        flow: The flow.
        tensors: The rows, and their contexts, if any.
        held_out: The share of them, or the rows, and theirs; or none.
    """
    validation: JSON
    if isinstance(held_out, list):
        validation = [described(tensor) for tensor in held_out]
    else:
        validation = held_out
    return {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "weight_decay": options.weight_decay,
        "patience": options.patience,
        "clip_norm": options.clip_norm,
        "penalty": None if options.penalty is None else repr(options.penalty),
        "data": described(tensors[0]),
        "context": [described(tensor) for tensor in tensors[1:]],
        "validation": validation,
        "flow": " ".join(str(flow).split()),
    }


def described(table: Tensor) -> str:
    """Name the sizes and the content of a table, the same on every device.

    Args:
        table: Of one row and more.

    Example:
        >>> described(torch.zeros(3, 2))
        '3 x 2 float32 numbers, SHA-256 9d908ecfb6b256de...'
    """
    content = table.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(content.data).hexdigest()[:_DIGITS]
    sizes, dtype = " x ".join(map(str, table.shape)), str(table.dtype).removeprefix("torch.")
    return f"{sizes} {dtype} numbers, SHA-256 {digest}..."
