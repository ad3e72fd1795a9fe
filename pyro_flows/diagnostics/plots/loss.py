"""The course of a fit."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_flows import _checks
from pyro_flows.density import MleResult
from pyro_flows.diagnostics.plots._axes import FAINT, OTHER, OURS, one_axes
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer.training.result import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the last half's spread, and in nats: what lies further from it is cut off.
_SPREADS, _LEAST_NATS = 20.0, 1.0
# Share of the steps that do not matter for the range.
_FEW = 0.005
_BLOCKS = 100
_STOPS = {"max_steps": "all steps taken", "max_epochs": "all epochs taken"}


class _Course(NamedTuple):
    """What a picture shows of a fit: losses in nats."""

    losses: np.ndarray
    validation: np.ndarray
    steps: int
    name: str
    final: float
    error: float
    stopped: str
    kept: str


def plot_loss(
    result: FitResult | MleResult, *, ax: "Axes | None" = None, exact: float | None = None
) -> "Axes":
    """Draw the loss of each step, where the fit stopped, and the loss of the state that is kept.

    The thin line is the loss of each step, the thick one its median over a hundredth of the run
    (ten steps at least); of a fit to data, the dots are the loss on held-out rows. The range shown
    is that of the last half of the run and twenty times its spread, or one nat, around it; how
    many steps lie outside is written into the picture.

    Args:
        result: What :func:`~pyro_flows.fit` returned, or a fit to data by maximum likelihood.
        ax: Axes to draw on; those of a new figure if not given.
        exact: The largest value possible, in nats, where it is known: the logarithm of the
            evidence for an ELBO, minus the entropy for a fit to data.

    Returns:
        The axes.

    Raises:
        DomainError: An argument is not possible, or matplotlib is missing.
        NonFiniteError: There is no finite loss to show.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_flows.infer import AutoFlow, fit
        >>> model = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> result = fit(model, AutoFlow(model), steps=20, seed=0, progress=False)
        >>> plot_loss(result, exact=0.0).get_xlabel()
        'step'
    """
    course = _course(result)
    exact = None if exact is None else _check_exact(exact)
    low, high = _range(course, [] if exact is None else [-exact])
    ax = one_axes("plot_loss", ax)
    steps = np.arange(1, course.losses.size + 1)
    ax.plot(steps, course.losses, color=OURS, lw=0.6, alpha=0.4)
    ax.plot(*_medians(course.losses), color=OURS, lw=1.6, label="loss of a step, median")
    if course.validation.size:
        ends = np.arange(1, course.validation.size + 1) * course.steps / course.validation.size
        ax.plot(ends, course.validation, ".", color=OTHER, ms=4, label="held-out rows")
    _draw_skipped(ax, steps[~np.isfinite(course.losses)])
    _draw_final(ax, course)
    if exact is not None:
        ax.axhline(-exact, color="k", lw=1.0, ls=":", label=f"exact: {-exact:,.3f}")
    ax.set(xlabel="step", ylabel=course.name, ylim=(low, high))
    ax.set_xlim(0, 1.02 * max(course.steps, 1))
    _note_outside(ax, course.losses, low, high)
    ax.legend(loc="upper right", fontsize="small")
    return ax


def _course(result: Any) -> _Course:
    if isinstance(result, MleResult):
        name, final, error = "negative log-likelihood of a row (nats)", result.nll, np.nan
        if result.objective != "NLL":
            # The state is judged by its likelihood, which is no loss of this kind.
            name, final = f"{result.objective} of a row", np.nan
        validation = np.asarray(result.validation, dtype=np.float64)
    elif isinstance(result, FitResult):
        name, final, error = "loss: negative ELBO (nats)", -result.elbo, result.elbo_se
        validation = np.empty(0)
    else:
        raise _checks.refusal(
            DomainError,
            "plot_loss",
            expected="the FitResult of fit(), or an MleResult",
            got=f"{type(result).__name__}",
        )
    losses = np.asarray(result.losses, dtype=np.float64)
    stopped = _STOPS.get(result.status, result.status)
    return _Course(losses, validation, result.steps, name, final, error, stopped, result.state)


def _draw_final(ax: "Axes", course: _Course) -> None:
    label = f"stopped at step {course.steps:,}: {course.stopped}"
    ax.axvline(course.steps, color=FAINT, lw=1.2, ls="-.", label=label)
    if not np.isfinite(course.final):
        return
    label, error = f"state kept, {course.kept}: {course.final:,.3f}", course.error
    if np.isfinite(error):
        label += f" ± {error:.2g}"
        ax.axhspan(course.final - error, course.final + error, color=OTHER, alpha=0.25, lw=0)
    ax.axhline(course.final, color=OTHER, lw=1.4, ls="--", label=label)


def _draw_skipped(ax: "Axes", skipped: np.ndarray) -> None:
    if skipped.size:
        heights = np.zeros(skipped.size)
        across = ax.get_xaxis_transform()
        ax.plot(
            skipped, heights, "k|", ms=12, transform=across, label=f"{skipped.size} steps skipped"
        )


def _note_outside(ax: "Axes", losses: np.ndarray, low: float, high: float) -> None:
    finite = losses[np.isfinite(losses)]
    outside = finite[(finite > high) | (finite < low)]
    if outside.size:
        furthest = outside[np.abs(outside - (low + high) / 2).argmax()]
        text = f"{outside.size:,} steps lie outside, the furthest at {furthest:.3g}"
        ax.set_title(text, fontsize="small", loc="left")


def _range(course: _Course, marks: list[float]) -> tuple[float, float]:
    """Return the limits of the loss axis: the last half of the run decides, not its beginning."""
    losses = course.losses
    marks = [value for value in (course.final, *marks) if np.isfinite(value)]
    finite = losses[np.isfinite(losses)]
    if not finite.size and not marks:
        raise _checks.refusal(
            NonFiniteError,
            "plot_loss",
            expected="a loss that is finite",
            got=f"none in {losses.size} steps",
            advice="Look at result.reason.",
        )
    if not finite.size:
        return min(marks) - _LEAST_NATS, max(marks) + _LEAST_NATS
    late = finite[finite.size // 2 :]
    first, middle, last = np.quantile(late, [0.1, 0.5, 0.9])
    reach = max(_SPREADS * (last - first), _LEAST_NATS)
    near = finite[np.abs(finite - middle) <= reach]
    few = _FEW * finite.size
    low = near.min() if (finite < middle - reach).sum() <= few else middle - reach
    high = near.max() if (finite > middle + reach).sum() <= few else middle + reach
    low, high = min(low, *marks, middle), max(high, *marks, middle)
    margin = 0.05 * (high - low) or _LEAST_NATS
    return float(low - margin), float(high + margin)


def _medians(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of blocks of steps, and the medians of their finite losses."""
    size = max(10, losses.size // _BLOCKS)
    starts = np.arange(0, losses.size, size)
    blocks = [losses[start : start + size] for start in starts]
    finite = [block[np.isfinite(block)] for block in blocks]
    medians = [np.median(block) if block.size else np.nan for block in finite]
    middles = [start + (block.size + 1) / 2 for start, block in zip(starts, blocks, strict=True)]
    return np.array(middles), np.array(medians)


def _check_exact(exact: float) -> float:
    try:
        value = float(exact)
    except (TypeError, ValueError, RuntimeError):
        value = np.nan
    if not np.isfinite(value):
        raise _checks.refusal(
            DomainError,
            "plot_loss",
            expected="exact, the logarithm of the evidence, to be a finite number",
            got=f"{exact!r}",
        )
    return value
