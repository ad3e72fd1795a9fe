"""Rational-quadratic splines, over the real line and over a circle."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from typing_extensions import Unpack, override

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.implicit import Tangent
from pyro_flows.numerics import widen
from pyro_flows.transforms.autoregressive import Autoregressive, AutoregressiveOptions
from pyro_flows.transforms.coupling import Coupling, CouplingOptions
from pyro_flows.transforms.elementwise import Elementwise, ElementwiseOptions
from pyro_flows.transforms.rational_quadratic import (
    Knots,
    spline,
    spline_inverse,
)
from pyro_flows.transforms.univariate import Univariate


@dataclass(frozen=True)
class _Spline(Univariate):
    """What splines over the line and over the circle share: the options, and their checks."""

    count_bins: int = 8
    bound: float = 5.0
    min_bin_size: float = 1e-3
    min_slope: float = 1e-3
    inverse_kind = "exact"
    _periodic: ClassVar[bool]

    def __post_init__(self) -> None:
        _checks.check_count(self._name, "count_bins", self.count_bins, least=2)
        for name in ("bound", "min_bin_size", "min_slope"):
            _checks.check_positive(self._name, name, getattr(self, name))
        if not self.count_bins * self.min_bin_size < 1:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="count_bins * min_bin_size < 1",
                got=f"{self.count_bins} * {self.min_bin_size}",
                advice="Take fewer bins, or let them be smaller.",
            )
        if not self.min_slope < 1:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="min_slope < 1, the slope of the identity",
                got=f"{self.min_slope}",
            )

    @property
    def _knots(self) -> Knots:
        return Knots(
            int(self.count_bins),
            float(self.bound),
            float(self.min_bin_size),
            float(self.min_slope),
            self._periodic,
        )


@dataclass(frozen=True)
class RationalQuadraticSpline(_Spline):
    r"""Bend an interval by a monotone rational-quadratic spline; outside, keep every point.

    The interval :math:`[-B, B]` is mapped to itself by ``count_bins`` pieces, each a quotient of
    quadratic polynomials that is fixed by where its two knots lie and by the slopes there. At
    :math:`\pm B` the slope is one, so that value and slope go on without a jump into the tails,
    which are the identity. The parameters of a coordinate are the logits of the bins' widths, the
    logits of their heights, and one number :math:`r` for the slope at each inner knot,

    .. math:: d = \frac{e^r + m}{1 + m e^r} \in (m, 1 / m)

    with :math:`m` the least slope. All at zero, they are the identity.

    Args:
        count_bins: Number of bins.
        bound: The bound :math:`B` of the interval.
        min_bin_size: Least width and height of a bin, as a part of the interval.
        min_slope: Least slope at a knot, below one; the largest is its inverse.

    Raises:
        DomainError: A number is not positive, the bins do not fit into the interval, or the least
            slope is not below one.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*, section 3.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Coupling, RationalQuadraticSpline
        >>> transform = Coupling(RationalQuadraticSpline(count_bins=4), 2)
        >>> transform.univariate.num_params
        11
    """

    _periodic = False

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Number of parameters per coordinate, ``3 count_bins - 1``."""
        return 3 * self.count_bins - 1

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_and_tangent(x, params)[:2]

    @override
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse_and_tangent(y, params)[:2]

    @override
    def forward_and_tangent(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        y, ladj, tangent = spline(widen(x), widen(params), self._knots)
        return y.to(x.dtype), ladj, tangent._replace(dtype=x.dtype)

    @override
    def inverse_and_tangent(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        x, ladj, tangent = spline_inverse(widen(y), widen(params), self._knots)
        return x.to(y.dtype), ladj, tangent._replace(dtype=y.dtype)


@dataclass(frozen=True)
class CircularSpline(_Spline):
    r"""Bend a circle by a monotone rational-quadratic spline, and turn it.

    An angle in :math:`[-B, B]` is mapped by a spline whose slopes at both ends are one and the
    same parameter, and then turned by another one, :math:`\rho`, modulo the circle:

    .. math:: y = f(x;\, p) + \rho \pmod{2 B}

    Value and slope are continuous where the ends meet, which for the image is anywhere. An angle
    outside the interval counts as the one inside that it is equivalent to. A network sees an angle
    as a cosine and a sine. The other parameters are those of :class:`RationalQuadraticSpline`; all
    at zero, they are the identity.

    Args:
        count_bins: Number of bins.
        bound: Half of a turn, :math:`B`.
        min_bin_size: Least width and height of a bin, as a part of the turn.
        min_slope: Least slope at a knot, below one; the largest is its inverse.

    Raises:
        DomainError: A number is not positive, the bins do not fit into a turn, or the least slope
            is not below one.

    Reference:
        Rezende, Papamakarios, Racanière, Albergo, Kanwar, Shanahan & Cranmer (2020), *Normalizing
        flows on tori and spheres*, section 2.1.3.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import CircularSpline, Coupling
        >>> transform = Coupling(CircularSpline(), 2)
        >>> angles = torch.tensor([3.0, -3.0])
        >>> torch.allclose(transform.inv(transform(angles)), angles, atol=1e-5)
        True
    """

    bound: float = math.pi
    num_features = 2
    _periodic = True

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Number of parameters per coordinate, ``3 count_bins + 1``."""
        return 3 * self.count_bins + 1

    @property
    @override
    def domain(self) -> Any:
        return constraints.interval(-self.bound, self.bound)

    @property
    @override
    def codomain(self) -> Any:
        return constraints.interval(-self.bound, self.bound)

    @override
    def features(self, x: Tensor) -> Tensor:
        """Return the cosines and the sines of angles of shape ``(*, n)``, as ``(*, 2 n)``."""
        angle = x * (math.pi / self.bound)
        return torch.cat([angle.cos(), angle.sin()], -1)

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        turn, params = self._turn_and_rest(params)
        y, ladj, _ = spline(self._wrap(widen(x)), params, self._knots)
        return self._wrap(y + turn).to(x.dtype), ladj

    @override
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        turn, params = self._turn_and_rest(params)
        x, ladj, _ = spline_inverse(self._wrap(widen(y) - turn), params, self._knots)
        return self._confine(x).to(y.dtype), ladj

    def _turn_and_rest(self, params: Tensor) -> tuple[Tensor, Tensor]:
        params = widen(params)
        # Wrapped before it is added, for the digits of the sum.
        return self._wrap(params[..., 0, :]), params[..., 1:, :]

    def _wrap(self, x: Tensor) -> Tensor:
        """Return the equivalent angle in ``[-bound, bound]``."""
        turns = torch.floor(x.detach() * (0.5 / self.bound) + 0.5)
        return self._confine(x - turns * (2 * self.bound))

    def _confine(self, x: Tensor) -> Tensor:
        """Undo a rounding that ended just outside; a clamp alone would cut the gradient off."""
        value = x.detach()
        return x + (value.clamp(-self.bound, self.bound) - value)


class ElementwiseSpline(Elementwise):
    r"""Map each coordinate by a spline with free parameters, or with functions of the context.

    .. math:: y_i = f(x_i;\, p_i(c)), \qquad \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    with the spline :math:`f` of :class:`RationalQuadraticSpline` or :class:`CircularSpline`.

    Args:
        input_dim: Number of coordinates.
        count_bins: Number of bins.
        bound: Beyond it, on either side, a spline is the identity; five if not given. For angles,
            half of a turn; :math:`\pi` if not given.
        circular: Whether the coordinates are angles.
        **options: Those of :class:`Elementwise`.

    Raises:
        DomainError: A size, a bound or the activation is not possible.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*, section 3.

    Example:
        >>> import torch
        >>> transform = ElementwiseSpline(2, count_bins=4)
        >>> transform(torch.tensor([1.0, 100.0])).tolist()
        [1.0, 100.0]
    """

    def __init__(
        self,
        input_dim: int,
        *,
        count_bins: int = 8,
        bound: float | None = None,
        circular: bool = False,
        **options: Unpack[ElementwiseOptions],
    ) -> None:
        super().__init__(_spline(count_bins, bound, circular), input_dim, **options)


class SplineCoupling(Coupling):
    r"""Map some coordinates by splines whose parameters are functions of the others.

    .. math:: y_A = x_A, \quad y_j = f(x_j;\, p_j(x_A, c)) \text{ for } j \in B, \qquad
        \log |\det J| = \sum_{j \in B} \log f'(x_j;\, p_j)

    with the spline :math:`f` of :class:`RationalQuadraticSpline` or :class:`CircularSpline`.

    Args:
        input_dim: Number of coordinates.
        count_bins: Number of bins.
        bound: Beyond it, on either side, a spline is the identity; five if not given. For angles,
            half of a turn; :math:`\pi` if not given.
        circular: Whether the coordinates, kept or mapped, are angles.
        **options: Those of :class:`Coupling`.

    Raises:
        DomainError: A size, a bound, the mask or the activation is not possible.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*, section 3.

    Example:
        >>> import torch
        >>> transform = SplineCoupling(4, hidden_dims=(16,))
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 4))
        >>> y.shape, ladj.shape
        (torch.Size([10, 4]), torch.Size([10]))
    """

    def __init__(
        self,
        input_dim: int,
        *,
        count_bins: int = 8,
        bound: float | None = None,
        circular: bool = False,
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__(_spline(count_bins, bound, circular), input_dim, **options)


class SplineAutoregressive(Autoregressive):
    r"""Map each coordinate by a spline whose parameters are functions of the ones before it.

    .. math:: y_i = f(x_i;\, p_i(x_{<i}, c)), \qquad
        \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    with the spline :math:`f` of :class:`RationalQuadraticSpline`. For angles, whose network must
    not see where a circle was cut open, use a :class:`SplineCoupling`.

    Args:
        input_dim: Number of coordinates, ``D``.
        count_bins: Number of bins.
        bound: Beyond it, on either side, a spline is the identity.
        **options: Those of :class:`Autoregressive`.

    Raises:
        DomainError: A size, a bound or the activation is not possible.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*, section 3.

    Example:
        >>> import torch
        >>> transform = SplineAutoregressive(3, hidden_dims=(16,), context_dim=2)
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 3), torch.randn(2))
        >>> y.shape, ladj.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    def __init__(
        self,
        input_dim: int,
        *,
        count_bins: int = 8,
        bound: float = 5.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        super().__init__(RationalQuadraticSpline(count_bins, bound), input_dim, **options)


def _spline(count_bins: int, bound: float | None, circular: bool) -> Univariate:
    kind = CircularSpline if circular else RationalQuadraticSpline
    return kind(count_bins) if bound is None else kind(count_bins, bound)
