"""The fit loop."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError, NonFiniteError
from pyro_flows.infer import store
from pyro_flows.infer.guide import AutoFlow
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.log_density import describe_non_finite
from pyro_flows.infer.model_check import ModelCheck
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import seeded
from pyro_flows.infer.result import FitResult, Status
from pyro_flows.infer.threads import threads_for

logger = logging.getLogger("pyro_flows")

_FINAL_DRAWS = 4096
_FINAL_DRAWS_LOOPED = 1024
_LEAST_BATCH = 64
_MAX_SKIPS = 50
_WARM_UP_STEPS = 50
_REPORT_EVERY = 20


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
        **kwargs: Keyword arguments of the model.

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
        loop = _Loop(scorer, parameters, steps, lr, clip_norm)
        elements = particles * scorer.elements
        products = particles * sum(parameter.numel() for parameter in parameters)
        with (
            pyro.validation_enabled(False),
            threads_for(elements=elements, products=products),
        ):
            status, reason = loop.run(particles, progress)
            elbo, elbo_se, k_hat = _evaluate(scorer, particles)
    return FitResult(
        losses=np.array(loop.losses),
        status=status,
        reason=reason,
        steps=len(loop.losses),
        skipped_steps=loop.skipped,
        seconds=time.perf_counter() - began,
        elbo=elbo,
        elbo_se=elbo_se,
        k_hat=k_hat,
        vectorized=scorer.vectorized,
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
            return Particles(model, guide, args, kwargs)
    except FlowError:
        raise
    except (ValueError, RuntimeError) as error:
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a model and a guide that run under Pyro's validation",
            got=f"the error below\n{error}\n",
            advice="Run the model by itself with pyro.poutine.trace(model).get_trace(...).",
        ) from error


class _Loop:
    """Steps of Adam that a bad gradient cannot spoil."""

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
        """Take all steps, and return how it ended."""
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
        self._restore()
        guide_trace, model_trace = (
            self._scorer.traces(1)
            if self._scorer.vectorized
            else (self._scorer.single_traces(1)[0])
        )
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
        raise _checks.refusal(
            NonFiniteError,
            "fit",
            expected="a finite loss and gradient",
            got=f"{count} steps in a row without, from step {first} on; "
            f"in the model {describe_non_finite(model_trace)}",
            advice="The last good parameters are in place. Check the model there, or lower lr.",
        )


def _step_factor(step: int, steps: int) -> float:
    """Warm up linearly, then follow half a cosine to zero."""
    warm_up = min(_WARM_UP_STEPS, steps // 4)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


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


@torch.no_grad()
def _evaluate(scorer: Particles, particles: int) -> tuple[float, float, float]:
    """Return the ELBO of fresh draws, its standard error, and k-hat; in batches like the fit's."""
    draws = _FINAL_DRAWS if scorer.vectorized else _FINAL_DRAWS_LOOPED
    size = max(particles, _LEAST_BATCH)
    batches = [scorer.score(size) for _ in range(math.ceil(draws / size))]
    log_weights = torch.cat([batch.log_p - batch.log_q for batch in batches]).double()
    elbo_se = float(log_weights.std() / log_weights.numel() ** 0.5)
    finite = not bool((log_weights.isnan() | (log_weights == torch.inf)).any())
    return float(log_weights.mean()), elbo_se, pareto_k(log_weights) if finite else math.nan
