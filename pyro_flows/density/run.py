"""One run of the fit of a density: what it is made of, its steps, and its end."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_flows import _checks
from pyro_flows.checkpoint import JSON
from pyro_flows.density.minibatches import Minibatches
from pyro_flows.density.objectives import Likelihood
from pyro_flows.density.options import MleOptions
from pyro_flows.density.result import Status
from pyro_flows.density.schedule import CosineSchedule
from pyro_flows.density.validation import HeldOut, mean_loss, rows_at_once
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import Batch, Engine, FlatParameters, Loss, StepFunction
from pyro_flows.infer.random import aside
from pyro_flows.infer.threads import threads_for
from pyro_flows.infer.training.batches import Batches
from pyro_flows.infer.training.loop import Loop
from pyro_flows.infer.training.run_file import RunFile, take_steps
from pyro_flows.transforms.continuous import billed


class MleRun:
    """One run.

    Args:
        objective: What is minimised, and of what.
        train: The rows to train on, and their contexts, if any.
        held_out: The rows that are held out, and theirs; none to hold out none.
        options: The options.
        same: What must be the same when the run is continued, as JSON can hold it.
        beginning: The random state that the rows were split in.

    Attributes:
        loop: The steps.
        held_out: What the held-out rows say.
        status: How the run ended.
        reason: The same in words.
        state: Which state is in place.
        nll: The mean negative log-likelihood of the held-out rows; or of the last epoch's steps,
            or, where they tell another loss, of some rows that were trained on.

    Raises:
        DomainError: There is nothing to train, or an option is not possible.
        CheckpointError: The run to be resumed is damaged, or another's.
    """

    def __init__(
        self,
        objective: Likelihood,
        train: Sequence[Tensor],
        held_out: Sequence[Tensor],
        options: MleOptions,
        *,
        same: Mapping[str, JSON],
        beginning: Tensor,
    ) -> None:
        self._objective, self._flow = objective, objective.density
        self._options, self._train, self._left_out = options, train, held_out
        self._minibatches = Minibatches(train, options.batch_size, self._prepared)
        self._batches = Batches((), {}, self._minibatches)
        parameters = objective.trained()
        if not parameters:
            raise _checks.refusal(
                DomainError,
                objective.who,
                expected="a flow with parameters to train",
                got="none that requires a gradient",
                advice="Call flow.requires_grad_(True).",
            )
        self._flat, self._beginning = FlatParameters(parameters), beginning
        try:
            steps, score = len(self._minibatches), self._score if held_out else None
            self.held_out = HeldOut(score, self._flat, steps, options.patience)
            self.loop = self._make_loop(list(parameters))
            self._file = self._make_file(same)
            if self._file is not None and options.resume:
                self._file.restore()
        except BaseException:
            self._flat.release()
            raise
        self.status: Status = "max_epochs"
        self.reason, self.state, self.nll = "", "last", math.inf

    def _make_loop(self, names: list[str]) -> Loop:
        options, steps = self._options, self._options.epochs * len(self._minibatches)
        step = StepFunction(self._loss, self._flat, [names], options.clip_norm)
        return Loop(
            Engine(self._objective.who, step, options.engine, steps),
            self._flat,
            options.make_optimizer(self._flat.tensors),
            CosineSchedule(steps),
            stop_early=False,
            callbacks=(self.held_out, *options.callbacks),
            diagnose=self._diagnose,
            who=self._objective.who,
            describe=self._describe,
        )

    def _make_file(self, same: Mapping[str, JSON]) -> RunFile | None:
        if self._options.checkpoint is None:
            return None
        return RunFile(
            self._options.checkpoint,
            self._options.checkpoint_every,
            self.loop,
            self._batches,
            modules={"flow": self._flow},
            options=same,
            who=self._objective.who,
            kind=self._objective.kind,
            watchers={"held_out": self.held_out},
            beginning=self._beginning,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch."""
        return len(self._minibatches)

    def take(self) -> None:
        """Take the steps, and put the best state in place.

        Raises:
            NonFiniteError: Too many steps in a row were not finite; the last good parameters are
                in place.
        """
        elements = self._minibatches.batch_size * self._flow.input_dim
        try:
            with threads_for(elements=elements, products=self._products()):
                try:
                    status = self._take_steps()
                finally:
                    self.loop.engine.close()
                self._choose()
        finally:
            self._flat.release()
        if self.held_out.ran_out:
            self.status = "converged"
            self.reason = f"no better held-out likelihood in {self._options.patience} epochs"
        elif status == "interrupted":
            self.status = "interrupted"

    @torch.no_grad()
    def _products(self) -> int:
        """Return the number of multiplications that it takes to score a batch."""
        parameters = list(self._flow.parameters())
        if all(parameter.dim() <= 2 for parameter in parameters):
            return self._minibatches.batch_size * sum(map(Tensor.numel, parameters))
        # A convolution uses a weight as often as there are pixels.
        rows = (tensor[: self._minibatches.batch_size] for tensor in self._train)
        with aside(), FlopCounterMode(display=False) as counter:
            self._objective.losses(*self._objective.prepared(*rows))
        return counter.get_total_flops() // 2

    def _take_steps(self) -> str:
        if self.held_out.ran_out:
            # So it had before the break.
            return "converged"
        batches = self._batches.from_step(len(self.loop.losses))
        progress = self._options.progress
        status, self.reason = take_steps(self.loop, batches, self._file, progress=progress)
        return status

    def _prepared(self, data: Tensor, *contexts: Tensor) -> tuple[Tensor, ...]:
        augment = self._options.augment
        return self._objective.prepared(data if augment is None else augment(data), *contexts)

    def _loss(self, batch: Batch) -> Loss:
        penalty = self._options.penalty
        if penalty is None:
            loss = self._objective.losses(*batch[0]).mean()
            return Loss(loss, (loss,))
        with billed(penalty, self._objective.who) as bill:
            losses = self._objective.losses(*batch[0])
        loss = losses.mean()
        return Loss(loss, (loss + bill.mean(len(losses)),))

    @cached_property
    def _fixed(self) -> Sequence[Tensor]:
        return self._objective.held_out(self._left_out, self._beginning)

    def _score(self) -> float:
        return mean_loss(self._objective.losses, self._flow, self._fixed)

    def _nll(self, rows: Sequence[Tensor]) -> float:
        return mean_loss(Likelihood(self._flow).losses, self._flow, rows)

    def _choose(self) -> None:
        """Put the state of the highest held-out likelihood in place; else the average."""
        average = self.loop.average.tensors()
        if not self.held_out.state:
            if average:
                self._flat.assign(average)
                self.state = "average"
            # None was finite, and the training rows cannot speak for those held out.
            self.nll = math.inf if self.held_out.scores else self._nll_of_training()
            return
        states = {"average": average, "best": self.held_out.state}
        before, scores = self._flat.copy(), {}
        try:
            for name, tensors in states.items():
                if tensors:
                    self._flat.assign(tensors)
                    scores[name] = self._nll(self._left_out)
        except BaseException:
            # Ctrl-C, say: no state that was only tried must stay.
            self._flat.assign(before)
            raise
        self.state = min(scores, key=lambda name: scores[name])
        self.nll = scores[self.state]
        self._flat.assign(states[self.state])

    def _nll_of_training(self) -> float:
        if not self._objective.likelihood:
            size = rows_at_once(self._flow)
            return self._nll([tensor[:size] for tensor in self._train])
        recent = np.array(self.loop.losses[-self.steps_per_epoch :])
        return float(np.nanmean(recent)) if np.isfinite(recent).any() else math.nan

    def _describe(self, loss: float) -> str:
        scores = self.held_out.scores
        return f"{self._objective.label} {loss:.3f}" + (
            f", held out {scores[-1]:.3f}" if scores else ""
        )

    @torch.no_grad()
    def _diagnose(self, batch: Batch) -> str:
        bad = ~self._objective.losses(*batch[0]).isfinite()
        if bool(bad.any()):
            label = self._objective.label
            return f"a {label} that is not finite at {int(bad.sum())} of {len(bad)} rows"
        return "a gradient that is not finite"
