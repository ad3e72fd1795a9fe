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
    if isinstance(log_weights, torch.Tensor):
        log_weights = log_weights.detach().cpu().numpy()
    weights = np.asarray(log_weights, dtype=np.float64).reshape(-1)
    bad = int((np.isnan(weights) | (weights == np.inf)).sum())
    if bad:
        raise _checks.refusal(
            NonFiniteError,
            "pareto_k",
            expected="log-weights that are finite, or minus infinity",
            got=f"{bad} of {weights.size} that are NaN or infinite",
            advice="Drop those draws knowingly, or look for the site whose density is NaN.",
        )
    tail = min(weights.size // 5, math.ceil(3 * math.sqrt(weights.size)))
    if tail < _LEAST_TAIL or np.unique(weights).size <= tail:
        return math.nan
    if np.unique(np.partition(weights, -tail)[-tail:]).size == 1:
        return math.nan
    # The profile of a very heavy tail runs over, to weights of zero, as it should.
    with np.errstate(over="ignore"):
        k_hat = _psis_shape(weights - weights.max())
    return k_hat if math.isfinite(k_hat) else math.nan


def import_arviz() -> Any:
    """Import ArviZ, which takes two seconds and, at times, announces its next version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")


def _psis_shape(log_weights: np.ndarray) -> float:
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):
        return float(arviz.psislw(log_weights)[1])
    # From version 1 on it takes log-likelihoods, and negates them.
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    return float(array_stats.psislw(-log_weights)[1])
