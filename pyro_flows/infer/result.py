"""What a fit returns."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Status = Literal["max_steps", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """The course and the outcome of a fit.

    Attributes:
        losses: The negative ELBO estimate of each step, of shape ``(steps,)``; NaN where the step
            was skipped.
        status: ``"max_steps"`` or ``"interrupted"``.
        reason: Why the fit ended, in words.
        steps: Number of steps taken, the skipped ones among them.
        skipped_steps: Number of steps without an update, for a loss or gradient that was not
            finite.
        seconds: Duration, the guide's start included.
        elbo: ELBO of the fitted guide, on fresh draws, in nats.
        elbo_se: Its Monte-Carlo standard error.
        k_hat: Pareto shape of the importance weights of those draws; below 0.7 the posterior can
            be trusted and corrected by the weights.
        vectorized: Whether the model ran for all particles at once.
    """

    losses: np.ndarray = field(repr=False)
    status: Status
    reason: str
    steps: int
    skipped_steps: int
    seconds: float
    elbo: float
    elbo_se: float
    k_hat: float
    vectorized: bool

    def __repr__(self) -> str:
        skipped = f", {self.skipped_steps} skipped" if self.skipped_steps else ""
        looped = "" if self.vectorized else ", model looped over particles"
        rate = f"{self.steps / max(self.seconds, 1e-9):.0f} a second"
        return (
            f"FitResult: {self.status} ({self.reason})\n"
            f"  steps  {self.steps}{skipped} in {self.seconds:.1f} s ({rate}{looped})\n"
            f"  ELBO   {self.elbo:.3f} +- {self.elbo_se:.3f}\n"
            f"  k-hat  {self.k_hat:.2f} ({self._verdict()})"
        )

    def _verdict(self) -> str:
        if np.isnan(self.k_hat):
            return "not known"
        if self.k_hat < 0.7:
            return "good: below 0.7"
        return "bad: above 0.7, do not trust the tails"
