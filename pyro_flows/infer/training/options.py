"""The options of a fit, checked."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import RUNGS
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.objective import GRADIENTS
from pyro_flows.transforms.continuous import TransportCost, check_penalty

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
_WHO = "fit"


@dataclass(frozen=True)
class FitOptions:
    """What :func:`~pyro_flows.fit` takes besides model, guide, data and seed; see there."""

    steps: int = 2000
    particles: int = 256
    lr: float | str | None = None
    clip_norm: float = 10.0
    num_importance: int = 1
    gradient: str | None = None
    penalty: TransportCost | None = None
    engine: str = "auto"
    optimizer: MakeOptimizer | None = None
    scheduler: MakeScheduler | None = None
    stop_early: bool = True
    refine: bool = True
    particle_chunk: int | None = None
    batches: Iterable[Any] | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = 60.0
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "particles", "num_importance", "particle_chunk"):
            if getattr(self, name) is not None or name != "particle_chunk":
                self._set(name, _checks.check_count(_WHO, name, getattr(self, name)))
        self._set("clip_norm", _checks.check_positive(_WHO, "clip_norm", self.clip_norm))
        every = check_checkpoint(_WHO, self.checkpoint, self.checkpoint_every, resume=self.resume)
        self._set("checkpoint_every", every)
        if isinstance(self.lr, str):
            _checks.check_choice(_WHO, "lr", self.lr, ("search",))
        elif self.lr is not None:
            self._set("lr", _checks.check_positive(_WHO, "lr", self.lr))
        _checks.check_choice(_WHO, "engine", self.engine, RUNGS)
        check_penalty(_WHO, self.penalty)
        self._check_gradient()
        self._check_chunk()
        functions = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        check_functions(_WHO, self.callbacks, **functions)
        if self.lr is not None and self.optimizer is not None:
            raise _refusal("lr or an optimizer of your own", "both", "Give the optimizer its lr.")

    def _set(self, name: str, value: float) -> None:
        """Keep a number as Python's own, which a run file can hold, in place of numpy's."""
        object.__setattr__(self, name, value)

    @property
    def chunk(self) -> int:
        """Number of particles at once."""
        return self.particles if self.particle_chunk is None else self.particle_chunk

    @property
    def chunks(self) -> int:
        """How often that many are drawn in a step."""
        return self.particles // self.chunk

    def _check_gradient(self) -> None:
        if self.gradient is None:
            return
        _checks.check_choice(_WHO, "gradient", self.gradient, GRADIENTS)
        if self.gradient == "path" and self.num_importance > 1:
            raise _refusal(
                "an unbiased gradient of the importance-weighted bound",
                'gradient="path", which is biased for num_importance above 1',
                'Pass gradient="dreg" or gradient="total".',
            )

    def _check_chunk(self) -> None:
        if self.particles % self.chunk or self.chunk % self.num_importance:
            raise _refusal(
                "particles to be a multiple of particle_chunk, and that one of num_importance",
                f"particles={self.particles}, particle_chunk={self.particle_chunk}, "
                f"num_importance={self.num_importance}",
            )


def check_functions(who: str, callbacks: Any, **functions: Any) -> None:
    """Refuse what cannot be called.

    Args:
        who: Named in messages.
        callbacks: Functions, in a list.
        **functions: Functions by name, or none.

    Raises:
        DomainError: One of them is no function.
    """
    if not isinstance(callbacks, Sequence):
        raise _checks.refusal(
            DomainError,
            who,
            expected="callbacks to be a list of functions",
            got=_checks.describe(callbacks),
            advice="Pass [function].",
        )
    named = {**functions, **{f"callbacks[{k}]": each for k, each in enumerate(callbacks)}}
    for name, value in named.items():
        if value is not None and not callable(value):
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"{name} to be a function",
                got=_checks.describe(value),
                advice="Pass lambda parameters: torch.optim.SGD(parameters, lr=0.1), for example.",
            )


def check_checkpoint(who: str, checkpoint: Any, every: Any, *, resume: bool) -> float:
    """Refuse what is no file to save a run in; return the seconds between two saves.

    Args:
        who: Named in messages.
        checkpoint: A path, or none.
        every: Seconds between two saves.
        resume: Whether to go on from the file.

    Raises:
        DomainError: One of them is not possible.
    """
    if not isinstance(checkpoint, str | os.PathLike | None):
        got = _checks.describe(checkpoint)
        raise _checks.refusal(DomainError, who, expected="checkpoint to be a path", got=got)
    if resume and checkpoint is None:
        expected = "a path as checkpoint, to resume from"
        raise _checks.refusal(DomainError, who, expected=expected, got="none")
    return _checks.check_positive(who, "checkpoint_every", every)


def _refusal(expected: str, got: str, advice: str = "") -> Exception:
    return _checks.refusal(DomainError, _WHO, expected=expected, got=got, advice=advice)
