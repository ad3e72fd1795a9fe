"""The fit loop."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError
from pyro_flows.infer import store
from pyro_flows.infer.guide import AutoFlow
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.loop import Loop
from pyro_flows.infer.model_check import ModelCheck
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import seeded
from pyro_flows.infer.result import FitResult
from pyro_flows.infer.threads import threads_for

logger = logging.getLogger("pyro_flows")

_FINAL_DRAWS = 4096
_FINAL_DRAWS_LOOPED = 1024
_LEAST_BATCH = 64


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int = 2000,
    particles: int = 256,
    lr: float = 5e-3,
    clip_norm: float = 10.0,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> FitResult:
    r"""Fit a guide to the posterior of a model, by stochastic gradient ascent of the ELBO.

    .. math:: \mathrm{ELBO} = \mathbb{E}_{q(\theta)} [\log p(\theta, y) - \log q(\theta)]

    Adam, with a warm-up of 50 steps, a cosine decay of the step size to zero, and clipping of the
    gradient's norm. All particles of a step run at once where the model broadcasts over them,
    which is checked, and one by one where it does not. A step whose loss or gradient is not finite
    is skipped; its parameters and moments stay as they were.

    Args:
        model: The model.
        guide: An :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's.
        *args: Arguments of the model.
        steps: Number of steps.
        particles: Number of Monte-Carlo draws a step.
        lr: Largest step size.
        clip_norm: Largest norm of the gradient over all parameters.
        seed: Seeds the run, which then leaves the global random state alone; none draws from that
            state.
        progress: Whether to show a progress bar.
        **kwargs: Keyword arguments of the model; one that has a name of the above is to be bound
            with ``functools.partial``.

    Returns:
        The losses, the ELBO with its standard error, k-hat, and how the fit ended. Ctrl-C ends it
        early with what was reached.

    Raises:
        DomainError: An argument is not possible, or there is nothing to train.
        NonFiniteError: 50 steps in a row were not finite; the last good parameters are in place.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows.infer import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoFlow(model, flow="planar")
        >>> result = fit(model, guide, torch.ones(10), steps=20, seed=0, progress=False)
        >>> result.status
        'max_steps'
    """
    steps = _checks.check_count("fit", "steps", steps)
    particles = _checks.check_count("fit", "particles", particles)
    lr = _checks.check_positive("fit", "lr", lr)
    clip_norm = _checks.check_positive("fit", "clip_norm", clip_norm)
    began = time.perf_counter()
    with store.unused(), seeded("fit", seed):
        if isinstance(guide, AutoFlow):
            guide.initialise(*args, **kwargs)
        scorer = _particles(model, guide, args, kwargs)
        parameters = _trainable(model, guide, args, kwargs)
        loop = Loop(scorer, parameters, steps, lr, clip_norm)
        elements = particles * scorer.elements
        products = particles * sum(parameter.numel() for parameter in parameters)
        with pyro.validation_enabled(False), threads_for(elements=elements, products=products):
            status, reason = loop.run(particles, progress)
            try:
                outcome = _evaluate(scorer, particles)
            except KeyboardInterrupt:
                # The steps are taken; only what is said of them is missing.
                status, reason = "interrupted", "by the user, before the final evaluation"
                outcome = Outcome(math.nan, math.nan, math.nan, math.nan)
    return FitResult(
        losses=np.array(loop.losses),
        status=status,
        reason=reason,
        steps=len(loop.losses),
        skipped_steps=loop.skipped,
        seconds=time.perf_counter() - began,
        vectorized=scorer.vectorized,
        subsampled=scorer.subsamples,
        **outcome._asdict(),
    )


def _particles(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Particles:
    """Run model and guide once under Pyro's validation, which the steps then do without."""
    try:
        with ModelCheck("fit", latents=False):
            scorer = Particles(model, guide, args, kwargs)
    except FlowError:
        raise
    except (ValueError, RuntimeError) as error:
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a model and a guide that run under Pyro's validation",
            got=f"the error below\n{error}\n",
            advice="Run the model by itself with pyro.poutine.trace(model).get_trace(...); where "
            "the guide was set up for data of other sizes, make a new one.",
        ) from error
    if not scorer.vectorized:
        logger.warning(
            "fit: runs the model once for each particle, which is slow, since %s",
            scorer.broadcast.reason,
        )
    return scorer


def _trainable(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """Return the parameters of guide and model: of the modules, and of Pyro's store."""
    with torch.no_grad(), poutine.block(), poutine.trace(param_only=True) as capture:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.replay(model, trace=guide_trace)(*args, **kwargs)
    sites: list[Any] = list(capture.trace.nodes.values())
    found = [site["value"].unconstrained() for site in sites]
    for part in (guide, model):
        found += list(part.parameters()) if isinstance(part, nn.Module) else []
    unique = {id(parameter): parameter for parameter in found if parameter.requires_grad}
    if not unique:
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a guide or a model with parameters to train",
            got="none that require a gradient",
            advice="Call requires_grad_(True) on a frozen guide.",
        )
    return list(unique.values())


class Outcome(NamedTuple):
    """What fresh draws say of a fitted guide."""

    elbo: float
    elbo_se: float
    ess: float
    k_hat: float


@torch.no_grad()
def _evaluate(scorer: Particles, particles: int) -> Outcome:
    """Score fresh draws, in batches like the fit's."""
    draws = _FINAL_DRAWS if scorer.vectorized else _FINAL_DRAWS_LOOPED
    size = max(particles, _LEAST_BATCH)
    batches = [scorer.score(size) for _ in range(math.ceil(draws / size))]
    log_weights = torch.cat([batch.log_p - batch.log_q for batch in batches]).double()
    elbo, elbo_se = float(log_weights.mean()), float(log_weights.std() / len(log_weights) ** 0.5)
    bad = bool((log_weights.isnan() | (log_weights == torch.inf)).any())
    if bad or scorer.subsamples:
        # With a subsample, the weights would tell of the subsample as much as of the guide.
        return Outcome(elbo, elbo_se, math.nan, math.nan)
    shares = torch.softmax(log_weights, 0)
    ess = float(1 / shares.square().sum()) / len(log_weights)
    return Outcome(elbo, elbo_se, ess, pareto_k(log_weights))
