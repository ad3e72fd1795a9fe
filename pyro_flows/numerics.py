"""Numerical kernels that more than one transform needs."""

import math

import torch
from torch import Tensor
from torch.nn import functional

LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)


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


def zero_ladj(x: Tensor) -> Tensor:
    """Return the log-determinant of a map that keeps volumes, for points of shape ``(*, D)``."""
    return widen(x.new_zeros(x.shape[:-1]))


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
