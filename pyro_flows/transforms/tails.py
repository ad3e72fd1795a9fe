"""Element-wise transforms of the tails: lighter, heavier by a learnable index, or bounded."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from pyro_flows import _checks
from pyro_flows.numerics import log_sech_square, soft_bound, widen
from pyro_flows.transforms.base import FlowTransform
from pyro_flows.transforms.elementwise import Elementwise, ElementwiseOptions
from pyro_flows.transforms.univariate import Univariate

_LEAK = 0.01  # Slope of a tanh's straight ends.
_START = 1e-5  # The h at parameters of zero.
# Largest h x^2 / 2. A point of 1e30 comes out at 1e38, which is just below the largest float32.
_MOST = 15.0
_NEWTON_STEPS = 6


class _Odd(FlowTransform):
    """The same odd map of every coordinate, without parameters.

    A subclass maps sizes :math:`|x|`, in float32 at least, to sizes and log-slopes.
    """

    def _forward_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        size, ladj = self._forward_size(_flip(widen(x), x < 0))
        return _flip(size, x < 0).to(x.dtype), ladj.sum(-1)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        size, ladj = self._inverse_size(_flip(widen(y), y < 0))
        return _flip(size, y < 0).to(y.dtype), ladj.sum(-1)


def _flip(x: Tensor, where: Tensor) -> Tensor:
    """Change the sign of some entries; unlike ``abs``, with a gradient at zero."""
    return torch.where(where, -x, x)


class LOFT(_Odd):
    r"""Draw far points in to their logarithm (the log soft extension), and leave the others.

    .. math:: y = \mathrm{sign}(x) \left(\log(\max(|x| - t, 0) + 1) + \min(|x|, t)\right), \qquad
        \log |\det J| = -\sum_i \log(\max(|x_i| - t, 0) + 1)

    As the last transform of a guide it keeps the rare huge draws of a deep flow from ruling the
    gradient. The inverse grows exponentially: from ``t + 88`` in float32 and ``t + 709`` in
    float64 on it is infinite, so that such a point has the log-density minus infinity, with the
    gradient zero.

    Args:
        input_dim: Number of coordinates.
        threshold: :math:`t`, up to which nothing moves.

    Raises:
        DomainError: The size is not a positive integer, or the threshold is negative.

    Reference:
        Andrade (2024), *Stable training of normalizing flows for high-dimensional variational
        inference*.

    Example:
        >>> import torch
        >>> LOFT(3, threshold=10.0)(torch.tensor([5.0, -10.0, 1e6])).tolist()
        [5.0, -10.0, 23.81]
    """

    def __init__(self, input_dim: int, *, threshold: float = 100.0) -> None:
        super().__init__(input_dim)
        self.threshold = _checks.check_positive(self._name, "threshold", threshold, zero=True)

    @override
    def _forward_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        near = size <= self.threshold
        log = torch.where(near, 0.0, size - self.threshold).log1p()
        return torch.where(near, size, self.threshold + log), -log

    @override
    def _inverse_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        near = size <= self.threshold
        log = torch.where(near, 0.0, size - self.threshold)
        most = math.floor(math.log(torch.finfo(size.dtype).max))
        # Where the inverse overflows, its log-slope stops growing: against a log-density of minus
        # infinity an infinite one would make a NaN.
        bounded = log.clamp(max=most)
        far = torch.where(log > most, torch.inf, self.threshold + bounded.expm1())
        return torch.where(near, size, far), bounded


class LeakyTanh(_Odd):
    r"""Squash every coordinate softly into an interval, from which a straight line leads on.

    .. math:: y = b \tanh(x / b) \text{ for } |x| \le c, \qquad
        y = \mathrm{sign}(x) \left(b \tanh(c / b) + 0.01 (|x| - c)\right) \text{ beyond,}

    where :math:`c`, about :math:`3 b`, is where the slope has fallen from one at zero to 0.01; so
    the map is a bijection of the real line, and its slope is continuous. Its start is not the
    identity.

    Args:
        input_dim: Number of coordinates.
        bound: :math:`b`.

    Raises:
        DomainError: The size is not a positive integer, or the bound not a positive number.

    Example:
        >>> import torch
        >>> LeakyTanh(3, bound=2.0)(torch.tensor([0.1, -3.0, 50.0])).tolist()
        [0.0999, -1.8103, 2.4301]
    """

    def __init__(self, input_dim: int, *, bound: float = 3.0) -> None:
        super().__init__(input_dim)
        self.bound = _checks.check_positive(self._name, "bound", bound)

    @property
    def _knot(self) -> tuple[float, float]:
        """Return where the line begins, as a size of ``x`` and one of ``y``."""
        # The slope is sech^2(x / b) = 1 - (y / b)^2.
        ratio = math.sqrt(1 - _LEAK)
        return self.bound * math.atanh(ratio), self.bound * ratio

    @override
    def _forward_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        x_knot, _ = self._knot
        far = size > x_knot
        inner = torch.where(far, x_knot, size) / self.bound
        leak = torch.where(far, _LEAK * (size - x_knot), 0.0)
        return self.bound * torch.tanh(inner) + leak, log_sech_square(inner)

    @override
    def _inverse_size(self, size: Tensor) -> tuple[Tensor, Tensor]:
        _, y_knot = self._knot
        far = size > y_knot
        inner = torch.atanh(torch.where(far, y_knot, size) / self.bound)
        leak = torch.where(far, (size - y_knot) / _LEAK, 0.0)
        return self.bound * inner + leak, -log_sech_square(inner)


@dataclass(frozen=True)
class TukeyH(Univariate):
    r"""Make the tails heavier: :math:`y = x e^{h x^2 / 2}`, with one :math:`h \ge 0` a side.

    A standard normal :math:`x` becomes a :math:`y` with the tail index :math:`1 / h`, which is
    :math:`P(|y| > r) \sim r^{-1/h}` up to a logarithm; so :math:`h = 1` has the tails of a Cauchy
    distribution. The two parameters are those of the left and the right tail,

    .. math:: h = \tfrac12 \left(a + \sqrt{a^2 + 4 \epsilon^2}\right), \qquad
        a = b \tanh(p / b), \qquad \epsilon = 10^{-5}

    At the start, :math:`p = 0`, the map is the identity to :math:`h = \epsilon`, which moves a
    point at 5 by 0.0006, and :math:`h` follows :math:`p` at half its pace.

    To stay within the numbers of float32, the map is a straight line from where
    :math:`h x^2 / 2 = 15` on, with the slope that it has there. This is where :math:`|x|` is 5.5
    or more, for :math:`h \le 1`, which a standard normal exceeds with the probability 4e-8.

    The inverse is :math:`x = y e^{-w / 2}` with Lambert's :math:`w e^w = h y^2`.

    Args:
        bound: Largest :math:`h`, :math:`b`; approached smoothly.

    Raises:
        DomainError: The bound is not a positive number.

    Reference:
        Tukey (1977), *Modern techniques in data analysis*; Goerg (2015), *The Lambert way to
        Gaussianize heavy-tailed data with the inverse of Tukey's h transformation as a special
        case*.

    Example:
        >>> import torch
        >>> univariate = TukeyH(bound=0.5)
        >>> univariate.heaviness(torch.tensor([0.0, 0.1, 5.0])).tolist()
        [1.0e-05, 0.0987, 0.5]
    """

    bound: float = 1.0
    num_params = 2
    inverse_kind = "exact"

    def __post_init__(self) -> None:
        _checks.check_positive(self._name, "bound", self.bound)

    def heaviness(self, params: Tensor) -> Tensor:
        """Return ``h`` for parameters of any shape, in float32 at least."""
        a = soft_bound(widen(params), self.bound)
        size = _flip(a, a < 0)
        total = size + (a.square() + 4 * _START**2).sqrt()
        # For a < 0 the sum of the formula cancels.
        return torch.where(a < 0, 2 * _START**2 / total, 0.5 * total)

    def _side(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``h`` and the point where the line begins, on the side of each ``x``."""
        left, right = self.heaviness(params).unbind(-2)
        h = torch.where(x < 0, left, right)
        return h, _flip((2 * _MOST / h).sqrt(), x < 0)

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        h, knot = self._side(x, params)
        wide = widen(x)
        far = wide.abs() > knot.abs()
        inner = torch.where(far, 0.0, wide)
        exponent = 0.5 * h * inner.square()
        line = math.exp(_MOST) * (wide + 2 * _MOST * (wide - knot))
        y = torch.where(far, line, inner * exponent.exp())
        return y.to(x.dtype), _log_slope(torch.where(far, _MOST, exponent))

    @override
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        h, knot = self._side(y, params)
        wide = widen(y) * math.exp(-_MOST)
        far = wide.abs() > knot.abs()
        inner = torch.where(far, 0.0, widen(y))
        exponent = 0.5 * _lambert_w(h * inner.square())
        line = (wide + 2 * _MOST * knot) / (1 + 2 * _MOST)
        x = torch.where(far, line, inner * torch.exp(-exponent))
        return x.to(y.dtype), -_log_slope(torch.where(far, _MOST, exponent))


def _log_slope(exponent: Tensor) -> Tensor:
    return exponent + torch.log1p(2 * exponent)


def _lambert_w(z: Tensor) -> Tensor:
    r"""Solve :math:`w e^w = z` for ``w``, where :math:`z \ge 0`, with derivatives.

    The start, by Iacono & Boyd (2017), *New approximations to the principal real-valued branch of
    the Lambert W-function*, is within a few hundredths; each of Newton's steps doubles the digits.
    """
    with torch.no_grad():
        log = torch.log1p(z)
        w = log * (1 - torch.log1p(log) / (2 + log))
        for _ in range(_NEWTON_STEPS):
            w = w - _newton_step(w, z)
    if not torch.is_grad_enabled():
        return w
    # Two more steps, whose value is rounding and whose derivatives are those of the implicit
    # function: one step alone gets the first one right, two get three.
    for _ in range(2):
        w = w - _newton_step(w, z)
    return w


def _newton_step(w: Tensor, z: Tensor) -> Tensor:
    return (w - z * torch.exp(-w)) / (1 + w)


class TailTransform(Elementwise):
    r"""Make the tails of every coordinate heavier, each by an index of its own.

    .. math:: y_i = x_i \exp(h_i x_i^2 / 2), \qquad
        \log |\det J| = \sum_i \left(h_i x_i^2 / 2 + \log(1 + h_i x_i^2)\right)

    Each coordinate has one :math:`h \ge 0` on the left and one on the right, free or a function of
    the context; a normal :math:`x_i` becomes a :math:`y_i` with the tail indices :math:`1 / h`.
    See :class:`TukeyH`.

    Args:
        input_dim: Number of coordinates.
        bound: Largest :math:`h`; approached smoothly. The tail index stays above its inverse.
        **options: Those of :class:`Elementwise`.

    Raises:
        DomainError: A size, the bound or the activation is not possible.

    Reference:
        Goerg (2015), *The Lambert way to Gaussianize heavy-tailed data with the inverse of Tukey's
        h transformation as a special case*.

    Example:
        >>> import torch
        >>> transform = TailTransform(2)
        >>> torch.allclose(transform(torch.ones(2)), torch.ones(2), atol=1e-5)
        True
        >>> transform.heaviness().shape
        torch.Size([2, 2])
    """

    univariate: TukeyH

    def __init__(
        self, input_dim: int, *, bound: float = 1.0, **options: Unpack[ElementwiseOptions]
    ) -> None:
        super().__init__(TukeyH(bound), input_dim, **options)

    def heaviness(self, context: Tensor | None = None) -> Tensor:
        """Return ``h`` of the left and of the right tails, of shape ``(*, 2, input_dim)``.

        Args:
            context: Of shape ``(*, context_dim)``.

        Raises:
            ShapeError: The context is missing, not wanted or of the wrong size.
        """
        _checks.check_context(self._name, context, self.context_dim)
        return self.univariate.heaviness(self._params(context))
