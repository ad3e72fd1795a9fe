"""What the normal scores of ranks say of a guide: how far off it is, and how wide."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch

# A word is said where chance would say it in one of a hundred.
_LEAST_Z = NormalDist().inv_cdf(0.995)
_MOST_ROUNDS, _TOLERANCE = 500, 1e-6


class Score(NamedTuple):
    """What a guide is like, by the ranks of one scalar.

    Attributes:
        bias: How far its draws lie above where they should, in posterior sds.
        width: Its sd over the right one.
        fault: What is wrong, in words, given that something is.
    """

    bias: float
    width: float
    fault: str


def score(ranks: np.ndarray, num_draws: int) -> Score:
    r"""Compare a guide with the posterior, as if both were normal.

    Where the guide is :math:`N(m + b, c^2)` and the posterior :math:`N(m, 1)`, the probabilities
    :math:`p = P(\theta < \theta^*)` have scores

    .. math:: \Phi^{-1}(p) \sim N(-b / c, 1 / c^2),

    and :math:`b` and :math:`c` are those of the largest likelihood. A rank at either end says of
    its score no more than that it lies beyond all draws.

    Args:
        ranks: Ranks in ``0 ... num_draws``, of shape ``(N,)``.
        num_draws: Number of draws that each was taken among.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws, truth = 0.5 + 2 * rng.standard_normal((400, 999)), rng.standard_normal((400, 1))
        >>> found = score((draws < truth).sum(1), num_draws=999)
        >>> round(found.bias, 1), round(found.width, 1), found.fault
        (0.5, 2.0, 'too wide and biased upward')
    """
    possible = num_draws + 1
    ends = (ranks == num_draws).astype(int) - (ranks == 0)
    levels = np.where(ends == 0, (ranks + 0.5) / possible, (ranks + (ends < 0)) / possible)
    scores = torch.special.ndtri(torch.as_tensor(levels)).numpy()
    if abs(ends.sum()) == len(ranks):
        side = "downward" if ends[0] > 0 else "upward"
        return Score(-math.inf * int(ends[0]), math.nan, f"biased {side}")
    mean, sd = _censored_normal(scores, ends)
    if sd == 0:
        return Score(-math.copysign(math.inf, mean) if mean else 0.0, math.inf, "too wide")
    num, num_inside = len(ranks), int((ends == 0).sum())
    words = []
    if abs(math.log(sd)) * math.sqrt(2 * num_inside) > _LEAST_Z:
        words.append("too narrow" if sd > 1 else "too wide")
    if abs(mean / sd) * math.sqrt(num) > _LEAST_Z:
        words.append("biased downward" if mean > 0 else "biased upward")
    return Score(-mean / sd, 1 / sd, " and ".join(words) or "not uniform")


def _censored_normal(scores: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Return the mean and sd of a normal, given values and, at ``ends``, bounds on values.

    By EM: a value beyond a bound is given its mean and its mean square.
    """
    mean, sd = float(scores.mean()), float(scores.std())
    for _ in range(_MOST_ROUNDS if ends.any() and sd > 0 else 0):
        alpha = ends * (scores - mean) / sd
        hazard = np.where(ends == 0, 0.0, _hazard(alpha))
        values = np.where(ends == 0, scores, mean + ends * sd * hazard)
        squares = np.where(ends == 0, (scores - mean) ** 2, sd**2 * (1 + alpha * hazard))
        before, shift = (mean, sd), float(values.mean()) - mean
        mean, sd = mean + shift, math.sqrt(float(squares.mean()) - shift**2)
        if abs(mean - before[0]) + abs(sd - before[1]) < _TOLERANCE * sd:
            break
    return mean, sd


def _hazard(alpha: np.ndarray) -> np.ndarray:
    """Return the normal density over the normal tail above."""
    log_tail = torch.special.log_ndtr(torch.as_tensor(-alpha)).numpy()
    density: np.ndarray = np.exp(-0.5 * alpha**2 - 0.5 * math.log(2 * math.pi) - log_tail)
    return density
