"""One run of a fit: what it is made of, its steps, and its end."""

import logging
import math
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor, nn

from pyro_flows.checkpoint import JSON
from pyro_flows.infer.engine import Engine, FlatParameters, StepFunction
from pyro_flows.infer.engine.memory import peak_memory
from pyro_flows.infer.guides.flow_guide import FlowGuide
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import aside
from pyro_flows.infer.threads import threads_for
from pyro_flows.infer.training import refinement
from pyro_flows.infer.training.adam import FlatAdam
from pyro_flows.infer.training.agreement import check_agreement, sizes_of
from pyro_flows.infer.training.batches import Batches
from pyro_flows.infer.training.diagnosis import Diagnosis
from pyro_flows.infer.training.loop import Loop
from pyro_flows.infer.training.objective import VariationalLoss
from pyro_flows.infer.training.options import FitOptions
from pyro_flows.infer.training.outcome import Outcome, choose_state, evaluate
from pyro_flows.infer.training.ranks import Ranks
from pyro_flows.infer.training.result import Status
from pyro_flows.infer.training.run_file import RunFile, take_steps
from pyro_flows.infer.training.schedule import Schedule
from pyro_flows.infer.training.step_size import search_step_size
from pyro_flows.infer.training.trainable import trainable

logger = logging.getLogger("pyro_flows")

_LR, _LR_BY_DIMENSION = 5e-3, 0.1
# Steps between two comparisons of the processes' parameters.
_CHECK_EVERY = 100


class Ending(NamedTuple):
    """How a run ended, which state it hands back, and what fresh draws say of it."""

    status: Status
    reason: str
    state: str
    outcome: Outcome
    step_bytes: int


class Run:
    """One run of a fit.

    Args:
        scorer: Draws and scores the particles.
        batches: What each step is called with.
        options: The options.
        ranks: The processes that fit together.

    Raises:
        DomainError: There is nothing to train, or an option does not go with the guide.
        CheckpointError: The run to be resumed is damaged, or another's.
    """

    def __init__(
        self, scorer: Particles, batches: Batches, options: FitOptions, ranks: Ranks
    ) -> None:
        self._scorer, self._batches, self._options = scorer, batches, options
        self._ranks = ranks
        args, kwargs = batches.first
        of_guide, of_model = trainable(scorer.model, scorer.guide, args, kwargs)
        self._flat = FlatParameters({**of_guide, **of_model})
        self._groups = [list(of_guide), list(of_model)]
        self._step = self._make_step(options.num_importance, together=ranks.size > 1)
        try:
            self._begin_alike()
            self.loop = self._make_loop(ranks.from_first(self._step_size))
            self._file = self._make_file()
            if self._file is not None and options.resume:
                self._file.restore()
            if ranks.rank > 0:
                # The first process saves for all.
                self._file = None
            ranks.draw_apart()
        except BaseException:
            self._flat.release()
            raise

    def _modules(self) -> dict[str, nn.Module]:
        parts = {"guide": self._scorer.guide, "model": self._scorer.model}
        return {role: part for role, part in parts.items() if isinstance(part, nn.Module)}

    def _begin_alike(self) -> None:
        """Start all processes from the parameters and buffers of the first."""
        buffers = [each for module in self._modules().values() for each in module.buffers()]
        self._ranks.share([*self._flat.tensors, *buffers])

    def _make_step(
        self, num_importance: int, elbo_weight: float = 0.0, *, together: bool = False
    ) -> StepFunction:
        options, scorer = self._options, self._scorer
        objective = VariationalLoss(
            scorer,
            options.chunk,
            num_importance=num_importance,
            elbo_weight=elbo_weight,
            penalty=options.penalty,
            squared=getattr(scorer.guide, "gradient", "total") == "path",
        )
        whole = options.chunks == 1 and not together
        clip_norm = options.clip_norm if whole else None
        return StepFunction(objective, self._flat, self._groups, clip_norm)

    def _step_size(self) -> float:
        asked = self._options.lr
        if isinstance(asked, float | int):
            return float(asked)
        lr = min(_LR, _LR_BY_DIMENSION / max(self._num_latents(), 1))
        # A run that goes on has its step size in its file.
        goes_on = self._options.resume and Path(self._options.checkpoint or "").is_file()
        if asked is None or goes_on:
            return lr
        with pyro.validation_enabled(False), self._threads():
            steps = self._options.steps
            return search_step_size(self._step, self._batches.from_step(0), lr, steps)

    def _num_latents(self) -> int:
        guide = self._scorer.guide
        if isinstance(guide, AutoContinuous | FlowGuide):
            return int(guide.latent_dim)
        return self._scorer.num_latents

    def _make_loop(self, lr: float) -> Loop:
        options = self._options
        make = options.optimizer or (lambda tensors: FlatAdam(tensors, lr))
        optimizer = make(self._flat.tensors)
        return Loop(
            self._engine(self._step, options.engine, options.steps, together=self._ranks.size > 1),
            self._flat,
            optimizer,
            Schedule(options.steps),
            scheduler=options.scheduler and options.scheduler(optimizer),
            stop_early=options.stop_early,
            callbacks=tuple(options.callbacks),
            diagnose=self._diagnosis(self._step),
            agree=self._ranks.any,
        )

    def _mean(self, loss: Tensor, grads: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the means over the processes, which must not have come apart."""
        if len(self.loop.losses) % _CHECK_EVERY == 0:
            self._ranks.check_same("parameters", self._flat.tensors)
        return self._ranks.mean(loss, grads)

    def _engine(
        self, step: StepFunction, rung: str, steps: int, *, together: bool = False
    ) -> Engine:
        options = self._options
        looped = "the model runs once for each particle" if not self._scorer.vectorized else ""
        return Engine(
            "fit",
            step,
            rung,
            steps,
            untraceable=looped,
            chunks=options.chunks,
            clip_norm=options.clip_norm,
            reduce=self._mean if together else None,
        )

    def _diagnosis(self, step: StepFunction) -> Diagnosis:
        return Diagnosis(self._scorer, step, self._options.chunk, self._options.chunks)

    def _make_file(self) -> RunFile | None:
        options = self._options
        if options.checkpoint is None:
            return None
        same: dict[str, JSON] = {
            "steps": options.steps,
            "particles": options.particles,
            "particle_chunk": options.chunk,
            "lr": options.lr,
            "clip_norm": options.clip_norm,
            "num_importance": options.num_importance,
            "gradient": options.gradient,
            "penalty": None if options.penalty is None else repr(options.penalty),
            "stop_early": options.stop_early,
            "guide": type(self._scorer.guide).__name__,
        }
        if self._ranks.size > 1:
            same["processes"] = self._ranks.size
        same |= sizes_of(self._scorer)
        every = options.checkpoint_every
        return RunFile(
            options.checkpoint,
            every,
            self.loop,
            self._batches,
            modules=self._modules(),
            options=same,
        )

    def take(self) -> Ending:
        """Take the steps, put the best state in place, and score it.

        Raises:
            NonFiniteError: Too many steps in a row were not finite; the last good parameters are
                in place.
        """
        with pyro.validation_enabled(False), self._threads():
            try:
                status, reason = self._steps()
                self.loop.engine.close()
                ending = self._ranks.from_first(lambda: self._end(status, reason))
                self._ranks.share(self._flat.tensors)
            except KeyboardInterrupt:
                # The steps are taken; only what is said of them is missing.
                unknown = Outcome(math.nan, math.nan, math.nan, math.nan)
                reason = "by the user, before the evaluation"
                ending = Ending("interrupted", reason, "last", unknown, 0)
            finally:
                self.loop.engine.close()
                self._flat.release()
        return ending

    def _end(self, status: Status, reason: str) -> Ending:
        """Choose the state to hand back, and score it."""
        state = self._choose()
        outcome = evaluate(self._scorer, self._options.chunk, batches=self._batches.one_pass())
        if status != "interrupted":
            state, outcome = self._refine(state, outcome)
        return Ending(status, reason, state, outcome, self._memory())

    def _refine(self, state: str, outcome: Outcome) -> tuple[str, Outcome]:
        options, scorer = self._options, self._scorer
        if not refinement.is_due(options, scorer, outcome):
            return state, outcome
        steps, lr = refinement.steps_of(options), self.loop.base_sizes[0]
        num_importance = refinement.num_importance_of(options)
        step = self._make_step(num_importance, refinement.ELBO_WEIGHT)
        # Compiling takes as long as all these steps.
        rung = "traced" if options.engine == "compiled" else options.engine
        engine = self._engine(step, rung, steps)

        def make_loop() -> Loop:
            return Loop(
                engine,
                self._flat,
                FlatAdam(self._flat.tensors, refinement.SHARE_OF_LR * lr),
                Schedule(steps),
                stop_early=False,
                diagnose=self._diagnosis(step),
            )

        try:
            batches = self._batches.from_step(0)
            refined = refinement.refine(make_loop, batches, options, scorer)
        finally:
            engine.close()
        return (state, outcome) if refined is None else ("refined", refined)

    def _memory(self) -> int:
        with aside():
            return peak_memory(lambda: self._step(self._batches.first))

    def _threads(self) -> AbstractContextManager[None]:
        chunk = self._options.chunk
        products = chunk * sum(tensor.numel() for tensor in self._flat.tensors)
        return threads_for(elements=chunk * self._scorer.elements, products=products)

    def _steps(self) -> tuple[Status, str]:
        progress = self._options.progress and self._ranks.rank == 0
        with self._ranks.shard():
            return take_steps(self.loop, self._from_here(), self._file, progress=progress)

    def _from_here(self) -> Any:
        check = partial(check_agreement, self._scorer)
        return self._batches.from_step(len(self.loop.losses), check)

    def _choose(self) -> str:
        self._scorer.args, self._scorer.kwargs = self._batches.first
        loop = self.loop
        candidates = {
            "last": self._flat.copy(),
            "average": loop.average.tensors(),
            "best": loop.best.tensors(),
        }
        if self._options.batches is None:
            # A start is made for one batch, which it would win on.
            candidates["start"] = loop.start
        chosen = choose_state(
            self._scorer,
            self._flat,
            candidates,
            self._options.chunk,
            num_importance=self._options.num_importance,
            batches=self._batches.one_pass(),
        )
        if chosen == "start":
            logger.warning("fit: hands back the start, since no later state has a higher bound")
        return chosen
