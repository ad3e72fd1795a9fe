"""The tail of the importance weights, and its shape k-hat."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots._axes import FAINT, OTHER, OURS, one_axes
from pyro_flows.diagnostics.plots._points import to_array
from pyro_flows.errors import DomainError
from pyro_flows.infer.importance import psis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Below the first the weights have a variance, below the second they can correct the draws.
_THRESHOLDS = {0.5: ":", 0.7: "--"}
# Where the exponential function runs over.
_LARGEST_LOG = 700.0
_LEAST_SHOWN, _LEAST_RATIO = -0.5, 0.01


def plot_k_hat(log_weights: Any, *, ax: "Axes | None" = None) -> "Axes":
    r"""Draw the largest importance weights with the tail fitted to them, or several k-hats.

    The picture of one set of weights shows for each weight the share of draws that weigh as much
    or more; the Pareto tail that is fitted to the largest; and those of shape 0.5 and 0.7 with
    the same median. Weights that reach further than the tail of 0.7 cannot be trusted. The axis
    of weights is logarithmic where they differ by a factor of ten. Of several sets of weights the
    picture shows a bar each.

    Args:
        log_weights: Log importance weights, ``log p - log q`` of draws from ``q``, of shape
            ``(S,)``; minus infinity is a weight of zero. Or a mapping from names to such.
        ax: Axes to draw on; those of a new figure if not given.

    Returns:
        The axes.

    Raises:
        DomainError: There are no weights, or matplotlib is missing.
        NonFiniteError: A weight is NaN or infinite, or all weights are zero.

    Reference:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance sampling*; Yao,
        Vehtari, Simpson & Gelman (2018), *Yes, but did it work?*

    Example:
        >>> import torch
        >>> draws = torch.randn(4000, generator=torch.Generator().manual_seed(0))
        >>> plot_k_hat(0.1 * draws**2).get_title()
        'k-hat 0.3...: good, below 0.5'
    """
    if isinstance(log_weights, Mapping):
        return _draw_bars(log_weights, ax)
    raw, fitted, k_hat = _tail(log_weights)
    ax = one_axes("plot_k_hat", ax)
    shares = (np.arange(raw.size) + 0.5) / raw.size
    shown = max(raw.size // 2, fitted.size + 1)
    ax.loglog(raw[:shown], shares[:shown], ".", color=OURS, ms=3, label="draws")
    if fitted.size:
        label = f"Pareto tail fitted to {fitted.size:,} of {raw.size:,}"
        ax.loglog(fitted, shares[: fitted.size], color=OTHER, lw=1.5, label=label)
        _draw_thresholds(ax, raw[: fitted.size + 1], shares[: fitted.size])
    lowest = max(raw[shown - 1], _LEAST_RATIO * raw[fitted.size])
    if raw[0] < 10 * lowest:
        ax.set_xscale("linear")
    elif lowest > raw[shown - 1]:
        ax.set_xlim(left=lowest)
    ax.set(
        title=f"k-hat {_words(k_hat)}",
        xlabel="importance weight, relative to the mean",
        ylabel="share of draws with at least this weight",
    )
    ax.legend(loc="upper right", fontsize="small")
    return ax


def _tail(log_weights: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the weights over their mean, the fitted tail, both from the largest, and k-hat."""
    array = to_array("plot_k_hat", "log-weights", log_weights, finite=False).reshape(-1)
    smoothed, k_hat = psis(array)
    order = np.argsort(-array, kind="stable")
    logs = array[order] - array.max()
    logs += np.log(logs.size) - np.log(np.exp(logs).sum())
    raw = np.exp(np.maximum(logs, -_LARGEST_LOG))
    if np.isnan(k_hat):
        return raw, np.empty(0), k_hat
    count = int(np.ceil(min(array.size / 5, 3 * np.sqrt(array.size))))
    # Below the tail both are the same up to a constant.
    tail = np.sort(smoothed)[::-1][:count] - smoothed[order[count]] + logs[count]
    # There it is cut off.
    tail[tail >= logs[0] - 1e-9] = np.nan
    return raw, np.exp(np.maximum(tail, -_LARGEST_LOG)), k_hat


def _draw_thresholds(ax: "Axes", tail: np.ndarray, shares: np.ndarray) -> None:
    """Draw Pareto tails of the shapes that matter, with the median of the weights' tail."""
    start = tail[-1]
    median = np.median(tail[:-1]) - start
    for k, style in _THRESHOLDS.items():
        excess = median * ((shares / shares[-1]) ** -k - 1) / (2**k - 1)
        ax.loglog(start + excess, shares, color=FAINT, ls=style, label=f"Pareto tail, k = {k}")


def _draw_bars(named: Mapping[Any, Any], ax: "Axes | None") -> "Axes":
    if not named:
        raise _checks.refusal(
            DomainError, "plot_k_hat", expected="log-weights of one name or more", got="none"
        )
    shapes = {str(name): _tail(weights)[2] for name, weights in named.items()}
    ax = one_axes("plot_k_hat", ax)
    for place, k_hat in enumerate(shapes.values()):
        bad = k_hat > max(_THRESHOLDS)
        ax.barh(place, np.nan_to_num(k_hat), color=OURS, alpha=0.8, hatch="//" if bad else None)
        text = "not known" if np.isnan(k_hat) else f"{k_hat:.2f}"
        ax.annotate(
            text,
            (max(np.nan_to_num(k_hat), 0.0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            bbox={"fc": ax.get_facecolor(), "ec": "none", "pad": 1.0},
        )
    for k, style in _THRESHOLDS.items():
        ax.axvline(k, color="k", lw=1.0, ls=style)
    ax.axvline(0.0, color="k", lw=0.8)
    ax.set_yticks(range(len(shapes)), list(shapes))
    ax.invert_yaxis()
    ax.set(xlabel="k-hat; below 0.5 good, above 0.7 not to be trusted")
    ax.margins(x=0.12)
    # How far below zero does not matter.
    ax.set_xlim(left=max(ax.get_xlim()[0], _LEAST_SHOWN))
    return ax


def _words(k_hat: float) -> str:
    if np.isnan(k_hat):
        return "not known: too few draws, or ties"
    if k_hat < 0.5:
        return f"{k_hat:.2f}: good, below 0.5"
    if k_hat < 0.7:
        return f"{k_hat:.2f}: usable, below 0.7"
    return f"{k_hat:.2f}: bad, above 0.7"
