"""Which state of a run to hand back: the average of its tail, its best so far, or its last."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError, DomainError, ShapeError

_TRIM = 0.1
# A mean over fewer losses than this share of the window would win or lose by luck.
_LEAST_SHARE = 0.25


class TailAverage:
    r"""The uniform mean of a run's last states, kept as it goes.

    .. math:: m_k = m_{k-1} + (x_k - m_{k-1}) / k

    Attributes:
        count: Number of states in the mean.

    Reference:
        Polyak & Juditsky (1992), *Acceleration of stochastic approximation by averaging*.

    Example:
        >>> average = TailAverage()
        >>> for value in (1.0, 2.0, 6.0):
        ...     average.update([torch.tensor([value])])
        >>> average.tensors()
        [tensor([3.])]
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: list[Tensor] = []

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor]) -> None:
        """Take a state into the mean.

        Args:
            tensors: The state; the same number and shapes in each call.

        Raises:
            ShapeError: The shapes differ from those of the first call.
        """
        if self.count == 0:
            self._mean = _copies(tensors)
        else:
            _check_alike(self._mean, tensors)
            for mean, tensor in zip(self._mean, tensors, strict=True):
                mean.lerp_(tensor, 1 / (self.count + 1))
        self.count += 1

    def tensors(self) -> list[Tensor]:
        """Return a copy of the mean; an empty list before the first update."""
        return _copies(self._mean)

    def record(self) -> dict[str, int]:
        """Return what to save beside :meth:`tensors`, as JSON can hold it."""
        return {"count": self.count}

    def restore(self, tensors: Sequence[Tensor], record: Mapping[str, Any]) -> None:
        """Continue from what was saved.

        Args:
            tensors: What :meth:`tensors` returned.
            record: What :meth:`record` returned.

        Raises:
            CheckpointError: The record is another's, or does not go with the tensors.
        """
        self.count = _saved_count("TailAverage", record, "count", tensors)
        self._mean = _copies(tensors)


class BestState:
    """A copy of the state whose window of recent losses was the lowest so far.

    Windows are compared by their trimmed means, four times per window; a state is copied only
    where it is the best yet. Losses that are not finite are left out, and a window with hardly any
    other neither becomes nor blocks the best. Since a mean over the whole window would be slow to
    see the loss rise, its last quarter has to bear the mean out.

    Args:
        window: Number of losses in a window.

    Attributes:
        step: Number of losses when the state was copied; 0 if none was.
        loss: Mean loss of its window; infinity if there is none.

    Raises:
        DomainError: The window is not a count of at least 4.

    Example:
        >>> best = BestState(window=4)
        >>> losses = []
        >>> for loss in (3.0, 2.0, 1.0, float("nan"), 5.0, 9.0, 9.0, 9.0):
        ...     losses.append(loss)
        ...     best.update(losses, [torch.tensor([loss])])
        >>> best.step, best.tensors()
        (3, [tensor([1.])])
    """

    def __init__(self, window: int = 100) -> None:
        self._window = _checks.check_count("BestState", "window", window, least=4)
        self.step, self.loss = 0, math.inf
        self._best: list[Tensor] = []

    def update(self, losses: Sequence[float], tensors: Sequence[Tensor]) -> None:
        """Look at the run after a step.

        Args:
            losses: The loss of each step so far.
            tensors: The present state.
        """
        quarter = self._window // 4
        if len(losses) % quarter:
            return
        recent = np.asarray(losses[-self._window :], dtype=np.float64)
        loss = max(_level(recent), _level(recent[-quarter:]))
        if loss < self.loss:
            self.step, self.loss, self._best = len(losses), loss, _copies(tensors)

    def tensors(self) -> list[Tensor]:
        """Return a copy of the best state; an empty list if there is none yet."""
        return _copies(self._best)

    def record(self) -> dict[str, float | None]:
        """Return what to save beside :meth:`tensors`, as JSON can hold it."""
        return {"step": self.step, "loss": self.loss if self._best else None}

    def restore(self, tensors: Sequence[Tensor], record: Mapping[str, Any]) -> None:
        """Continue from what was saved.

        Args:
            tensors: What :meth:`tensors` returned.
            record: What :meth:`record` returned.

        Raises:
            CheckpointError: The record is another's, or does not go with the tensors.
        """
        step = _saved_count("BestState", record, "step", tensors)
        loss = record.get("loss")
        finite = isinstance(loss, float) and math.isfinite(loss)
        if finite != bool(tensors):
            raise _foreign("BestState", "a loss that goes with the tensors", record, tensors)
        self.step, self._best = step, _copies(tensors)
        self.loss = math.inf if loss is None else loss


def choose(scores: Mapping[str, tuple[float, float]], *, tolerance: float = 1e-3) -> str:
    """Return the name of the state with the highest score.

    A score that is not finite, or whose standard error is not, loses against any other; where
    none is finite, the first name is returned.

    Args:
        scores: The ELBO of each state, in nats, and its standard error, by name, the preferred
            ones first. All states should have met the same draws, fresh ones.
        tolerance: The first name whose ELBO is at most this far below the highest is returned.

    Raises:
        DomainError: There is no candidate, or the tolerance is negative.

    Example:
        >>> choose({"average": (-0.1, 0.1), "last": (-2.0, 0.1)})
        'average'
    """
    tolerance = _checks.check_positive("choose", "tolerance", tolerance, zero=True)
    if not scores:
        raise _checks.refusal(DomainError, "choose", expected="at least one candidate", got="none")
    elbos = {name: elbo for name, (elbo, se) in scores.items() if math.isfinite(elbo + se)}
    least = max(elbos.values(), default=-math.inf) - tolerance
    return next((name for name, elbo in elbos.items() if elbo >= least), next(iter(scores)))


def _level(losses: np.ndarray) -> float:
    """Return the trimmed mean of the finite losses; infinity where there are too few."""
    finite = np.sort(losses[np.isfinite(losses)])
    if finite.size == 0 or finite.size < _LEAST_SHARE * losses.size:
        return math.inf
    cut = int(_TRIM * finite.size)
    return float(finite[cut : finite.size - cut].mean())


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _check_alike(kept: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    expected, got = ([tuple(t.shape) for t in each] for each in (kept, tensors))
    if expected != got:
        raise _checks.refusal(
            ShapeError, "TailAverage", expected=f"tensors of the shapes {expected}", got=f"{got}"
        )


def _saved_count(who: str, record: Mapping[str, Any], key: str, tensors: Sequence[Tensor]) -> int:
    """Return a count of a record, which is zero where there are no tensors, and only there."""
    count = record.get(key)
    if not isinstance(count, int) or count < 0 or (count > 0) != bool(tensors):
        raise _foreign(who, f"a {key} that goes with the tensors", record, tensors)
    return count


def _foreign(
    who: str, expected: str, record: Mapping[str, Any], tensors: Sequence[Tensor]
) -> Exception:
    return _checks.refusal(
        CheckpointError,
        who,
        expected=expected,
        got=f"{dict(record)!r} with {len(tensors)} tensors",
        advice="Restore tensors and record of the same save.",
    )
