"""How far a guide's draws are from reference draws."""

from typing import NamedTuple

import numpy as np
from scipy.stats import wasserstein_distance

Columns = dict[str, np.ndarray]

_SPLITS = 4


class Errors(NamedTuple):
    """Distances of draws from reference draws, over all columns.

    Attributes:
        worst_mean: Largest |mean error|, in reference sds.
        mean_mean: Its mean over the columns.
        worst_sd: Largest |log sd ratio|.
        wasserstein: Mean marginal 1-Wasserstein distance over that between halves of the
            reference draws, which exact draws would be at: one.
    """

    worst_mean: float
    mean_mean: float
    worst_sd: float
    wasserstein: float


def errors(draws: Columns, reference: Columns) -> Errors:
    """Compare draws with reference draws; what is not finite is infinitely far."""
    if not all(np.isfinite(draws[name]).all() for name in reference):
        return Errors(*[np.inf] * 4)
    means = np.array([_mean_error(draws[name], truth) for name, truth in reference.items()])
    sds = np.array([abs(np.log(draws[name].std() / x.std())) for name, x in reference.items()])
    return Errors(means.max(), means.mean(), sds.max(), wasserstein_over_floor(draws, reference))


def _mean_error(draws: np.ndarray, truth: np.ndarray) -> float:
    return abs(draws.mean() - truth.mean()) / truth.std()


def wasserstein_over_floor(draws: Columns, reference: Columns) -> float:
    """Return the mean distance to half of the reference draws, over that of the other half.

    Over several splits of the reference draws, with as many draws on each side.
    """
    rng = np.random.default_rng(0)
    size = len(next(iter(reference.values())))
    ours, floor = 0.0, 0.0
    for _ in range(_SPLITS):
        one, other = np.split(rng.permutation(size)[: size // 2 * 2], 2)
        picked = rng.choice(len(next(iter(draws.values()))), size // 2, replace=False)
        for name, truth in reference.items():
            scale = truth.std()
            ours += wasserstein_distance(draws[name][picked], truth[one]) / scale
            floor += wasserstein_distance(truth[other], truth[one]) / scale
    return ours / floor
