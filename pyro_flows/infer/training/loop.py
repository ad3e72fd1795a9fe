"""The loop of a fit: steps of an optimiser, what ends them, and what happens where one fails."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyro_flows import _checks
from pyro_flows.checkpoint import JSON
from pyro_flows.errors import DomainError, FlowError, NonFiniteError, NotConvergedError
from pyro_flows.infer.engine import Batch, Engine, FlatParameters
from pyro_flows.infer.random import aside
from pyro_flows.infer.training.averaging import BestState, TailAverage
from pyro_flows.infer.training.plateau import due, on_plateau
from pyro_flows.infer.training.result import Status
from pyro_flows.infer.training.schedule import Schedule

logger = logging.getLogger("pyro_flows")

_MAX_SKIPS = 50
# What raises in one batch does so in most, and not before it has tried for long.
_MAX_ERRORS = 5
_MAX_RESTARTS = 2
_RESTART_FACTOR = 0.1
_REPORT_EVERY = 20


class StepInfo(NamedTuple):
    """What a callback is told after a step.

    Attributes:
        step: Number of steps taken, this one among them.
        steps: Number of steps that are planned at present.
        loss: The negative ELBO estimate; not finite where the step was skipped.
        norm: Norm of the gradient before clipping.
        lr: Step size.
        engine: The rung on which the step ran.
    """

    step: int
    steps: int
    loss: float
    norm: float
    lr: float
    engine: str


# A callback that returns true ends the run.
Callback = Callable[[StepInfo], object]
# Says in words which sites or parameters of a batch are not finite.
Diagnosis = Callable[[Batch], str]


class Loop:
    """Steps of an optimiser that a bad gradient cannot spoil.

    Args:
        engine: Takes a step's loss and gradient.
        flat: The parameters.
        optimizer: Steps the flat parameters.
        scheduler: Sets the optimiser's step size; by ``schedule`` if none.
        schedule: Plans the number of steps, and the factor on the step size.
        stop_early: Whether a plateau of the ELBO begins the decay, and so the end.
        callbacks: Called after each step.
        diagnose: Names what is not finite, for the log.
        who: Named in messages.
        describe: Says in words what a loss is, for the progress bar.
        agree: Whether any process stops, given whether this one's callbacks want to.

    Attributes:
        base_sizes: The largest step size of each of the optimiser's groups.
        losses: The loss of each step so far; NaN where it was skipped.
        skipped: Number of steps that were skipped.
        restarts: Number of times that the run was rolled back.
        plateau: Whether the ELBO reached a plateau.
        average: Mean of the parameters over the decay.
        best: The best state so far.
        start: The state before the first step.
    """

    def __init__(
        self,
        engine: Engine,
        flat: FlatParameters,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        scheduler: LRScheduler | None = None,
        stop_early: bool = True,
        callbacks: tuple[Callback, ...] = (),
        diagnose: Diagnosis,
        who: str = "fit",
        describe: Callable[[float], str] = lambda loss: f"ELBO {-loss:.2f}",
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        _check_optimizer(optimizer, flat.tensors)
        _check_scheduler(scheduler)
        self.engine, self.flat, self.schedule = engine, flat, schedule
        self.optimizer, self.scheduler = optimizer, scheduler
        self._stop_early, self._callbacks, self._diagnose = stop_early, callbacks, diagnose
        self._who, self._describe, self._agree = who, describe, agree
        self.base_sizes = [group["lr"] for group in optimizer.param_groups]
        self.losses: list[float] = []
        self.skipped, self.restarts, self.plateau = 0, 0, False
        self._in_a_row, self._moved = 0, False
        self.average, self.best = TailAverage(), BestState()
        self._good, self.start = flat.copy(), flat.copy()

    def run(
        self,
        batches: Iterator[Batch],
        *,
        title: str | None = None,
        progress: bool,
        after_step: Callable[[], None],
    ) -> tuple[Status, str]:
        """Take the steps that are left, and return how it ended.

        Args:
            batches: What each step is called with.
            title: Stands before the progress bar; the caller's name if not given.
            progress: Whether to show a progress bar.
            after_step: Called after each step, when everything is in order to be saved.

        Raises:
            NonFiniteError: Too many steps in a row were not finite; the last good parameters are
                in place.
        """
        taken = len(self.losses)
        bar = tqdm(
            total=self.schedule.steps,
            initial=taken,
            desc=title or self._who,
            unit="step",
            disable=not progress,
        )
        state = torch.get_rng_state()
        try:
            with bar:
                while len(self.losses) < self.schedule.steps:
                    taken, state = len(self.losses), torch.get_rng_state()
                    stop = self._take(next(batches))
                    after_step()
                    self._show(bar)
                    if stop:
                        return "interrupted", f"by a callback, after {self._progress()}"
        except KeyboardInterrupt:
            if len(self.losses) == taken:
                # Within a step, which a resumed run takes anew.
                torch.set_rng_state(state)
            return "interrupted", f"by the user, after {self._progress()}"
        if self.plateau:
            return "converged", f"the ELBO rose no more after {self.schedule.begin} steps"
        return "max_steps", f"all {self.schedule.steps} steps taken"

    def _progress(self) -> str:
        return f"{len(self.losses)} of {self.schedule.steps} steps"

    def _take(self, batch: Batch) -> bool:
        """Take one step, and say whether a callback wants to stop."""
        step = len(self.losses)
        step_sizes = self._step_sizes(step)
        state = torch.get_rng_state()
        loss, norm, error = self._evaluate(batch)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self._keep()
            self._move(step_sizes)
            self._in_a_row, self._moved = 0, True
        else:
            self._skip(batch, state, error)
        self.losses.append(loss if finite else math.nan)
        self._advance_scheduler()
        self._watch(step)
        lr = float(step_sizes[0])
        info = StepInfo(step + 1, self.schedule.steps, loss, norm, lr, self.engine.rung)
        answers = [callback(info) for callback in self._callbacks]
        wanted = any(isinstance(answer, (bool, np.bool_)) and bool(answer) for answer in answers)
        return bool(answers) and self._agree(wanted)

    def _evaluate(self, batch: Batch) -> tuple[float, float, FlowError | None]:
        """Return the loss and the norm of its gradient; NaN and the error where a step fails."""
        try:
            loss, norm = self.engine(batch)
            return float(loss), float(norm), None
        except (NonFiniteError, NotConvergedError) as error:
            # An iteration within the step, such as a solve with adaptive steps.
            if not self._moved:
                raise
            return math.nan, math.nan, error

    def _step_sizes(self, step: int) -> list[Any]:
        """Return the step size of each group of parameters."""
        shrunk = _RESTART_FACTOR**self.restarts
        if self.scheduler is None:
            factor = self.schedule.factor(step) * shrunk
            return [base * factor for base in self.base_sizes]
        return [group["lr"] * shrunk for group in self.optimizer.param_groups]

    def _move(self, step_sizes: list[Any]) -> None:
        """Step the optimiser, and leave a scheduler the step sizes that it set."""
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        for group, step_size in zip(groups, step_sizes, strict=True):
            group["lr"] = step_size
        self.optimizer.step()
        if self.scheduler is not None:
            for group, step_size in zip(groups, before, strict=True):
                group["lr"] = step_size

    def _advance_scheduler(self) -> None:
        """Count a step, also a skipped one, but for those before the optimiser's first."""
        if self.scheduler is None or len(self.losses) == self.skipped:
            return
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif math.isfinite(self.losses[-1]):
            self.scheduler.step(self.losses[-1])

    def _watch(self, step: int) -> None:
        """Follow the run: its average, its best state, and whether it has come to an end."""
        if self.schedule.decaying(step):
            self.average.update(self.flat.tensors)
        # The last that was found to be good: where the step has led to is not known yet.
        self.best.update(self.losses, self._good)
        taken = step + 1
        looks = self._stop_early and due(taken) and not self.schedule.decaying(taken)
        if looks and on_plateau(self.losses):
            self.plateau = True
            self.schedule.decay_from(taken)

    def _skip(self, batch: Batch, state: Tensor, error: FlowError | None) -> None:
        """Leave everything as it was, and end the run where nothing else helps."""
        self.skipped += 1
        self._in_a_row += 1
        if self.skipped == 1:
            logger.warning(
                "%s: skipped step %d, for %s",
                self._who,
                len(self.losses),
                error or self._cause(batch, state),
            )
        if self._in_a_row < min(_MAX_ERRORS if error else _MAX_SKIPS, self.schedule.steps):
            return
        if self._moved and self.restarts < _MAX_RESTARTS:
            self._restart()
        else:
            self._give_up(str(error or self._cause(batch, state)), error)

    def _cause(self, batch: Batch, state: Tensor) -> str:
        """Say what is not finite in a step that began at a random state."""
        with aside():
            torch.set_rng_state(state)
            return self._diagnose(batch)

    def _restart(self) -> None:
        self.restarts += 1
        logger.warning(
            "%s: %d steps in a row were not finite; goes on from the best state before, with a "
            "tenth of the step size",
            self._who,
            self._in_a_row,
        )
        self.flat.assign(self.best.tensors() or self._good)
        self.optimizer.state.clear()
        self._in_a_row, self._moved = 0, False

    def _give_up(self, cause: str, error: FlowError | None) -> None:
        first = len(self.losses) - self._in_a_row + 1
        self.flat.assign(self._good)
        raise _checks.refusal(
            NonFiniteError if error is None else type(error),
            self._who,
            expected="a finite loss and gradient",
            got=f"{self._in_a_row} steps in a row without, from step {first} on; {cause}",
            advice="The last good parameters are in place. Look in the model for a logarithm, a "
            "root or a division at the edge of its domain, or lower lr.",
        ) from error

    def kept(self) -> dict[str, list[Tensor]]:
        """Return the states that are kept besides the present one: to save them."""
        return {
            "average": self.average.tensors(),
            "best": self.best.tensors(),
            "good": self._good,
            "start": self.start,
        }

    def record(self) -> dict[str, JSON]:
        """Return the counters and plans: to save them."""
        return {
            "skipped": self.skipped,
            "restarts": self.restarts,
            "plateau": self.plateau,
            "in_a_row": self._in_a_row,
            "moved": self._moved,
            "base_sizes": list(self.base_sizes),
            "schedule": self.schedule.state_dict(),
            "average": self.average.record(),
            "best": self.best.record(),
        }

    def restore(
        self, record: Mapping[str, Any], kept: Mapping[str, list[Tensor]], losses: list[float]
    ) -> None:
        """Go on from what was saved.

        Args:
            record: What :meth:`record` returned.
            kept: What :meth:`kept` returned.
            losses: The losses of that time.
        """
        self.losses = list(losses)
        self.skipped, self.restarts = record["skipped"], record["restarts"]
        self.plateau, self._moved = record["plateau"], record["moved"]
        self._in_a_row = record["in_a_row"]
        self.base_sizes = list(record["base_sizes"])
        self.schedule.load_state_dict(record["schedule"])
        self.average.restore(kept["average"], record["average"])
        self.best.restore(kept["best"], record["best"])
        self._good, self.start = (
            [tensor.clone() for tensor in kept[name]] for name in ("good", "start")
        )

    @torch.no_grad()
    def _keep(self) -> None:
        for kept, tensor in zip(self._good, self.flat.tensors, strict=True):
            kept.copy_(tensor)

    def _show(self, bar: "tqdm[None]") -> None:
        taken = len(self.losses)
        if taken % _REPORT_EVERY == 0 or taken == self.schedule.steps:
            bar.total = self.schedule.steps
            words = f"{self._describe(self.losses[-1])}, {self.engine.rung}"
            bar.set_postfix_str(words, refresh=False)
            bar.update(taken - bar.n)


def _check_optimizer(optimizer: Any, tensors: list[Tensor]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise _refusal(
            "optimizer to return an optimiser of torch's",
            _checks.describe(optimizer),
            "Pass lambda parameters: torch.optim.SGD(parameters, lr=0.1), for example.",
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise _refusal(
            "an optimiser that steps by one gradient",
            "LBFGS, whose line search compares several of one and the same loss",
            "Pass another; the noise of the ELBO would mislead it.",
        )
    its = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    if its != {id(tensor) for tensor in tensors}:
        raise _refusal(
            "an optimiser of the tensors that optimizer is called with",
            "one of others, which would train nothing",
            "Pass lambda parameters: torch.optim.SGD(parameters, lr=0.1), for example.",
        )


def _check_scheduler(scheduler: Any) -> None:
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise _refusal(
            "scheduler to return a scheduler of torch's",
            _checks.describe(scheduler),
            "Pass lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, "
            "gamma=0.999), for example.",
        )


def _refusal(expected: str, got: str, advice: str) -> Exception:
    return _checks.refusal(DomainError, "fit", expected=expected, got=got, advice=advice)
