"""Numerical kernels that more than one transform needs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Maps a cotangent of each value of a function, none for zero, to one of each of its arguments.
Pull = Callable[..., tuple[Tensor, ...]]

LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)
_LEAST_SLOPE = 1e-3
_NEWTON_STEPS = 12


def soft_bound(x: Tensor, bound: float) -> Tensor:
    r"""Squash ``x`` smoothly into ``(-bound, bound)``, with slope one at zero.

    .. math:: x \mapsto b \tanh(x / b)

    A NaN stays a NaN and an infinity becomes the bound, so that a log-scale can neither run away
    nor hide a fault.

    Args:
        x: Any tensor.
        bound: The bound ``b > 0``.
    """
    return torch.tanh(x / bound) * bound


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least: half precision is too coarse for log-determinants."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def expand_batch(x: Tensor, batch: torch.Size) -> Tensor:
    """Return one value for each point of a batch, of shape ``batch``."""
    return x if x.shape == batch else x.expand(batch)


def linearise(
    function: Callable[..., tuple[Tensor, ...]], *points: Tensor
) -> tuple[tuple[Tensor, ...], Pull]:
    """Return a function's values, and what pulls cotangents of them back to its arguments.

    Like ``torch.func.vjp``, but outside of it also for functions that use autograd themselves,
    and with a graph that serves any number of pulls.

    Args:
        function: Maps tensors to a tuple of tensors.
        *points: Its arguments.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        values, pull = torch.func.vjp(function, *points)  # type: ignore[misc]

        def pull_within(*cotangents: Tensor | None) -> tuple[Tensor, ...]:
            pairs = zip(values, cotangents, strict=True)
            return pull(tuple(torch.zeros_like(v) if c is None else c for v, c in pairs))

        return values, pull_within

    with torch.enable_grad():
        leaves = [point.detach().requires_grad_() for point in points]
        outputs = function(*leaves)

    def pull_back(*cotangents: Tensor | None) -> tuple[Tensor, ...]:
        pairs = zip(outputs, cotangents, strict=True)
        # What does not depend on the arguments sends them nothing.
        sources = [(v, c) for v, c in pairs if c is not None and v.requires_grad]
        if not sources:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        values, given = zip(*sources, strict=True)
        return torch.autograd.grad(
            values, leaves, given, retain_graph=True, materialize_grads=True
        )

    return outputs, pull_back


def zero_ladj(x: Tensor) -> Tensor:
    """Return the log-determinant of a map that keeps volumes, for points of shape ``(*, D)``."""
    return widen(x.new_zeros(x.shape[:-1]))


def solve_rows(matrix: Tensor, rows: Tensor, *, upper: bool = False) -> Tensor:
    """Solve ``matrix @ v = row`` for each row, in float32 at least.

    Args:
        matrix: A triangular matrix, of shape ``(D, D)``.
        rows: Of shape ``(*, D)``.
        upper: Whether the matrix is upper-triangular; lower-triangular otherwise.
    """
    flat = widen(rows.reshape(-1, rows.shape[-1]))
    solved = torch.linalg.solve_triangular(widen(matrix.T), flat, upper=not upper, left=False)
    return solved.view(rows.shape).to(rows.dtype)


def regression(covariance: Tensor, own: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes of parts of a Gaussian on others, and what is left of the former.

    Args:
        covariance: Of shape ``(D, D)``.
        own: Places of each part's coordinates, of shape ``(*, M)``.
        given: Those of what it is regressed on, of shape ``(*, P)``.

    Returns:
        The slopes, of shape ``(*, M, P)``, and the Cholesky factors of the conditional
        covariances, ``(*, M, M)``.
    """
    within = covariance[own[..., :, None], own[..., None, :]]
    across = covariance[own[..., :, None], given[..., None, :]]
    beyond = covariance[given[..., :, None], given[..., None, :]]
    slope = torch.linalg.solve(beyond, across.mT).mT if given.shape[-1] else across
    return slope, torch.linalg.cholesky(within - slope @ across.mT)


def pull_tanh(cotangent: Tensor, value: Tensor) -> Tensor:
    """Return what an argument of tanh receives, given what its value does, in one operation."""
    return torch.ops.aten.tanh_backward(cotangent, value)


def soft_bound_slope(bounded: Tensor, bound: float) -> Tensor:
    """Return the derivative of :func:`soft_bound`, given its value."""
    return 1 - (bounded / bound).square()


def log_sech_square(x: Tensor) -> Tensor:
    r"""Return :math:`\log \mathrm{sech}^2 x` without cancellation.

    .. math:: \log \mathrm{sech}^2 x = 2 (\log 2 - x - \log(1 + e^{-2 x}))

    Args:
        x: Any tensor.
    """
    # Beyond the threshold, softplus is its argument, to the rounding of float64.
    return 2 * (math.log(2) - x - functional.softplus(-2 * x, threshold=40.0))


def above_minus_one(x: Tensor) -> Tensor:
    r"""Map ``x`` smoothly above -1, with slope one at zero and no bound from above.

    .. math:: m(a) = \begin{cases} a & a \ge 0 \\ k (e^{a / k} - 1) & a < 0 \end{cases}

    With :math:`k = 0.999`, the slope :math:`1 + m` of a map stays away from zero.

    Args:
        x: Any tensor.
    """
    return functional.celu(x, alpha=1 - _LEAST_SLOPE)


def log_bend_slope(bent: Tensor, bend: Tensor) -> Tensor:
    r"""Return the log-slope :math:`\log(1 + c \, \mathrm{sech}^2 t)`, in float32 at least.

    Args:
        bent: :math:`\tanh t`, in float64: there, one minus its square keeps the digits that
            float32 would lose where tanh saturates, for any :math:`c` up to about 1e8.
        bend: :math:`c > -1`; broadcasts with ``bent``.
    """
    bend = widen(bend)
    return torch.log1p(bend * (1 - bent * bent).to(bend.dtype))


def log_bend_slope_slope(bent: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\mathrm{sech}^2 t`, and the derivative of :func:`log_bend_slope` for ``t``.

    Args:
        bent: :math:`\tanh t`, in float64.
        bend: :math:`c > -1`; broadcasts with ``bent``.
    """
    bend = widen(bend)
    gate = (1 - bent * bent).to(bend.dtype)
    steep = bend * gate
    return gate, -2 * bent.to(bend.dtype) * steep / (1 + steep)


def solve_bend(r: Tensor, bend: Tensor) -> Tensor:
    r"""Solve :math:`t + c \tanh t = r` for ``t``, with derivatives.

    Both sides are odd, so let :math:`r \ge 0`. For :math:`c > 0` the left side is concave, and for
    :math:`c < 0` convex; started at the better one of the bounds :math:`r - c` and
    :math:`r / (1 + c)`, both below the root in the first case and above it in the second, Newton's
    steps never cross it. They are twelve, which is enough for :math:`c` up to about 1e5.

    Args:
        r: Any tensor.
        bend: :math:`c > -1`; broadcasts with ``r``.
    """
    t = _search_bend(r, bend)
    if not torch.is_grad_enabled():
        return t
    # Two more steps, whose value is rounding and whose derivatives are those of the implicit
    # function: one step alone gets the first one right, two get three.
    for _ in range(2):
        t = t - _newton_step(t, r, bend)
    return t


@torch.no_grad()
def _search_bend(r: Tensor, bend: Tensor) -> Tensor:
    size = r.abs()
    low, high = size - bend, size / (1 + bend)
    t = torch.where(bend > 0, torch.maximum(low, high), torch.minimum(low, high))
    for _ in range(_NEWTON_STEPS):
        bent = torch.tanh(t)
        # Rounding of this slope costs no digits of the root; it would of the derivatives.
        slope = 1 + bend * (1 - bent * bent)
        t = t - (t + bend * bent - size) / slope
    return torch.where(r < 0, -t, t)


def _newton_step(t: Tensor, r: Tensor, bend: Tensor) -> Tensor:
    return (t + bend * torch.tanh(t) - r) / (1 + bend * log_sech_square(t).exp())
