"""Histograms of simulation-based calibration, with the range that chance explains."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.calibration.uniformity import symmetry
from pyro_flows.diagnostics.plots._axes import FAINT, OURS, one_axes, panels
from pyro_flows.diagnostics.plots._points import named_vectors
from pyro_flows.errors import DomainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS, _LEAST_A_BIN = 20, 10
# A bar of a calibrated posterior is outside in one case of a hundred.
_OUTSIDE = 0.01
# Two probabilities that agree to so many are as far from one half.
_DIGITS = 12


def plot_ranks(ranks: Any, *, num_draws: int, ax: Any = None) -> Any:
    """Draw how often the truth had each rank among the draws, over many simulations.

    The ranks of calibrated draws are uniform. The grey band holds each bar with a probability of
    99 % then. A hump in the middle: the draws are too wide; two at the ends: too narrow; a slope:
    they are shifted.

    Args:
        ranks: Number of draws below the truth in each simulation, integers from 0 to
            ``num_draws``, of shape ``(simulations,)``; or a mapping from sites to ranks of shape
            ``(simulations, *site shape)``.
        num_draws: Number of draws in each simulation.
        ax: Axes to draw on, or as many of them as there are coordinates; those of a new figure if
            not given.

    Returns:
        The axes; for a mapping, an array of them.

    Raises:
        DomainError: A rank is not possible, or matplotlib is missing.
        NonFiniteError: A rank is NaN or infinite.
        ShapeError: A shape is wrong.

    Reference:
        Talts, Betancourt, Simpson, Vehtari & Gelman (2018), *Validating Bayesian inference
        algorithms with simulation-based calibration*.

    Example:
        >>> import torch
        >>> ax = plot_ranks(torch.arange(100), num_draws=99)
        >>> ax.patches[-1].get_data().values
        array([10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    num_draws = _checks.check_count("plot_ranks", "num_draws", num_draws)
    named = named_vectors("plot_ranks", "ranks", ranks)
    for values in named.values():
        if (values != values.round()).any() or values.min() < 0 or values.max() > num_draws:
            raise _checks.refusal(
                DomainError,
                "plot_ranks",
                expected=f"ranks to be integers from 0 to num_draws={num_draws}",
                got=f"ranks from {values.min():g} to {values.max():g}",
                advice="A rank counts the draws below the truth.",
            )
    drawn = _axes_for("plot_ranks", ax, named)
    for each, (label, values) in zip(drawn.flat, named.items(), strict=False):
        edges = _rank_edges(values.size, num_draws + 1)
        _draw_histogram(each, values, edges, np.diff(edges) / (num_draws + 1))
        each.set(title=label, xlabel=f"rank among {num_draws:,} draws")
    return drawn if isinstance(ranks, Mapping) else drawn.flat[0]


def plot_vsbc(probabilities: Any, *, ax: Any = None) -> Any:
    r"""Draw how often the truth lay at each quantile of the guide, over many simulations.

    A guide whose centre is right, whatever its width, has a symmetric histogram. The grey band
    holds each bar with a probability of 99 % where the guide is right altogether. The title says
    how likely so much asymmetry is by chance, by the test of Kolmogorov and Smirnov between
    :math:`p_i` and :math:`1 - p_i`, as Butler has it for numbers that are each other's mirror
    images.

    Args:
        probabilities: Of a draw being below the truth, in each simulation, between 0 and 1, of
            shape ``(simulations,)``; or a mapping from sites to probabilities of shape
            ``(simulations, *site shape)``.
        ax: Axes to draw on, or as many of them as there are coordinates; those of a new figure if
            not given.

    Returns:
        The axes; for a mapping, an array of them.

    Raises:
        DomainError: A probability is not possible, or matplotlib is missing.
        NonFiniteError: A probability is NaN or infinite.
        ShapeError: A shape is wrong.

    Reference:
        Yao, Vehtari, Simpson & Gelman (2018), *Yes, but did it work?*, section 3; Butler (1969),
        *A test for symmetry using the sample distribution function*.

    Example:
        >>> import numpy as np
        >>> plot_vsbc(np.linspace(0.0, 0.4, 200)).get_title()
        'asymmetric (p < 0.001)'
    """
    named = named_vectors("plot_vsbc", "probabilities", probabilities)
    for values in named.values():
        if values.min() < 0 or values.max() > 1:
            raise _checks.refusal(
                DomainError,
                "plot_vsbc",
                expected="probabilities between 0 and 1",
                got=f"values from {values.min():g} to {values.max():g}",
            )
    drawn = _axes_for("plot_vsbc", ax, named)
    for each, (label, values) in zip(drawn.flat, named.items(), strict=False):
        edges = np.linspace(0, 1, _bins(values.size) + 1)
        _draw_histogram(each, values, edges, np.diff(edges))
        each.axvline(0.5, color="k", lw=0.8, ls=":")
        each.set(
            title=f"{label}\n{_verdict(values)}" if label else _verdict(values),
            xlabel="P(draw < truth)",
        )
    return drawn if isinstance(probabilities, Mapping) else drawn.flat[0]


def symmetry_p_value(probabilities: np.ndarray) -> float:
    """Return how likely more asymmetry about one half would be by chance.

    Args:
        probabilities: Of shape ``(simulations,)``.
    """
    offsets = np.round(probabilities - 0.5, _DIGITS)
    # The test looks at their signs and their order alone, which integers keep.
    order = np.unique(np.append(0.0, np.abs(offsets)), return_inverse=True)[1][1:]
    middle = int(order.max())
    ranks = middle + np.sign(offsets).astype(np.int64) * order
    return float(symmetry(ranks[:, None], 2 * middle)[0])


def binomial_band(count: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest number of hits that 99 % of all cases stay within.

    Args:
        count: Number of trials.
        shares: Probabilities of a hit.
    """
    hits = np.arange(count + 1)
    logs = np.array([math.lgamma(n + 1) for n in range(count + 1)])
    choose = logs[-1] - logs - logs[::-1]
    lows, highs = [], []
    for share in shares:
        if share == 1:
            lows.append(count)
            highs.append(count)
            continue
        below = np.cumsum(np.exp(choose + hits * np.log(share) + hits[::-1] * np.log1p(-share)))
        lows.append(int(np.searchsorted(below, _OUTSIDE / 2)))
        highs.append(int(np.searchsorted(below, 1 - _OUTSIDE / 2)))
    return np.array(lows), np.array(highs)


def _axes_for(who: str, ax: Any, named: dict[str, np.ndarray]) -> np.ndarray:
    if list(named) == [""]:
        return np.array([one_axes(who, ax)], dtype=object)
    return panels(who, ax, len(named))


def _bins(simulations: int) -> int:
    return int(np.clip(simulations // _LEAST_A_BIN, 1, _MOST_BINS))


def _rank_edges(simulations: int, ranks: int) -> np.ndarray:
    """Return the edges of bins that hold equally many ranks, or all but one, where that fails."""
    most = min(_bins(simulations), ranks)
    divisors = [bins for bins in range(most // 2 + 1, most + 1) if ranks % bins == 0]
    return np.round(np.linspace(0, ranks, max(divisors, default=most) + 1)) - 0.5


def _draw_histogram(ax: "Axes", values: np.ndarray, edges: np.ndarray, shares: np.ndarray) -> None:
    low, high = binomial_band(values.size, shares)
    ax.stairs(high, edges, baseline=low, fill=True, color=FAINT, alpha=0.5, lw=0)
    ax.stairs(values.size * shares, edges, color=FAINT, lw=1.0, baseline=None)
    counts = np.histogram(values, edges)[0]
    ax.stairs(counts, edges, fill=True, color=OURS, alpha=0.35, lw=0)
    ax.stairs(counts, edges, baseline=None, color=OURS, lw=1.5)
    ax.set(ylabel=f"simulations, of {values.size:,}", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, 1.1 * max(counts.max(), high.max()))


def _verdict(values: np.ndarray) -> str:
    p_value = symmetry_p_value(values)
    word = "symmetric" if p_value >= _OUTSIDE else "asymmetric"
    return f"{word} (p {'< 0.001' if p_value < 1e-3 else f'= {p_value:.2g}'})"
