"""What a fit returns."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

# A guide that wastes fewer draws than this is right, whatever the few largest weights look like.
_NEARLY_ALL = 0.95

Status = Literal["converged", "max_steps", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """The course and the outcome of a fit.

    Attributes:
        losses: The negative ELBO estimate of each step, of shape ``(steps,)``; NaN where the step
            was skipped.
        status: ``"converged"``: the ELBO reached a plateau, within its Monte-Carlo error;
            ``"max_steps"``: all steps were taken without one; or ``"interrupted"``.
        reason: Why the fit ended, in words.
        steps: Number of steps taken, the skipped ones among them.
        skipped_steps: Number of steps without an update, for a loss or gradient that was not
            finite.
        restarts: Number of times that the run was rolled back to its best state, after too many
            skipped steps in a row.
        seconds: Duration, the guide's start included.
        lr: Largest step size; with a scheduler of one's own, the first.
        state: Which state was the best on fresh draws, and is in place: ``"average"`` over the
            decay of the step size, ``"last"``, ``"best"`` of the steps before, or, without
            ``batches``, ``"start"``, if no step was better than none; that of an ``AutoFlow`` is,
            all but a little, a Gaussian. ``"refined"``: what importance-weighted steps made of it,
            which are not among ``steps`` and ``losses``.
        step_bytes: Most bytes that the tensors of one step hold at once, run by Python.
        engine: How the last step ran: ``"eager"``, ``"traced"`` or ``"compiled"``.
        elbo: ELBO of the fitted guide, on fresh draws, in nats; with ``batches`` or subsampled
            plates, the mean over up to 200 batches or subsamples.
        elbo_se: Its standard error, by the draws, and by which data were seen if not all.
        ess: Effective share of those draws, between 0 and 1, by their importance weights.
        k_hat: Pareto shape of the largest weights; below 0.7 the posterior can be trusted and
            corrected by the weights.
        vectorized: Whether the model ran for all particles at once.
        subsampled: Whether each step saw a part of the data, so that the weights say nothing.
    """

    losses: np.ndarray = field(repr=False)
    status: Status
    reason: str
    steps: int
    skipped_steps: int
    restarts: int
    seconds: float
    lr: float
    state: str
    engine: str
    step_bytes: int
    elbo: float
    elbo_se: float
    ess: float
    k_hat: float
    vectorized: bool
    subsampled: bool

    def __repr__(self) -> str:
        skipped = f", {self.skipped_steps} skipped" if self.skipped_steps else ""
        skipped += f", {self.restarts} restarts" if self.restarts else ""
        looped = "" if self.vectorized else ", one particle at a time"
        rate = f"{self.steps / max(self.seconds, 1e-9):.0f} a second, {self.engine}"
        return (
            f"FitResult: {self.status} ({self.reason})\n"
            f"  steps  {self.steps}{skipped} in {self.seconds:.1f} s ({rate}{looped})\n"
            f"  ELBO   {self.elbo:.3f} +- {self.elbo_se:.3f}\n"
            f"  memory {self.step_bytes / 1e6:.1f} MB a step\n"
            f"  k-hat  {self.k_hat:.2f}, ESS {100 * self.ess:.0f} % ({self._verdict()})"
        )

    def _verdict(self) -> str:
        if self.subsampled:
            return "not known: the data are subsampled"
        if not np.isfinite(self.elbo):
            return "bad: the guide leaves the support of the model"
        if self.ess > _NEARLY_ALL:
            return "good: nearly all draws count"
        if np.isnan(self.k_hat):
            return "not known"
        if self.k_hat < 0.7:
            return "good: below 0.7"
        return "bad: above 0.7, do not trust the tails"
