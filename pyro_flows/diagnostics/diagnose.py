"""Whether a fitted guide can be trusted."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.diagnostics.report import Report, SiteCheck
from pyro_flows.diagnostics.weighing import WeightedDraws, weigh
from pyro_flows.errors import DomainError

_LARGEST_THRESHOLD = 0.7


def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 10_000,
    num_importance: int = 16,
    seed: int | None = 0,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Report:
    r"""Weigh draws of a guide by the model, and say whether to trust it.

    .. math:: w_s = \frac{p(\theta_s, y)}{q(\theta_s)}, \qquad
        \mathrm{ELBO} = E[\log w], \qquad
        \mathrm{IW}_K = E\Bigl[\log \frac{1}{K} \sum_{k \le K} w_k\Bigr], \qquad
        p(y) = E[w]

    The shape k-hat of the largest weights says whether the weights can correct the guide: it
    should be below :math:`\min(1 - 1 / \log_{10} S, 0.7)` for S draws. How far the smoothed
    weights move the mean and the sd of each latent says where the guide is off. What no draw of
    the guide meets, such as another mode, the weights cannot tell of.

    Args:
        model: The model.
        guide: A fitted :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's.
        *args: Arguments of the model.
        num_draws: Number of draws.
        num_importance: Draws of one importance-weighted bound.
        seed: Seeds the draws, and leaves the global random state alone; ``None`` draws from that.
        chunk_size: Largest number of draws to run at once, which bounds the memory.
        **kwargs: Keyword arguments of the model.

    Returns:
        The report; printed, it ends in a verdict and the next step.

    Raises:
        DomainError: An argument is not possible, the guide never ran, or the data are subsampled.
        NonFiniteError: A weight is NaN or infinite, or all are zero.

    Reference:
        Yao, Vehtari, Simpson & Gelman (2018), *Yes, but did it work? Evaluating variational
        inference*; Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance
        sampling*, section 3; Burda, Grosse & Salakhutdinov (2016), *Importance weighted
        autoencoders*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows import AutoFlow, diagnose
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(10)
        >>> guide = AutoFlow(model)
        >>> guide.initialise(y)
        >>> report = diagnose(model, guide, y)
        >>> report.verdict, round(report.log_evidence, 2)
        ('good', -12.65)
    """
    num_importance = _checks.check_count("diagnose", "num_importance", num_importance)
    if num_draws < 2 * num_importance:
        raise _checks.refusal(
            DomainError,
            "diagnose",
            expected=f"at least two importance-weighted bounds of {num_importance} draws each",
            got=f"num_draws={num_draws}",
            advice="Pass a larger num_draws, or a smaller num_importance.",
        )
    draws = weigh(
        "diagnose",
        model,
        guide,
        args,
        kwargs,
        num_draws=num_draws,
        seed=seed,
        chunk_size=chunk_size,
    )
    return _report(draws, num_importance)


def k_hat_threshold(num_draws: int) -> float:
    r"""Return what k-hat has to be below: :math:`\min(1 - 1 / \log_{10} S, 0.7)`.

    Args:
        num_draws: Number of draws.

    Reference:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance sampling*,
        section 3.2.4.

    Example:
        >>> k_hat_threshold(1000), k_hat_threshold(100_000)
        (0.6666666666666667, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(max(num_draws, 2)), _LARGEST_THRESHOLD)


def _report(draws: WeightedDraws, num_importance: int) -> Report:
    log_weights = draws.log_weights
    elbo, elbo_se = _bound(log_weights, 1)
    iw_elbo, iw_elbo_se = _bound(log_weights, num_importance)
    log_evidence, log_evidence_se = _log_mean(log_weights)
    return Report(
        num_draws=len(log_weights),
        log_weights=log_weights,
        k_hat=draws.k_hat,
        k_hat_threshold=k_hat_threshold(len(log_weights)),
        ess=draws.ess,
        elbo=elbo,
        elbo_se=elbo_se,
        num_importance=num_importance,
        iw_elbo=iw_elbo,
        iw_elbo_se=iw_elbo_se,
        log_evidence=log_evidence,
        log_evidence_se=log_evidence_se,
        sites=_checks_of_sites(draws),
        zero_weights=int(np.isneginf(log_weights).sum()),
    )


def _bound(log_weights: np.ndarray, num_importance: int) -> tuple[float, float]:
    count = len(log_weights) // num_importance
    groups = log_weights[: count * num_importance].reshape(count, num_importance)
    bounds = np.logaddexp.reduce(groups, axis=1) - math.log(num_importance)
    if np.isneginf(bounds).any():
        return -math.inf, math.nan
    return float(bounds.mean()), float(bounds.std(ddof=1) / math.sqrt(count))


def _log_mean(log_weights: np.ndarray) -> tuple[float, float]:
    """Return the logarithm of the mean weight, and its standard error by the delta method."""
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    mean = weights.mean()
    error = weights.std(ddof=1) / mean / math.sqrt(len(weights))
    return float(largest + np.log(mean)), float(error)


def _checks_of_sites(draws: WeightedDraws) -> tuple[SiteCheck, ...]:
    weights = np.exp(draws.smoothed)
    # The variance of a difference of the two means, of the same draws, in units of theirs.
    noise = float(np.sqrt(np.square(weights - 1 / len(weights)).sum()))
    found = [_check(name, values, weights, noise) for name, values in draws.sites.items()]
    return tuple(sorted(itertools.chain(*found), key=_moved_by, reverse=True))


def _moved_by(check: SiteCheck) -> float:
    return max(abs(check.shift), abs(check.log_sd_ratio))


def _check(name: str, values: Tensor, weights: np.ndarray, noise: float) -> list[SiteCheck]:
    array = np.asarray(values.detach().double().cpu())
    columns = array.reshape(len(array), -1)
    mean, weighted_mean = columns.mean(0), weights @ columns
    sd = columns.std(0)
    weighted_sd = np.sqrt(weights @ np.square(columns - weighted_mean))
    varies = (sd > 0) & (weighted_sd > 0)
    shifts = np.divide(weighted_mean - mean, weighted_sd, out=np.zeros_like(mean), where=varies)
    ratios = np.log(weighted_sd, out=np.zeros_like(sd), where=varies) - np.log(
        sd, out=np.zeros_like(sd), where=varies
    )
    return [
        SiteCheck(name, index, float(shift), float(ratio), noise)
        for index, shift, ratio, moves in zip(
            np.ndindex(*array.shape[1:]), shifts, ratios, varies, strict=True
        )
        if moves
    ]
