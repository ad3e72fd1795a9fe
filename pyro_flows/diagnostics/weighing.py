"""Draws of a guide with the weights that make them draws of the posterior."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer import store
from pyro_flows.infer.guides.flow_guide import FlowGuide
from pyro_flows.infer.importance import psis
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import seeded
from pyro_flows.transforms.continuous import exact_traces


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of a guide, scored.

    Attributes:
        sites: The values of each latent, of shape ``(S,)`` + the site's shape.
        log_p: The model's joint log-density, of shape ``(S,)``.
        log_q: The guide's, of shape ``(S,)``.
        smoothed: The logarithms of the weights after Pareto smoothing; they sum to one.
        k_hat: Pareto shape of the largest weights; NaN where it is not known.
    """

    sites: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor
    smoothed: np.ndarray
    k_hat: float

    @property
    def log_weights(self) -> np.ndarray:
        """The log importance weights, as they are, of shape ``(S,)``."""
        return np.asarray((self.log_p - self.log_q).double().cpu())

    @property
    def ess(self) -> float:
        """Effective number of draws, by the weights as they are."""
        log_weights = self.log_weights
        weights = np.exp(log_weights - log_weights.max())
        return float(weights.sum() ** 2 / np.square(weights).sum())


def weigh(
    who: str,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    num_draws: int,
    seed: int | None,
    chunk_size: int | None,
) -> WeightedDraws:
    """Draw from a guide, and weigh the draws by the model.

    Args:
        who: The caller, for the errors' messages.
        model: The model.
        guide: A guide for it; an ``AutoFlow`` that never ran is refused.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        num_draws: Number of draws.
        seed: Seeds the draws, which then leave the global random state alone.
        chunk_size: Largest number of draws to run at once.

    Raises:
        DomainError: An argument is not possible, the guide never ran, or the data are subsampled.
        NonFiniteError: A log-weight is NaN or plus infinity, or all are minus infinity.
    """
    num_draws = _checks.check_count(who, "num_draws", num_draws)
    if chunk_size is not None:
        chunk_size = _checks.check_count(who, "chunk_size", chunk_size)
    _check_ready(who, guide)
    with ExitStack() as stack:
        for each in (store.unused(), seeded(who, seed), torch.no_grad(), exact_traces()):
            stack.enter_context(each)
        stack.enter_context(pyro.validation_enabled(False))
        particles = Particles(model, guide, args, kwargs)
        _check_whole(who, particles)
        draws = particles.draw(num_draws, chunk_size)
    return WeightedDraws(*draws, *psis((draws.log_p - draws.log_q).double()))


def _check_ready(who: str, guide: Callable[..., Any]) -> None:
    if isinstance(guide, FlowGuide):
        guide.check_ready()
    elif not callable(guide):
        raise _checks.refusal(
            DomainError, who, expected="a guide to call", got=_checks.describe(guide)
        )


def _check_whole(who: str, particles: Particles) -> None:
    if particles.subsamples:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a model that sees all of its data",
            got="one whose plates are subsampled",
            advice="The weights would tell of the subsample as much as of the guide: pass the "
            "model without subsample_size.",
        )
