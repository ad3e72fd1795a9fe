"""What a maximum-likelihood fit returns."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Status = Literal["converged", "max_epochs", "interrupted"]


@dataclass(frozen=True)
class MleResult:
    """The course and the outcome of a fit of a density to data.

    Attributes:
        losses: Mean of the objective over each step's batch, of shape ``(steps,)``; NaN where the
            step was skipped.
        validation: The same over the held-out rows, after each epoch, of shape ``(epochs,)``;
            empty without any.
        nll: Mean negative log-likelihood of the held-out rows at the end, in nats; without any,
            of rows that were trained on.
        status: ``"converged"``: the held-out likelihood rose no more; ``"max_epochs"``; or
            ``"interrupted"``.
        reason: Why the fit ended, in words.
        epochs: Number of passes over the data.
        steps: Number of steps taken, the skipped ones among them.
        skipped_steps: Number of steps without an update, for a loss or gradient that was not
            finite.
        seconds: Duration.
        lr: Largest step size.
        state: Which state is in place: ``"average"`` over the last steps, ``"best"`` on the
            held-out rows, or ``"last"``.
        engine: How the last step ran: ``"eager"``, ``"traced"`` or ``"compiled"``.
        objective: What was minimised: ``"NLL"``, the negative log-likelihood, or ``"matching
            loss"``, that of :func:`~pyro_flows.density.fit_matching`.
    """

    losses: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    nll: float
    status: Status
    reason: str
    epochs: int
    steps: int
    skipped_steps: int
    seconds: float
    lr: float
    state: str
    engine: str
    objective: str = "NLL"

    def __repr__(self) -> str:
        skipped = f", {self.skipped_steps} skipped" if self.skipped_steps else ""
        rate = f"{self.seconds:.1f} s, {self.engine}"
        rows = "held-out rows" if self.validation.size else "training rows"
        return (
            f"MleResult: {self.status} ({self.reason})\n"
            f"  steps  {self.steps}{skipped}, {self.epochs} epochs in {rate}\n"
            f"  NLL    {self.nll:.4f} nats a row, {rows}, state {self.state!r}"
        )
