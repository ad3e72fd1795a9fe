"""Exact tests of ranks that should be uniform."""

import functools
import math

import numpy as np

# Where the empirical distribution function is looked at.
_MOST_POINTS = 100


def uniformity(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    r"""Return how likely a deviation of the ranks from uniform is by chance.

    The empirical distribution function is looked at in up to 100 points :math:`z_k`; how far it
    is out is the least tail probability,

    .. math::
        \gamma = 2 \min_k \min\{P(B_k \le c_k), P(B_k \ge c_k)\},
        \quad B_k \sim \mathrm{Binomial}(N, z_k)

    of its counts :math:`c_k`. The distribution of :math:`\gamma` is exact.

    Args:
        ranks: Ranks in ``0 ... num_draws``, of shape ``(N, S)``.
        num_draws: Number of draws that each was taken among.

    Returns:
        The p-values, of shape ``(S,)``.

    Reference:
        Säilynoja, Bürkner & Vehtari (2022), *Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison*.

    Example:
        >>> import numpy as np
        >>> even, low = np.arange(0, 100, 2), np.arange(50)
        >>> even_p, low_p = uniformity(np.stack([even, low], 1), num_draws=99)
        >>> bool(even_p > 0.9), bool(low_p < 1e-6)
        (True, True)
    """
    num, possible = len(ranks), num_draws + 1
    points = min(num, possible, _MOST_POINTS)
    edges = np.unique(np.arange(1, points) * possible // points)
    z = edges / possible
    counts = (ranks[None] < edges[:, None, None]).sum(1)
    tails = np.stack([_tails(num, share) for share in z])
    # Equal tails are not to differ by rounding.
    extreme = np.take_along_axis(tails, counts, axis=1).min(0) * (1 + 1e-9)
    return np.minimum(_leaving(num, z, tails, extreme), 1.0)


def _tails(num: int, share: float) -> np.ndarray:
    """Return twice the smaller tail of a binomial distribution from each of its values."""
    masses = _binomial(num, np.array([num]), share)[0]
    below, above = np.cumsum(masses), np.cumsum(masses[::-1])[::-1]
    return 2 * np.minimum(below, above)


def _leaving(num: int, z: np.ndarray, tails: np.ndarray, extreme: np.ndarray) -> np.ndarray:
    """Return the probability that uniform counts reach a tail of ``extreme`` at some point.

    Counts are a Markov chain from point to point; what reaches the tail is taken out.
    """
    state = np.zeros((num + 1, len(extreme)))
    state[0] = 1.0
    out = np.zeros(len(extreme))
    before = 0.0
    for share, its_tails in zip(z, tails, strict=True):
        state = _moves(num, (share - before) / (1 - before)).T @ state
        reached = its_tails[:, None] <= extreme
        out += np.where(reached, state, 0.0).sum(0)
        state[reached] = 0.0
        before = share
    return out


def _moves(num: int, share: float) -> np.ndarray:
    """Return the probabilities of moving from one count to another, of shape ``(N+1, N+1)``."""
    counts = np.arange(num + 1)
    added = _binomial(num, num - counts, share)
    to = counts[None] - counts[:, None]
    return np.where(to >= 0, np.take_along_axis(added, np.maximum(to, 0), axis=1), 0.0)


def _binomial(num: int, totals: np.ndarray, share: float) -> np.ndarray:
    """Return binomial probabilities of ``0 ... num``, one row for each of ``totals``."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])
    values, totals = np.arange(num + 1), totals[:, None]
    rest = np.maximum(totals - values, 0)
    logs = log_factorials[totals] - log_factorials[values] - log_factorials[rest]
    logs = logs + values * math.log(share) + rest * math.log1p(-share)
    return np.where(values <= totals, np.exp(logs), 0.0)


def symmetry(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    r"""Return how likely an asymmetry of the ranks about their middle is by chance.

    The statistic is that of Kolmogorov and Smirnov between the probabilities
    :math:`p_i = P(\theta < \theta^*_i)` and :math:`1 - p_i`. Without a bias, the signs of
    :math:`p_i - 1/2`, in the order of their sizes, are the steps of a random walk, and how far
    that goes has a known distribution.

    Args:
        ranks: Ranks in ``0 ... num_draws``, of shape ``(N, S)``.
        num_draws: Number of draws that each was taken among.

    Returns:
        The p-values, of shape ``(S,)``.

    Reference:
        Yao, Vehtari, Simpson & Gelman (2018), *Yes, but did it work?*; Butler (1969), *A test for
        symmetry using the sample distribution function*.

    Example:
        >>> import numpy as np
        >>> wide, low = np.repeat([0, 99], 25), np.arange(50)
        >>> wide_p, low_p = symmetry(np.stack([wide, low], 1), num_draws=99)
        >>> bool(wide_p > 0.9), bool(low_p < 1e-6)
        (True, True)
    """
    offsets = 2 * ranks.astype(np.int64) - num_draws
    return np.array([_excursion_p_value(*_excursion(column)) for column in offsets.T])


def _excursion(offsets: np.ndarray) -> tuple[int, int]:
    """Return the number of steps of the walk, and how far it went."""
    offsets = offsets[offsets != 0]
    offsets = offsets[np.argsort(-np.abs(offsets), kind="stable")]
    walk, sizes = np.cumsum(np.sign(offsets)), np.abs(offsets)
    # Offsets of one size have no order among themselves.
    ends = np.append(sizes[1:] != sizes[:-1], True)[: len(sizes)]
    return len(offsets), int(np.abs(walk[ends]).max(initial=0))


@functools.lru_cache(maxsize=4096)
def _excursion_p_value(steps: int, reach: int) -> float:
    """Return the probability that a walk of so many steps of one goes as far."""
    if reach == 0:
        return 1.0
    state, reached = np.zeros(2 * reach + 1), 0.0
    state[reach] = 1.0
    for _ in range(steps):
        state = 0.5 * (np.append(state[1:], 0.0) + np.append(0.0, state[:-1]))
        reached += state[0] + state[-1]
        state[0] = state[-1] = 0.0
    return min(float(reached), 1.0)
