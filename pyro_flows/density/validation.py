"""Held-out rows: they say which state is the best, and when to stop."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.checkpoint import JSON
from pyro_flows.density.dequantised import Density
from pyro_flows.errors import NonFiniteError, NotConvergedError
from pyro_flows.infer.engine import FlatParameters
from pyro_flows.infer.training.loop import StepInfo

logger = logging.getLogger("pyro_flows")

# More are no faster, and a spline's parameters for them, or features of images, take gigabytes.
_ROWS_AT_ONCE, _ENTRIES_AT_ONCE = 2**13, 2**19


def rows_at_once(flow: Density) -> int:
    """Return how many rows are to be scored together."""
    return max(1, min(_ROWS_AT_ONCE, _ENTRIES_AT_ONCE // flow.input_dim))


@torch.no_grad()
def mean_loss(losses: Callable[..., Tensor], flow: Density, tensors: Sequence[Tensor]) -> float:
    """Return the mean loss of some rows in evaluation mode, in nats; infinity if not finite.

    Args:
        losses: Returns the loss of each row.
        flow: The flow.
        tensors: What the losses are computed from, row by row.
    """
    size = rows_at_once(flow)
    chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    try:
        with in_evaluation(flow):
            total = sum(float(losses(*chunk).double().sum()) for chunk in chunks)
    except (NonFiniteError, NotConvergedError) as error:
        # A solve with adaptive steps, say: no score, and no end of the run.
        logger.warning("held-out rows have no score: %s", error)
        return math.inf
    mean = total / len(tensors[0])
    return mean if math.isfinite(mean) else math.inf


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back."""
    # Module by module: one that is frozen in eval mode stays so.
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def log_likelihood(flow: Density, rows: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the log-density of each row."""
    return (flow if context is None else flow.condition(context)).log_prob(rows)


class HeldOut:
    """Score the held-out rows after each epoch, keep the best state, and tell when to stop.

    It is a callback of the loop, and goes into its file. A score that is not finite never counts
    as the best.

    Args:
        score: Returns the mean loss of the held-out rows; none where there are none, and no state
            is kept.
        flat: The parameters.
        steps_per_epoch: Number of steps of an epoch.
        patience: Epochs without a better score after which to stop; none to go on to the end.

    Attributes:
        scores: The mean loss after each epoch, in nats.
        best: The lowest of them.
        state: The parameters then; an empty list before there are any.
        ran_out: Whether patience did.
    """

    def __init__(
        self,
        score: Callable[[], float] | None,
        flat: FlatParameters,
        steps_per_epoch: int,
        patience: int | None,
    ) -> None:
        self._score, self._flat = score, flat
        self._steps_per_epoch, self._patience = steps_per_epoch, patience
        self.scores: list[float] = []
        self.best, self.state = math.inf, list[Tensor]()
        self.ran_out, self._since = False, 0

    def __call__(self, info: StepInfo) -> bool:
        """Look at a step that was taken, and say whether to stop."""
        if self._score is None or info.step % self._steps_per_epoch:
            return False
        self.scores.append(self._score())
        self._since += 1
        if self.scores[-1] < self.best:
            self.best, self.state, self._since = self.scores[-1], self._flat.copy(), 0
        self.ran_out = self._patience is not None and self._since >= self._patience
        return self.ran_out

    def tensors(self) -> list[Tensor]:
        """Return the best state: to save it."""
        return self.state

    def record(self) -> dict[str, JSON]:
        """Return the scores and counters: to save them."""
        return {"scores": self.scores, "since": self._since, "ran_out": self.ran_out}

    def restore(self, tensors: Sequence[Tensor], record: Mapping[str, Any]) -> None:
        """Go on from what was saved.

        Args:
            tensors: What :meth:`tensors` returned.
            record: What :meth:`record` returned.
        """
        self.scores = [float(score) for score in record["scores"]]
        self._since, self.ran_out = int(record["since"]), bool(record["ran_out"])
        self.best = min(self.scores, default=math.inf)
        self.state = [tensor.clone() for tensor in tensors]
