"""Metropolis-Hastings with a guide as proposal."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer import store
from pyro_flows.infer.mcmc.checks import check_functions, run_once
from pyro_flows.infer.mcmc.freezing import frozen
from pyro_flows.infer.particles import Particles, ScoredDraws
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.random import seeded
from pyro_flows.infer.threads import threads_for
from pyro_flows.transforms.continuous import exact_traces

logger = logging.getLogger("pyro_flows")

_WHO = "independence_metropolis"
_LOW_ACCEPTANCE = 0.1


class Chains(NamedTuple):
    """Where some chains went.

    Attributes:
        states: The index of the proposal that each draw is, of shape ``(chains, draws)``.
        accepted: Whether the draw is a new proposal, of the same shape.
    """

    states: np.ndarray
    accepted: np.ndarray


def independence_metropolis(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 1000,
    num_chains: int = 4,
    warmup: int = 100,
    seed: int | None = None,
    **kwargs: Any,
) -> PosteriorDraws:
    r"""Draw from the posterior by Metropolis-Hastings steps that a guide proposes.

    .. math:: \theta' \sim q, \qquad
        P(\text{accept}) = \min\Bigl(1, \frac{w(\theta')}{w(\theta)}\Bigr), \qquad
        w(\theta) = \frac{p(\theta, y)}{q(\theta)}

    Proposals do not depend on the chain, so all of them are drawn and scored at once. A guide that
    is the posterior has every proposal accepted. One whose tails are too light has chains that
    stay for long where it is too thin: read the effective sample size, and trust no chain that
    ``pf.diagnose`` or k-hat speaks against.

    Args:
        model: The model.
        guide: A fitted :class:`~pyro_flows.AutoFlow`, or any other guide of the model.
        *args: Arguments of the model.
        num_draws: Number of draws of each chain.
        num_chains: Number of chains.
        warmup: Number of further proposals for each chain, from which the chains' first states
            are drawn by importance resampling.
        seed: Seeds the run, which then leaves the global random state alone.
        **kwargs: Keyword arguments of the model.

    Returns:
        The draws, with stats ``"accepted"``, ``"log_p"`` and ``"log_q"``: whether the draw is a
        new proposal, and its log-density under model and guide. ``to_arviz`` takes them.

    Raises:
        DomainError: An argument is not possible, the guide never ran, the model is subsampled or
            random beyond its latents.
        NonFiniteError: A weight is NaN or plus infinity, or too few are above zero.

    Reference:
        Tierney (1994), *Markov chains for exploring posterior distributions*; Brofos, Gabrié,
        Brubaker & Lederman (2022), *Adaptation of the independent Metropolis-Hastings sampler
        with normalizing flow proposals*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows.infer import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(25)
        >>> guide = AutoFlow(model)
        >>> guide.initialise(y)
        >>> draws = independence_metropolis(model, guide, y, num_draws=500, seed=0)
        >>> draws.sites["mu"].shape
        torch.Size([4, 500])
        >>> round(draws.sites["mu"].std().item(), 1)
        0.2
    """
    num_draws = _checks.check_count(_WHO, "num_draws", num_draws)
    num_chains = _checks.check_count(_WHO, "num_chains", num_chains)
    warmup = _checks.check_count(_WHO, "warmup", warmup)
    check_functions(_WHO, model, guide)
    with store.unused(), seeded(_WHO, seed), torch.no_grad(), frozen(guide), exact_traces():
        particles = run_once(Particles, _WHO, model, guide, args, kwargs=kwargs)
        _warn_of_loop(particles)
        # A NaN is to be counted, not reported by the distribution that it reaches first.
        with threads_for(elements=particles.elements, products=0), pyro.validation_enabled(False):
            proposals = particles.draw(num_chains * (warmup + num_draws))
        _check_spread(proposals)
        log_weights = _checked_weights(proposals, num_chains)
        starts = _starts(log_weights, num_chains, num_chains * warmup)
        steps = np.arange(num_chains * warmup, len(log_weights)).reshape(num_chains, num_draws)
        uniforms = torch.rand(num_chains, num_draws, dtype=torch.float64).numpy()
    chains = walk(log_weights, starts, steps, np.log(uniforms))
    return _collected(proposals, chains)


def walk(
    log_weights: np.ndarray, starts: np.ndarray, steps: np.ndarray, log_uniforms: np.ndarray
) -> Chains:
    """Accept or reject proposals one after the other, all chains at once.

    Args:
        log_weights: Logarithms of the importance weights of all proposals, of shape ``(N,)``.
        starts: Index of the state before each chain's first step, of shape ``(chains,)``.
        steps: Index of what each step proposes, of shape ``(chains, draws)``.
        log_uniforms: Logarithms of uniform random numbers, of that shape.
    """
    states, accepted = np.empty_like(steps), np.empty(steps.shape, dtype=bool)
    current = starts
    for step in range(steps.shape[1]):
        proposed = steps[:, step]
        accepted[:, step] = log_uniforms[:, step] < log_weights[proposed] - log_weights[current]
        states[:, step] = current = np.where(accepted[:, step], proposed, current)
    return Chains(states, accepted)


def _check_spread(proposals: ScoredDraws) -> None:
    points = [name for name, x in proposals.sites.items() if bool((x == x[:1]).all())]
    if points:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a guide whose draws differ at each site",
            got=f"the same at {', '.join(map(repr, points))}",
            advice="A point has no density: fit another guide, or call laplace_approximation() "
            "of an AutoLaplaceApproximation.",
        )


def _checked_weights(proposals: ScoredDraws, num_chains: int) -> np.ndarray:
    """Return the log-weights, if none is NaN or plus infinity, and enough are above zero."""
    log_weights = (proposals.log_p - proposals.log_q).double().cpu().numpy()
    bad = int((np.isnan(log_weights) | (log_weights == np.inf)).sum())
    if bad:
        raise _checks.refusal(
            NonFiniteError,
            _WHO,
            expected="log-weights that are finite, or minus infinity",
            got=f"{bad} of {log_weights.size} that are NaN or plus infinity",
            advice="Look for the site whose density is NaN at draws of the guide.",
        )
    positive = int((log_weights > -np.inf).sum())
    if positive < num_chains:
        raise _checks.refusal(
            NonFiniteError,
            _WHO,
            expected=f"weights above zero for the first states of {num_chains} chains",
            got=f"{positive} of {log_weights.size}",
            advice="Fit the guide to this model and these data first.",
        )
    return log_weights


def _starts(log_weights: np.ndarray, num_chains: int, num_warmup: int) -> np.ndarray:
    """Draw different proposals by their weights: from the warmup's, if enough are above zero.

    Those with the largest sums of log-weight and Gumbel noise are such draws.
    """
    noise = torch.rand(len(log_weights), dtype=torch.float64).log().neg().log().neg().numpy()
    pool = log_weights[:num_warmup]
    if (pool > -np.inf).sum() < num_chains:
        pool = log_weights
    return np.argsort(pool + noise[: len(pool)])[::-1][:num_chains]


def _warn_of_loop(particles: Particles) -> None:
    if not particles.vectorized:
        logger.warning(
            "%s: runs the model once for each draw, which is slow, since %s",
            _WHO,
            particles.broadcast.reason,
        )


def _collected(proposals: ScoredDraws, chains: Chains) -> PosteriorDraws:
    rates = chains.accepted.mean(1)
    if rates.min() < _LOW_ACCEPTANCE:
        logger.warning(
            "%s: accepts %.1f %% of the proposals in the slowest chain; fit for longer, take a "
            "more flexible flow, or use pf.neutra, which moves by gradients",
            _WHO,
            100 * rates.min(),
        )
    states = torch.from_numpy(chains.states).to(proposals.log_p.device)
    return PosteriorDraws(
        {name: values[states] for name, values in proposals.sites.items()},
        {
            "accepted": torch.from_numpy(chains.accepted),
            "log_p": proposals.log_p[states],
            "log_q": proposals.log_q[states],
        },
        f"independence Metropolis-Hastings with a guide as proposal, {len(rates)} chains; "
        f"acceptance rate {rates.mean():.3f}",
    )
