"""Whether a run has converged, as far as the losses of its steps can tell."""

from collections.abc import Sequence

import numpy as np

from pyro_flows import _checks

# Each a part of the run that has to end on a plateau: checks in a row, whatever the run's length.
_PARTS = (1.0, 0.85, 0.7)
_LEAST_STEPS = 500
_CHECK_EVERY = 50
_BLOCKS = 10
_TRIM = 0.1
# A scatter of Gaussian numbers by the median of their sizes.
_MAD_TO_SD = 1.4826


def due(steps: int) -> bool:
    """Return whether to look for a plateau after a number of steps.

    Every 50 steps, and more rarely as a run grows, so that looking at all its last half costs the
    same per step in long runs and in short ones.

    Args:
        steps: Number of steps taken.

    Example:
        >>> [steps for steps in range(700) if due(steps)]
        [500, 550, 600, 650]
    """
    every = _CHECK_EVERY * max(steps // (40 * _CHECK_EVERY), 1)
    return steps >= _LEAST_STEPS and steps % every == 0


def on_plateau(losses: Sequence[float] | np.ndarray, tolerance: float = 0.02) -> bool:
    r"""Return whether the losses have stopped falling, within a tolerance and their noise.

    The last half of the run, :math:`(t/2, t]`, is cut into ten blocks. A line through their
    trimmed means, by the median of all slopes (Theil and Sen), tells by how much the loss fell
    over that half, and the blocks' scatter about it how well this is known. On a plateau the fall
    is within the tolerance, and within twice of it when its standard error is added. So it has to
    be at 70, 85 and 100 % of the run. Windows grow with the run: a descent that is slower than the
    noise of a short window is seen in a long one. The answer depends on the losses alone.

    Args:
        losses: The loss of each step so far, in nats, of shape ``(steps,)``; losses that are not
            finite are left out.
        tolerance: The largest change of the loss over the last half of the run, in nats.

    Raises:
        DomainError: The tolerance is not positive.

    Reference:
        Sen (1968), *Estimates of the regression coefficient based on Kendall's tau*.

    Example:
        >>> steps = np.arange(3000)
        >>> on_plateau(3.0 + np.exp(-steps / 100)), on_plateau(-1e-3 * steps)
        (True, False)
    """
    tolerance = _checks.check_positive("on_plateau", "tolerance", tolerance)
    if len(losses) < _LEAST_STEPS:
        return False
    return all(_is_flat(losses, int(part * len(losses)), tolerance) for part in _PARTS)


def _is_flat(losses: Sequence[float] | np.ndarray, stop: int, tolerance: float) -> bool:
    half = np.asarray(losses[stop // 2 : stop], dtype=np.float64)
    # Skipped steps move nothing, so that time is counted in the others.
    finite = half[np.isfinite(half)]
    if 2 * finite.size < half.size:
        return False
    fall, error = _fall(_levels(finite))
    return abs(fall) <= tolerance and abs(fall) + error <= 2 * tolerance


def _levels(losses: np.ndarray) -> np.ndarray:
    """Return the trimmed means of ten blocks of losses, without the oldest few left over."""
    size = losses.size // _BLOCKS
    blocks = np.sort(losses[losses.size - _BLOCKS * size :].reshape(_BLOCKS, size), axis=1)
    cut = int(_TRIM * size)
    return np.asarray(blocks[:, cut : size - cut].mean(axis=1))


def _fall(levels: np.ndarray) -> tuple[float, float]:
    """Return by how much a line through equally spaced levels falls, and its standard error."""
    first, second = np.triu_indices(levels.size, 1)
    slope = np.median((levels[second] - levels[first]) / (second - first))
    residuals = levels - slope * np.arange(levels.size)
    scatter = _MAD_TO_SD * np.median(np.abs(residuals - np.median(residuals)))
    # The slope's error times the window's length, as in least squares.
    return float(-slope * levels.size), float(scatter * np.sqrt(12 / levels.size))
