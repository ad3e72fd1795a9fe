"""The roots of increasing functions, found for many targets at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_flows import _checks
from pyro_flows.errors import FlowError, NotConvergedError

# From x to f(x) and log f'(x).
Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]

_MAX_STEPS = 200  # Twice what bisection alone would take, in float64.
_TRACED_STEPS = 24  # From a bracket, the univariate maps take 20 at most.
_ROUNDING = 32  # What a residual may be, in units of rounding.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def solve_increasing(
    function: Increasing,
    target: Tensor,
    *,
    bracket: tuple[Tensor, Tensor] | None = None,
    who: str,
) -> Tensor:
    r"""Return the ``x`` at which an increasing function meets its target, element by element.

    Newton's steps, safeguarded by bisection: a step that leaves the bracket, or that is more than
    half as long as the one before, is replaced by the bracket's middle. Where neither infinity
    nor a kink is near, four to six evaluations do.

    The result is exact for a target and a point that differ from the given ones by rounding:

    .. math:: |f(x) - y| \le 32 \epsilon \, (1 + |y| + |x| f'(x))

    or as close to that as the rounding of ``function`` allows. An infinite target has an infinite
    root; a NaN, and an element at which the function is not finite, becomes a NaN.

    Where a graph is traced or compiled, values cannot steer the loop: the number of steps is then
    fixed, and an element that has not converged becomes a NaN.

    Args:
        function: Maps ``x`` to :math:`f(x)` and :math:`\log f'(x)`, both of the shape of ``x``.
        target: :math:`y`, of any shape.
        bracket: Bounds between which every root lies, to rounding; all finite numbers, if not
            given.
        who: The caller, for the error's message.

    Raises:
        NotConvergedError: No finite ``x``, or none in the bracket, comes near a target.

    Reference:
        Press, Teukolsky, Vetterling & Flannery (2007), *Numerical recipes*, section 9.4.

    Example:
        >>> import torch
        >>> solve_increasing(lambda x: (x.sinh(), x.cosh().log()), torch.tensor([0.0]), who="me")
        tensor([0.])
    """
    with torch.no_grad():
        infinite = target.isinf()
        wanted = torch.where(infinite, 0.0, target)
        root, residual, missed = _search(function, wanted, bracket)
        if _is_traced():
            root = torch.where(missed, torch.nan, root)
        elif bool(missed.any()):
            raise _refusal(who, wanted[missed], residual[missed])
        return torch.where(infinite, target, root)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _refusal(who: str, targets: Tensor, residuals: Tensor) -> FlowError:
    worst = int(residuals.abs().argmax())
    return _checks.refusal(
        NotConvergedError,
        who,
        expected="targets that a finite point is mapped to",
        got=f"{targets.numel()} out of reach, such as {float(targets[worst]):g}, "
        f"missed by {float(residuals[worst].abs()):g}",
        advice="Check the parameters: the map may have become flat, or not finite.",
    )


def _search(
    function: Increasing, target: Tensor, bracket: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the roots, their residuals, and which of them are none."""
    limits, traced = torch.finfo(target.dtype), _is_traced()
    largest = torch.full_like(target, limits.max)
    (low, high), middle = ((-largest, largest), _halfway) if bracket is None else (bracket, _mean)
    size = 1 + target.abs()
    rounding, near = _ROUNDING * limits.eps * size, limits.eps**0.5
    x = target.clamp(low, high)
    last_step, done = torch.full_like(x, torch.inf), torch.zeros_like(x, dtype=torch.bool)
    for _ in range(_TRACED_STEPS if traced else _MAX_STEPS):
        value, ladj = function(x)
        residual = value - target
        low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
        step = residual * torch.exp(-ladj)
        newton = x - step
        safe = (newton == newton.clamp(low, high)) & (step.abs() <= 0.5 * last_step)
        # Where a residual is rounding, Newton's steps stop shrinking.
        done = done | (~safe & (residual.abs() <= rounding))
        new = torch.where(done, x, torch.where(safe, newton, middle(low, high)))
        last_step, x = (new - x).abs(), new
        # Not <=, for a NaN to be done as well: no step can mend it.
        done = ~(last_step > 2 * limits.eps * x.abs())
        if not traced and bool(done.all()):
            break
    met = (step.abs() <= near * x.abs()) | (residual.abs() <= near * size)
    found = residual.isfinite()
    return torch.where(found, x, torch.nan), residual, found & ~met


def _mean(low: Tensor, high: Tensor) -> Tensor:
    return 0.5 * low + 0.5 * high


def _halfway(low: Tensor, high: Tensor) -> Tensor:
    """Return the mean, or if the two are far apart, halfway through the numbers between them."""
    integer = _INTEGERS[low.element_size()]
    i, j = _ordered(low.view(integer)), _ordered(high.view(integer))
    between = _ordered((i >> 1) + (j >> 1) + (i & j & 1)).view(low.dtype)
    far = high - low > 64 * (1 + torch.minimum(low.abs(), high.abs()))
    return torch.where(far, between, _mean(low, high))


def _ordered(bits: Tensor) -> Tensor:
    """Map the bits of floating-point numbers to integers in the same order, or back."""
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)
