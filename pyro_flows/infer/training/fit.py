"""The fit: a guide brought to the posterior of a model."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError
from pyro_flows.infer import store
from pyro_flows.infer.guides.flow_guide import FlowGuide
from pyro_flows.infer.guides.model_check import ModelCheck
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import seeded
from pyro_flows.infer.training.batches import Batches
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.options import FitOptions, MakeOptimizer, MakeScheduler
from pyro_flows.infer.training.ranks import Ranks
from pyro_flows.infer.training.result import FitResult
from pyro_flows.infer.training.run import Run
from pyro_flows.transforms import TransportCost

logger = logging.getLogger("pyro_flows")


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int = 2000,
    particles: int = 256,
    lr: float | str | None = None,
    clip_norm: float = 10.0,
    num_importance: int = 1,
    gradient: str | None = None,
    penalty: TransportCost | None = None,
    engine: str = "auto",
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    stop_early: bool = True,
    refine: bool = True,
    particle_chunk: int | None = None,
    batches: Iterable[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> FitResult:
    r"""Fit a guide to the posterior of a model, by stochastic gradient ascent of the ELBO.

    .. math:: \mathrm{ELBO} = \mathbb{E}_{q(\theta)} [\log p(\theta, y) - \log q(\theta)]

    Adam, with a warm-up of 50 steps, a decay of the step size over the last 30 %, and clipping of
    the gradient's norm over all parameters. A run ends when its ELBO rises no more: a plateau
    begins the decay. Handed back is the best on fresh draws of the average over the decay, the
    last state, the best state before and, without ``batches``, the start. Where its importance
    weights have a heavy tail, steps of the importance-weighted bound follow, which are kept where
    they lower k-hat and cost hardly any ELBO.

    All particles of a step run at once where the model can, which is checked, and one by one where
    it cannot. A step whose loss or gradient is not finite is skipped, with parameters and moments
    as they were; after 50 in a row the run goes on from its best state with a tenth of the step
    size, twice at most. A step of a longer run is recorded as a graph and compiled.

    Under ``torchrun``, or in a process group of torch's, all processes fit one guide: each draws
    its own particles, by its share of ``batches`` and its own members of a subsampled plate, and
    all step by the mean gradient. The first one saves, chooses the state and scores it.

    Args:
        model: The model.
        guide: An :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's.
        *args: Arguments of the model.
        steps: Largest number of steps.
        particles: Number of Monte-Carlo draws a step.
        lr: Largest step size; the smaller of 0.005 and 0.1 over the number of latents if not
            given. ``"search"`` tries five from a tenth to ten times that in short runs at once.
        clip_norm: Largest norm of the gradient over all parameters.
        num_importance: Number of draws under one logarithm; above one, the importance-weighted
            bound is maximised instead of the ELBO.
        gradient: ``"path"``, ``"total"`` or ``"dreg"``, the doubly reparametrised one, which is
            what the path gradient becomes for ``num_importance`` above one; by the guide's own
            choice if not given.
        penalty: A :class:`~pyro_flows.transforms.TransportCost` of continuous flows, which the
            gradient takes into account and the losses do not show.
        engine: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``: how a step runs;
            ``"auto"`` falls back from what cannot be done, the others raise.
        optimizer: A function from tensors to an optimiser of theirs, instead of Adam.
        scheduler: A function from the optimiser to a scheduler of torch's, instead of warm-up and
            decay.
        stop_early: Whether a plateau of the ELBO ends the run before ``steps``.
        refine: Whether ``steps / 5`` of the importance-weighted bound follow where k-hat is above
            0.5; not where they are less than 100, nor with ``batches``, ``num_importance`` or an
            optimiser or a scheduler of one's own.
        particle_chunk: Number of particles at once, where memory is short; a divisor of
            ``particles``. The gradient stays the same.
        batches: Yields the model's positional arguments of each step, in place of ``*args``; a
            list or a ``DataLoader``, for example, which is iterated over and over. The ELBO is
            that of all data where plates say how many there are: ``pyro.plate("rows", 1000,
            subsample=rows)``, for instance. It is the mean over a pass, or over its first 200
            batches, and 40 of them choose the state.
        callbacks: Called after each step with a :class:`~pyro_flows.infer.StepInfo`; one that
            returns True ends the run.
        checkpoint: A file to save the run in, at its end and every ``checkpoint_every`` seconds.
        checkpoint_every: Seconds between two saves.
        resume: Whether to go on from ``checkpoint``, if there is such a file; on the CPU, and on
            one rung of the engine, the run is then the same bit for bit.
        seed: Seeds the run, which then leaves the global random state alone; none draws from that
            state. The same seed gives the same run on the same rung of the engine; ``"auto"``
            changes rungs by the clock in longer runs, and then only to rounding.
        progress: Whether to show a progress bar.
        **kwargs: Keyword arguments of the model; one that has a name of the above is to be bound
            with ``functools.partial``.

    Returns:
        The losses, the ELBO with its standard error, k-hat, and how the fit ended. Ctrl-C ends it
        early with the best that was reached.

    Raises:
        DomainError: An argument is not possible, or there is nothing to train.
        NonFiniteError: 50 steps in a row were not finite, and smaller steps did not help; the
            last good parameters are in place.
        NotConvergedError: An iteration within a step, such as a solve with adaptive steps, did
            not end at the first step, nor after later ones and smaller step sizes.
        CheckpointError: The checkpoint cannot be written, or is damaged, or is another run's.

    Reference:
        Kucukelbir et al. (2017), *Automatic differentiation variational inference*; Dhaka et al.
        (2020), *Robust, accurate stochastic optimization for variational inference*.

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
    options = FitOptions(
        steps=steps,
        particles=particles,
        lr=lr,
        clip_norm=clip_norm,
        num_importance=num_importance,
        gradient=gradient,
        penalty=penalty,
        engine=engine,
        optimizer=optimizer,
        scheduler=scheduler,
        stop_early=stop_early,
        refine=refine,
        particle_chunk=particle_chunk,
        batches=batches,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
    began = time.perf_counter()
    with store.unused(), seeded("fit", seed), _using(guide, gradient):
        ranks = Ranks.joined("fit")
        of_steps = Batches(args, kwargs, batches, (ranks.rank, ranks.size))
        first_args, first_kwargs = of_steps.first
        if isinstance(guide, FlowGuide):
            guide.initialise(*first_args, **first_kwargs)
        scorer = _particles(model, guide, first_args, first_kwargs)
        run = Run(scorer, of_steps, options, ranks)
        ending = run.take()
    return FitResult(
        losses=np.array(run.loop.losses),
        status=ending.status,
        reason=ending.reason,
        steps=len(run.loop.losses),
        skipped_steps=run.loop.skipped,
        restarts=run.loop.restarts,
        seconds=time.perf_counter() - began,
        lr=run.loop.base_sizes[0],
        state=ending.state,
        engine=run.loop.engine.rung,
        step_bytes=ending.step_bytes,
        vectorized=scorer.vectorized,
        subsampled=scorer.subsamples or batches is not None,
        **ending.outcome._asdict(),
    )


@contextmanager
def _using(guide: Callable[..., Any], gradient: str | None) -> Iterator[None]:
    """Let a guide give the gradient that was asked for."""
    if gradient is None:
        yield
        return
    if not isinstance(guide, FlowGuide):
        if gradient != "total":
            raise _checks.refusal(
                DomainError,
                "fit",
                expected=f"a guide with path gradients, for gradient={gradient!r}",
                got=_checks.describe(guide),
                advice="Use an AutoFlow, or leave the gradient to the guide.",
            )
        yield
        return
    before, guide.gradient = guide.gradient, "total" if gradient == "total" else "path"
    try:
        yield
    finally:
        guide.gradient = before


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
