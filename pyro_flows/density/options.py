"""The options of the fit of a density, checked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.density.minibatches import Augment
from pyro_flows.infer.engine import RUNGS
from pyro_flows.infer.training.adam import FlatAdam
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.options import MakeOptimizer, check_checkpoint, check_functions
from pyro_flows.transforms.continuous import TransportCost, check_penalty


@dataclass(frozen=True)
class MleOptions:
    """What :func:`~pyro_flows.density.fit_mle` takes besides flow, data and seed; see there."""

    who: str = "fit_mle"
    epochs: int = 200
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.0
    patience: int | None = 30
    clip_norm: float = 10.0
    augment: Augment | None = None
    penalty: TransportCost | None = None
    engine: str = "auto"
    optimizer: MakeOptimizer | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = 60.0
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) is not None or name != "patience":
                self._set(name, _checks.check_count(self.who, name, getattr(self, name)))
        for name in ("lr", "clip_norm", "weight_decay"):
            value = getattr(self, name)
            self._set(
                name, _checks.check_positive(self.who, name, value, zero=name == "weight_decay")
            )
        _checks.check_choice(self.who, "engine", self.engine, RUNGS)
        every = check_checkpoint(
            self.who, self.checkpoint, self.checkpoint_every, resume=self.resume
        )
        self._set("checkpoint_every", every)
        check_penalty(self.who, self.penalty)
        check_functions(self.who, self.callbacks, optimizer=self.optimizer, augment=self.augment)

    def _set(self, name: str, value: float) -> None:
        """Keep a number as Python's own, which a run file can hold, in place of numpy's."""
        object.__setattr__(self, name, value)

    def make_optimizer(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser of some flat tensors."""
        if self.optimizer is not None:
            return self.optimizer(tensors)
        return FlatAdam(tensors, self.lr, weight_decay=self.weight_decay)
