"""How far a guide's draws are from reference draws."""

from collections.abc import Iterator
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
        sd_floor: The same between halves of the reference draws; large where tails are heavy.
        wasserstein: Mean marginal 1-Wasserstein distance over that between halves of the
            reference draws, which exact draws would be at: one.
    """

    worst_mean: float
    mean_mean: float
    worst_sd: float
    sd_floor: float
    wasserstein: float


def errors(draws: Columns, reference: Columns) -> Errors:
    """Compare draws with reference draws; what is not finite is infinitely far."""
    if not all(np.isfinite(draws[name]).all() for name in reference):
        return Errors(*[np.inf] * 5)
    means = np.array([_mean_error(draws[name], truth) for name, truth in reference.items()])
    floor = np.mean([_worst_sd(*halves) for halves in _splits(reference)])
    return Errors(
        means.max(),
        means.mean(),
        _worst_sd(draws, reference),
        float(floor),
        wasserstein_over_floor(draws, reference),
    )


def _mean_error(draws: np.ndarray, truth: np.ndarray) -> float:
    return abs(draws.mean() - truth.mean()) / truth.std()


def _worst_sd(draws: Columns, reference: Columns) -> float:
    return max(abs(np.log(draws[name].std() / x.std())) for name, x in reference.items())


def _splits(reference: Columns) -> Iterator[tuple[Columns, Columns]]:
    """Yield halves of the reference draws, at random."""
    rng = np.random.default_rng(0)
    size = len(next(iter(reference.values())))
    for _ in range(_SPLITS):
        halves = np.split(rng.permutation(size)[: size // 2 * 2], 2)
        one, other = ({name: x[half] for name, x in reference.items()} for half in halves)
        yield one, other


def wasserstein_over_floor(draws: Columns, reference: Columns) -> float:
    """Return the mean distance to half of the reference draws, over that of the other half.

    Over several splits of the reference draws, with as many draws on each side.
    """
    rng = np.random.default_rng(1)
    size = len(next(iter(draws.values())))
    ours, floor = 0.0, 0.0
    for one, other in _splits(reference):
        for name, truth in reference.items():
            picked = rng.choice(size, len(one[name]), replace=False)
            ours += wasserstein_distance(draws[name][picked], one[name]) / truth.std()
            floor += wasserstein_distance(other[name], one[name]) / truth.std()
    return ours / floor
