"""The rungs on which a step runs: eager, traced, compiled."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine.graph import signature
from pyro_flows.infer.engine.native import CompilingError
from pyro_flows.infer.engine.recorder import RecordingError
from pyro_flows.infer.engine.runner import Runner
from pyro_flows.infer.engine.step import Batch, StepFunction, clipped

logger = logging.getLogger("pyro_flows")

Rung = Literal["eager", "traced", "compiled"]
RUNGS = ("auto", "eager", "traced", "compiled")

Reduce = Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]

# Recording takes as long as 15 to 60 eager steps, and saves half of a step or so.
_LEAST_STEPS = 100
_MAX_GRAPHS = 8


class Engine:
    """Run a step on the highest rung that it can be run on, or on the one that was asked for.

    - ``"eager"``: as Python calls it;
    - ``"traced"``: as a graph recorded once for each shape of the data, without Pyro's handlers;
    - ``"compiled"``: that graph as native code.

    ``"auto"`` records the steps of runs of at least 100, compiles beside the traced steps where
    the run is long enough to repay it, then switches; what cannot be done falls back one rung,
    with a line in the log that says why. A recorded step is compared with the eager one, on other
    random numbers than it was recorded with, before it is used.

    What a step reads besides tensors (numbers, strings, flags of modules) is read once for each
    shape of the data, unless it is an argument of the model.

    Args:
        who: Named in messages.
        step: The step.
        rung: One of the above, or ``"auto"``.
        steps: How many steps are planned.
        untraceable: Why the step should not be recorded, if so.
        chunks: How often the step is evaluated, for the mean.
        clip_norm: Largest norm of that mean's gradient; a single evaluation clips by itself.
        reduce: Makes of loss and gradients those of all processes; the step then does not clip.

    Raises:
        DomainError: The step cannot be run on the rung that was asked for.
    """

    def __init__(
        self,
        who: str,
        step: StepFunction,
        rung: str,
        steps: int,
        *,
        untraceable: str = "",
        chunks: int = 1,
        clip_norm: float | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self._who, self._step, self._steps = who, step, steps
        self._chunks, self._clip_norm, self._reduce = chunks, clip_norm, reduce
        self._asked = _checks.check_choice(who, "engine", rung, RUNGS)
        self._records = rung in ("traced", "compiled") or (
            rung == "auto" and steps >= _LEAST_STEPS
        )
        self._compiles = rung in ("auto", "compiled")
        self._runners: dict[Any, Runner] = {}
        self._runner: Runner | None = None
        self._batch: Batch | None = None
        self._taken = 0
        if self._records and untraceable:
            self._fall_back_to_eager(untraceable, None)

    @property
    def rung(self) -> Rung:
        """Where the last step ran."""
        if self._runner is None:
            return "eager"
        return "traced" if self._runner.native is None else "compiled"

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take a step's loss and gradient; the gradient goes into the flat parameters' ``.grad``.

        Args:
            batch: What the model is called with.

        Returns:
            The loss, and the norm of the gradient before it was clipped.
        """
        if self._records and batch is not self._batch:
            self._runner, self._batch = self._runner_for(batch), batch
        alone = self._chunks == 1 and self._reduce is None
        loss, norm, *grads = self._run(batch) if alone else self._mean(batch)
        for tensor, grad in zip(self._step.flat.tensors, grads, strict=True):
            tensor.grad = grad
        self._taken += 1
        if self._asked == "auto" and self._compiles and self._runner is not None:
            self._climb(self._runner)
        return loss, norm

    def _run(self, batch: Batch) -> Sequence[Tensor]:
        return self._step(batch) if self._runner is None else self._runner(batch)

    def _mean(self, batch: Batch) -> Sequence[Tensor]:
        """Return the mean over chunks, one after the other, and processes, clipped as a whole."""
        loss, _, *grads = self._run(batch)
        for _ in range(self._chunks - 1):
            next_loss, _, *next_grads = self._run(batch)
            loss = loss + next_loss
            grads = [grad + other for grad, other in zip(grads, next_grads, strict=True)]
        loss, grads = loss / self._chunks, [grad / self._chunks for grad in grads]
        if self._reduce is not None:
            loss, grads = self._reduce(loss, grads)
        return loss, *clipped(grads, self._clip_norm)

    def close(self) -> None:
        """Stop what compiles still."""
        for runner in self._runners.values():
            runner.close()

    def _runner_for(self, batch: Batch) -> Runner | None:
        try:
            key = signature(batch)
            if key in self._runners:
                return self._runners[key]
            if len(self._runners) == _MAX_GRAPHS:
                raise RecordingError(f"the data come in more than {_MAX_GRAPHS} shapes")
            with pyro.validation_enabled(False):
                runner = self._runners[key] = Runner(self._step, batch)
            if self._asked == "compiled":
                runner.compile_now()
        except RecordingError as error:
            self._fall_back_to_eager(str(error), error)
            return None
        except CompilingError as error:
            raise self._refusal("compiled", str(error)) from error
        return runner

    def _climb(self, runner: Runner) -> None:
        try:
            runner.climb(self._steps - self._taken)
        except CompilingError as error:
            self._compiles = False
            logger.warning("%s: runs traced steps, not compiled ones: %s", self._who, error)

    def _fall_back_to_eager(self, why: str, error: Exception | None) -> None:
        if self._asked != "auto":
            raise self._refusal("recorded", why) from error
        self._records = False
        logger.warning("%s: runs eager steps, not traced ones: %s", self._who, why)

    def _refusal(self, what: str, why: str) -> Exception:
        return _checks.refusal(
            DomainError,
            self._who,
            expected=f"a step that can be {what}, for engine={self._asked!r}",
            got=why,
            advice='Pass engine="auto" to run what can be run.',
        )
