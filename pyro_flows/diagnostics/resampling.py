"""Draws of the posterior, by weighing and resampling those of a guide."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics.diagnose import k_hat_threshold
from pyro_flows.diagnostics.report import nearly_equal
from pyro_flows.diagnostics.weighing import WeightedDraws, weigh
from pyro_flows.errors import NotConvergedError
from pyro_flows.infer import PosteriorDraws

_PROPOSALS_PER_DRAW, _LEAST_PROPOSALS = 10, 10_000


def resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 1000,
    num_proposals: int | None = None,
    seed: int | None = 0,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> PosteriorDraws:
    r"""Draw from the posterior by resampling a guide's draws with Pareto-smoothed weights.

    .. math:: \theta_s \sim q, \qquad w_s \propto p(\theta_s, y) / q(\theta_s), \qquad
        P(\text{draw} = \theta_s) = \tilde w_s

    Resampling is systematic: a proposal of weight w is drawn w S times, rounded up or down.

    Args:
        model: The model.
        guide: A fitted :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's.
        *args: Arguments of the model.
        num_draws: Number of draws to return.
        num_proposals: Number of draws of the guide; by default ten times as many, and at least
            10,000. The more, the fewer draws are the same.
        seed: Seeds the draws, and leaves the global random state alone; ``None`` draws from that.
        chunk_size: Largest number of proposals to run at once, which bounds the memory.
        **kwargs: Keyword arguments of the model.

    Returns:
        The draws, one chain of them, in random order; ``to_arviz`` takes them.

    Raises:
        DomainError: An argument is not possible, the guide never ran, or the data are subsampled.
        NonFiniteError: A weight is NaN or infinite, or all are zero.
        NotConvergedError: k-hat is too large for weights to correct the guide, or not known.

    Reference:
        Rubin (1988), *Using the SIR algorithm to simulate posterior distributions*; Kitagawa
        (1996), *Monte Carlo filter and smoother*; Vehtari, Simpson, Gelman, Yao & Gabry (2024),
        *Pareto smoothed importance sampling*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows import AutoFlow, resample
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(10)
        >>> guide = AutoFlow(model)
        >>> guide.initialise(y)
        >>> draws = resample(model, guide, y, num_draws=500)
        >>> draws.sites["mu"].shape
        torch.Size([1, 500])
    """
    num_draws = _checks.check_count("resample", "num_draws", num_draws)
    proposals = weigh(
        "resample",
        model,
        guide,
        args,
        kwargs,
        num_draws=num_proposals or max(_LEAST_PROPOSALS, _PROPOSALS_PER_DRAW * num_draws),
        seed=seed,
        chunk_size=chunk_size,
    )
    _check_weights(proposals)
    rng = np.random.default_rng(seed if seed is not None else int(torch.randint(2**31, ())))
    chosen = torch.from_numpy(_systematic(np.exp(proposals.smoothed), num_draws, rng))
    sites = {name: values[chosen.to(values.device)] for name, values in proposals.sites.items()}
    stats = {"log_p": proposals.log_p, "log_q": proposals.log_q}
    return PosteriorDraws(
        {name: values[None] for name, values in sites.items()},
        {name: values[chosen.to(values.device)][None] for name, values in stats.items()},
        f"{num_draws} of {len(proposals.log_p)} draws of a guide, resampled by importance weights "
        f"(k-hat {proposals.k_hat:.2f}, {len(chosen.unique())} different)",
    )


def _check_weights(proposals: WeightedDraws) -> None:
    num, k_hat = len(proposals.log_p), proposals.k_hat
    limit = k_hat_threshold(num)
    if k_hat < limit or nearly_equal(proposals.ess, num):
        return
    known = not np.isnan(k_hat)
    raise _checks.refusal(
        NotConvergedError,
        "resample",
        expected=f"importance weights with k-hat below {limit:.2f}, for {num} proposals",
        got=f"{k_hat:.2f}" if known else "too few, or too many ties, to know it",
        advice="No weights make up for what the guide leaves out; pf.diagnose(...) says where, "
        "and pf.neutra(...) or another flow may help."
        if known
        else "Pass a larger num_proposals.",
    )


def _systematic(weights: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of what is drawn, in random order."""
    points = (rng.random() + np.arange(num)) / num
    edges = np.cumsum(weights)
    indices = np.searchsorted(edges / edges[-1], points, side="right")
    return rng.permutation(np.minimum(indices, len(weights) - 1))
