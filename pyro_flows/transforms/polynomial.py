"""Polynomial flows: each coordinate is mapped by the integral of a sum of squares."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from numpy.polynomial import legendre
from torch import Tensor
from typing_extensions import Unpack, override

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.numerics import soft_bound, widen
from pyro_flows.roots import solve_increasing
from pyro_flows.transforms.autoregressive import Autoregressive, AutoregressiveOptions
from pyro_flows.transforms.univariate import Univariate

_LEAST_SLOPE = 1e-3
_SHARE = 0.02  # Of the slope at the start, what is left to all polynomials but the first.


def _quadrature(degree: int) -> tuple[list[float], list[float]]:
    """Return nodes and weights on [0, 1] that integrate squares of that degree exactly."""
    nodes, weights = legendre.leggauss(degree + 1)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _monomials(degree: int) -> list[list[float]]:
    """Return Legendre's polynomials by their monomials, one a row."""
    rows = [legendre.leg2poly([0.0] * n + [1.0]).tolist() for n in range(degree + 1)]
    return [row + [0.0] * (degree + 1 - len(row)) for row in rows]


@dataclass(frozen=True)
class SumOfSquares(Univariate):
    r"""The integral of a sum of squared polynomials, continued linearly beyond a bound.

    .. math:: y = m + \int_0^x q(u / b) \, \mathrm{d}u, \qquad
        q(t) = r(t) + \sum_{k=1}^{K} p_k(t)^2 \quad \text{for } |t| \le 1

    Outside :math:`[-b, b]` the slope is that at the bound, so that the map is smooth to first
    order, covers the whole real line, and stays finite. The integral is that of Gauss' quadrature,
    which is exact here, and a sum of positive terms. Each polynomial is a fixed one plus a sum of
    Legendre's, whose coefficients are the parameters:

    .. math:: p_1 = \sqrt{1 - \epsilon - \delta} + \dots, \qquad
        p_k = \sqrt{\frac{\delta}{K - 1}} \, t^{k - 1} + \dots, \qquad
        r = \epsilon + \delta \, \Bigl(1 - \frac{1}{K - 1} \sum_{k=2}^{K} t^{2 k - 2} \Bigr)

    with :math:`\epsilon = 0.001` and :math:`\delta = 0.02`, or :math:`\delta = 0` for one
    polynomial alone. So the map starts at the identity with
    polynomials that differ, and the slope never falls below :math:`\epsilon`.

    Args:
        degree: Degree of the polynomials; that of the map is ``2 * degree + 1``.
        num_polynomials: Number of polynomials, ``K``; more than ``degree + 1`` would be redundant.
        bound: :math:`b`, beyond which the map is linear.
        coefficient_bound: Largest parameter, :math:`c`; approached smoothly. The slope stays below
            :math:`K (1 + (\mathrm{degree} + 1) \, c)^2 + 1`.

    Raises:
        DomainError: An argument is not positive, or there are too many polynomials.

    Reference:
        Jaini, Selby & Yu (2019), *Sum-of-squares polynomial flow*, section 4.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Coupling, SumOfSquares
        >>> transform = Coupling(SumOfSquares(degree=3), 2)
        >>> y = transform(torch.tensor([1e30, -1e30]))
        >>> y.allclose(torch.tensor([1e30, -1e30]))
        True
    """

    degree: int = 5
    num_polynomials: int = 2
    bound: float = 4.0
    coefficient_bound: float = 1.0
    _monomials: ClassVar[list[list[float]]]
    _nodes_and_weights: ClassVar[tuple[list[float], list[float]]]

    def __post_init__(self) -> None:
        _checks.check_count(self._name, "degree", self.degree)
        _checks.check_count(self._name, "num_polynomials", self.num_polynomials)
        _checks.check_positive(self._name, "bound", self.bound)
        _checks.check_positive(self._name, "coefficient_bound", self.coefficient_bound)
        if self.num_polynomials > self.degree + 1:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"num_polynomials of at most {self.degree + 1} for degree={self.degree}",
                got=f"num_polynomials={self.num_polynomials}",
                advice="Raise the degree: more squares add nothing.",
            )
        # Constants, not options: torch.compile reads them, but not what would compute them.
        object.__setattr__(self, "_monomials", _monomials(self.degree))
        object.__setattr__(self, "_nodes_and_weights", _quadrature(self.degree))

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Number of parameters per coordinate: the coefficients, and the shift."""
        return self.num_polynomials * (self.degree + 1) + 1

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self._map(widen(x), *self._polynomials(widen(params)))
        return y.to(x.dtype), ladj

    @override
    def _solve(self, y: Tensor, params: Tensor) -> Tensor:
        polynomials, shift = self._polynomials(widen(params))
        target = widen(y)
        end = torch.full_like(target, self.bound)
        edges, ladj = self._map(torch.stack([-end, end]), polynomials, shift)
        # Beyond an edge the map is linear, and both bounds become the root.
        below, above = (target - edges) * torch.exp(-ladj)
        low, high = below.clamp(max=0) - end, above.clamp(min=0) + end
        bracket = torch.where(above > 0, high, low), torch.where(below < 0, low, high)
        x = solve_increasing(
            lambda x: self._map(x, polynomials, shift), target, bracket=bracket, who=self._name
        )
        return x.to(y.dtype)

    def _polynomials(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients by monomials, of shape ``(*, K, degree + 1, n)``, and shifts."""
        raw, shift = params[..., :-1, :], params[..., -1, :]
        coefficients = soft_bound(raw, self.coefficient_bound)
        coefficients = coefficients.unflatten(-2, (self.num_polynomials, self.degree + 1))
        to_monomials = params.new_tensor(self._monomials).T
        return to_monomials @ coefficients + params.new_tensor(self._first())[..., None], shift

    @property
    def _share(self) -> float:
        return _SHARE if self.num_polynomials > 1 else 0.0

    def _first(self) -> list[list[float]]:
        """Return the coefficients that the polynomials have at the start."""
        others = (self._share / max(self.num_polynomials - 1, 1)) ** 0.5
        first = (1 - _LEAST_SLOPE - self._share) ** 0.5
        return [
            [(others if k else first) * (k == power) for power in range(self.degree + 1)]
            for k in range(self.num_polynomials)
        ]

    def _map(self, x: Tensor, polynomials: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights = self._nodes_and_weights
        t = (x / self.bound).clamp(-1, 1)
        # The last point is t itself, where only the slope is wanted.
        points = t[..., None, :] * x.new_tensor([*nodes, 1.0])[:, None]
        slopes = self._slopes(points, polynomials)
        inside = self.bound * t
        slope = slopes[..., -1, :]
        mean = x.new_tensor([*weights, 0.0]) @ slopes
        return inside * mean + (x - inside) * slope + shift, slope.log()

    def _slopes(self, t: Tensor, polynomials: Tensor) -> Tensor:
        """Return :math:`q(t)` at points of shape ``(*, s, n)``."""
        *lower, value = polynomials.unsqueeze(-2).unbind(-3)
        for coefficient in reversed(lower):
            value = value * t[..., None, :, :] + coefficient
        rest = torch.zeros_like(t)
        for _ in range(self.num_polynomials - 1):
            rest = (rest + 1) * t.square()
        share = self._share / max(self.num_polynomials - 1, 1)
        return value.square().sum(-3) + (_LEAST_SLOPE + self._share) - share * rest


class PolynomialAutoregressive(Autoregressive):
    r"""Map each coordinate by a polynomial of increasing values, given the coordinates before it.

    .. math:: y_i = f(x_i;\, p_i(x_{<i}, c)), \qquad
        \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    with the polynomial :math:`f` of :class:`SumOfSquares`. The inverse is numerical.

    Args:
        input_dim: Number of coordinates, ``D``.
        degree: Degree of the polynomials whose squares are summed.
        num_polynomials: Number of squares.
        bound: Beyond this the map of a coordinate is linear.
        coefficient_bound: Largest coefficient; approached smoothly.
        **options: Those of :class:`Autoregressive`.

    Raises:
        DomainError: A size, a bound or the activation is not possible.

    Reference:
        Jaini, Selby & Yu (2019), *Sum-of-squares polynomial flow*, section 4.

    Example:
        >>> import torch
        >>> transform = PolynomialAutoregressive(3, hidden_dims=(16,))
        >>> y = transform(torch.ones(10, 3))
        >>> torch.allclose(transform.inv(y), torch.ones(10, 3))
        True
    """

    def __init__(
        self,
        input_dim: int,
        *,
        degree: int = 5,
        num_polynomials: int = 2,
        bound: float = 4.0,
        coefficient_bound: float = 1.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        univariate = SumOfSquares(degree, num_polynomials, bound, coefficient_bound)
        super().__init__(univariate, input_dim, **options)
