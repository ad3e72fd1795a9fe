"""The roots of increasing functions, found for many targets at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_flows import _checks
from pyro_flows.errors import NotConvergedError

# From x to f(x) and log f'(x).
Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]

_GROWTH = 16.0  # By which a bracket grows at a time.
_MAX_GROWTHS = 300  # Enough to reach the largest number of float64.
_MAX_STEPS = 200  # Enough for bisection alone, in float64.
_TRACED_GROWTHS, _TRACED_STEPS = 32, 40


def solve_increasing(
    function: Increasing,
    target: Tensor,
    *,
    bracket: tuple[Tensor, Tensor] | None = None,
    who: str,
) -> Tensor:
    r"""Return the ``x`` at which an increasing function meets its target, element by element.

    Newton's steps, safeguarded by bisection: a step that leaves the bracket, or that is not at
    most half as long as the one before, is replaced by the bracket's midpoint. An element is done
    when a step changes it by no more than two units in the last place. An infinite target has an
    infinite root; a NaN stays a NaN.

    Where a graph is traced or compiled, values cannot steer the loop: the numbers of steps are
    then fixed, and an element that has not converged becomes a NaN.

    Args:
        function: Maps ``x`` to :math:`f(x)` and :math:`\log f'(x)`, both of the shape of ``x``.
        target: Of any shape.
        bracket: Bounds between which every root lies; if not given, an interval about the target
            that grows until it holds the root.
        who: The caller, for the error's message.

    Raises:
        NotConvergedError: No finite ``x`` reaches a target, or the steps do not settle.
    """
    with torch.no_grad():
        wanted = torch.where(target.isinf(), torch.zeros_like(target), target)
        low, high = _grow(function, wanted, who) if bracket is None else bracket
        root = _newton(function, wanted, low, high, who)
        return torch.where(target.isinf(), target, root)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _grow(function: Increasing, target: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """Return an interval about the target that holds the root."""
    largest, traced = torch.finfo(target.dtype).max, _is_traced()
    step = 0.5 * target.abs() + 1
    low, high = target - step, target + step
    for _ in range(_TRACED_GROWTHS if traced else _MAX_GROWTHS):
        above, below = function(low)[0] > target, function(high)[0] < target
        if not traced and not bool((above | below).any()):
            return low, high
        step = (step * _GROWTH).clamp(max=largest)
        low, high = (
            torch.where(above, low - step, torch.where(below, high, low)).clamp(min=-largest),
            torch.where(below, high + step, torch.where(above, low, high)).clamp(max=largest),
        )
    if not traced:
        missed = target[above | below]
        raise _checks.refusal(
            NotConvergedError,
            who,
            expected="targets that a finite point is mapped to",
            got=f"{missed.numel()} that none reaches, such as {float(missed.flatten()[0]):g}",
            advice="Check the parameters: the map may have become flat, or not finite.",
        )
    return low, high


def _newton(function: Increasing, target: Tensor, low: Tensor, high: Tensor, who: str) -> Tensor:
    eps, traced = torch.finfo(target.dtype).eps, _is_traced()
    x = torch.minimum(torch.maximum(target, low), high)
    last_step = high - low
    done = torch.zeros_like(target, dtype=torch.bool)
    for _ in range(_TRACED_STEPS if traced else _MAX_STEPS):
        value, ladj = function(x)
        residual = value - target
        low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
        newton, middle = x - residual * torch.exp(-ladj), 0.5 * low + 0.5 * high
        safe = (newton >= low) & (newton <= high) & ((newton - x).abs() <= 0.5 * last_step)
        new = torch.where(safe, newton, middle)
        new = torch.where(done | (residual == 0), x, new)
        last_step = (new - x).abs()
        # Not <, for a NaN to be done as well: no step can mend it.
        done = done | ~(last_step > 2 * eps * x.abs())
        x = torch.where(residual.isnan(), residual, new)
        if not traced and bool(done.all()):
            return x
    if not traced:
        residual = (function(x)[0] - target).abs()[~done]
        raise _checks.refusal(
            NotConvergedError,
            who,
            expected=f"the root of every target within {_MAX_STEPS} steps",
            got=f"{residual.numel()} unsettled, the worst residual {float(residual.max()):g}",
            advice="Check the parameters: the map may be flat to rounding.",
        )
    return torch.where(done, x, torch.full_like(x, torch.nan))
