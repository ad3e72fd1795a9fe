"""Importance weights of a guide's draws: what they say about the guide."""

import importlib
import math
import warnings
from typing import Any

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.errors import NonFiniteError

# A generalised Pareto tail needs more points than this (Vehtari et al. 2024, section 2).
_LEAST_TAIL = 5


def pareto_k(log_weights: np.ndarray | torch.Tensor) -> float:
    """Return the shape of the generalised Pareto distribution fitted to the largest weights.

    Args:
        log_weights: Log importance weights, ``log p - log q`` of draws from ``q``, of shape
            ``(S,)``; minus infinity is a weight of zero.

    Returns:
        The shape, called k-hat; NaN where there are too few draws or too many ties to tell.

    Raises:
        NonFiniteError: A weight is NaN or infinite.

    Reference:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance sampling*; Yao,
        Vehtari, Simpson & Gelman (2018), *Yes, but did it work?*

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws = rng.standard_normal(4000)
        >>> bool(pareto_k(-0.5 * draws**2 / 0.9 + 0.5 * draws**2) < 0.5)
        True
    """
    return _smoothed("pareto_k", log_weights)[1]


def psis(log_weights: np.ndarray | torch.Tensor) -> tuple[np.ndarray, float]:
    """Smooth the largest importance weights by the Pareto distribution fitted to them.

    Args:
        log_weights: Log importance weights, ``log p - log q`` of draws from ``q``, of shape
            ``(S,)``; minus infinity is a weight of zero.

    Returns:
        The logarithms of the smoothed weights, which sum to one, of shape ``(S,)`` and in float64;
        and k-hat as :func:`pareto_k` returns it. Where that is NaN nothing is smoothed.

    Raises:
        NonFiniteError: A weight is NaN or infinite, or all weights are zero.

    Reference:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance sampling*.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws = rng.standard_normal(4000)
        >>> log_weights, k_hat = psis(-0.5 * draws**2 / 0.9 + 0.5 * draws**2)
        >>> bool(np.isclose(np.exp(log_weights).sum(), 1.0)), k_hat < 0.5
        (True, True)
    """
    smoothed, k_hat = _smoothed("psis", log_weights)
    if not smoothed.size or smoothed.max() == -np.inf:
        raise _checks.refusal(
            NonFiniteError,
            "psis",
            expected="a weight above zero",
            got=f"{smoothed.size} weights of zero",
            advice="Look for the site whose density is zero at every draw.",
        )
    smoothed = smoothed - smoothed.max()
    return smoothed - np.log(np.exp(smoothed).sum()), k_hat


def _smoothed(who: str, log_weights: np.ndarray | torch.Tensor) -> tuple[np.ndarray, float]:
    """Return the smoothed log-weights, up to a constant, and k-hat."""
    if isinstance(log_weights, torch.Tensor):
        log_weights = log_weights.detach().cpu().numpy()
    weights = np.asarray(log_weights, dtype=np.float64).reshape(-1)
    bad = int((np.isnan(weights) | (weights == np.inf)).sum())
    if bad:
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected="log-weights that are finite, or minus infinity",
            got=f"{bad} of {weights.size} that are NaN or infinite",
            advice="Drop those draws knowingly, or look for the site whose density is NaN.",
        )
    tail = min(weights.size // 5, math.ceil(3 * math.sqrt(weights.size)))
    if tail < _LEAST_TAIL or np.unique(weights).size <= tail:
        return weights, math.nan
    if np.unique(np.partition(weights, -tail)[-tail:]).size == 1:
        return weights, math.nan
    # The profile of a very heavy tail runs over, to weights of zero, as it should.
    with np.errstate(over="ignore"):
        smoothed, k_hat = _psislw(weights - weights.max())
    return (smoothed, k_hat) if math.isfinite(k_hat) else (weights, math.nan)


def import_arviz() -> Any:
    """Import ArviZ, which takes two seconds and, at times, announces its next version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")


def _psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):
        smoothed, k_hat = arviz.psislw(log_weights)
    else:
        # From version 1 on it takes log-likelihoods, and negates them.
        array_stats = importlib.import_module("arviz_stats.base").array_stats
        smoothed, k_hat = array_stats.psislw(-log_weights)
    return smoothed, float(k_hat)
