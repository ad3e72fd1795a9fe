"""The loop of a fit: steps of an optimiser, and what happens when one goes wrong."""

import logging
import math

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_flows import _checks
from pyro_flows.errors import NonFiniteError
from pyro_flows.infer.log_density import describe_non_finite
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.result import Status

logger = logging.getLogger("pyro_flows")

_MAX_SKIPS = 50
_WARM_UP_STEPS = 50
_REPORT_EVERY = 20


class Loop:
    """Steps of Adam that a bad gradient cannot spoil.

    Args:
        scorer: Draws and scores the particles.
        parameters: What is trained.
        steps: Number of steps.
        lr: Largest step size.
        clip_norm: Largest norm of the gradient over all parameters.

    Attributes:
        losses: The negative ELBO estimate of each step so far; NaN where it was skipped.
        skipped: Number of steps that were skipped.
    """

    def __init__(
        self, scorer: Particles, parameters: list[Tensor], steps: int, lr: float, clip_norm: float
    ) -> None:
        self._scorer, self._parameters = scorer, parameters
        self._steps, self._clip_norm = steps, clip_norm
        self._good = [parameter.detach().clone() for parameter in parameters]
        self._optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _step_factor(step, steps)
        )
        self.losses: list[float] = []
        self.skipped = 0

    def run(self, particles: int, progress: bool) -> tuple[Status, str]:
        """Take all steps, and return how it ended.

        Args:
            particles: Number of Monte-Carlo draws a step.
            progress: Whether to show a progress bar.

        Raises:
            NonFiniteError: 50 steps in a row were not finite; the last good parameters are in
                place.
        """
        in_a_row = 0
        bar = tqdm(range(self._steps), desc="fit", unit="step", disable=not progress)
        try:
            for step in bar:
                in_a_row = 0 if self._step(particles) else in_a_row + 1
                if in_a_row == min(_MAX_SKIPS, self._steps):
                    self._give_up(step - in_a_row + 1, in_a_row)
                if step % _REPORT_EVERY == 0:
                    bar.set_postfix_str(f"ELBO {-self.losses[-1]:.2f}", refresh=False)
        except KeyboardInterrupt:
            self._restore()
            return "interrupted", f"by the user, after {len(self.losses)} of {self._steps} steps"
        finally:
            bar.close()
        return "max_steps", f"all {self._steps} steps taken"

    def _step(self, particles: int) -> bool:
        self._optimizer.zero_grad(set_to_none=True)
        scores = self._scorer.score(particles)
        loss = (scores.log_q - scores.log_p).detach().mean()
        finite = bool(loss.isfinite())
        if finite:
            (-scores.surrogate.mean()).backward()
            norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            finite = bool(norm.isfinite())
        self.losses.append(float(loss) if finite else float("nan"))
        if finite:
            self._keep()
            self._optimizer.step()
            self._schedule.step()
        else:
            self._skip(float(loss))
        return finite

    def _skip(self, loss: float) -> None:
        if self.skipped == 0:
            what = (
                f"a loss of {loss}" if not math.isfinite(loss) else "a gradient that is not finite"
            )
            logger.warning("fit: skipped step %d, for %s", len(self.losses) - 1, what)
        self.skipped += 1

    @torch.no_grad()
    def _keep(self) -> None:
        for kept, parameter in zip(self._good, self._parameters, strict=True):
            kept.copy_(parameter)

    @torch.no_grad()
    def _restore(self) -> None:
        for kept, parameter in zip(self._good, self._parameters, strict=True):
            parameter.copy_(kept)

    def _give_up(self, first: int, count: int) -> None:
        with torch.no_grad():
            traces = (
                self._scorer.traces(1)
                if self._scorer.vectorized
                else self._scorer.single_traces(1)[0]
            )
            for trace in traces:
                trace.compute_log_prob()
        where = describe_non_finite(traces[1])
        self._restore()
        raise _checks.refusal(
            NonFiniteError,
            "fit",
            expected="a finite loss and gradient",
            got=f"{count} steps in a row without, from step {first} on; "
            + (where or "every site's log-density is finite, its gradient is not"),
            advice="The last good parameters are in place. Look in the model for a logarithm, a "
            "root or a division at the edge of its domain, or lower lr.",
        )


def _step_factor(step: int, steps: int) -> float:
    """Warm up linearly, then follow half a cosine to zero."""
    warm_up = min(_WARM_UP_STEPS, steps // 4)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
