"""Neural autoregressive flows: each coordinate is mapped by a small monotone network."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack, override

from pyro_flows import _checks
from pyro_flows.numerics import soft_bound, widen
from pyro_flows.roots import solve_increasing
from pyro_flows.transforms.autoregressive import Autoregressive, AutoregressiveOptions
from pyro_flows.transforms.univariate import Univariate

_SPREAD = 3.0  # The units' shifts at the start lie between plus and minus this.
_LEAST_SLOPE = 1e-2
_LOG_WEIGHT_BOUND = 10.0  # More would only flatten the map between its units.
_FAR = 40.0  # From where on the sigmoid's other side is zero, to the rounding of float64.


class _Units(NamedTuple):
    """The weights of the units, ``(*, U, n)``, and of the remainder, ``(*, n)``."""

    scale: Tensor
    shift: Tensor
    log_weight: Tensor
    rest: Tensor
    first_shift: Tensor  # Of shape (U, 1).


@dataclass(frozen=True)
class DeepSigmoid(Univariate):
    r"""A mixture of sigmoids, seen through the logit: a monotone network of one hidden layer.

    .. math:: y = (1 - \epsilon) \bigl( h(x) + \kappa \, (x - h_0(x)) \bigr) + \epsilon x, \qquad
        h(x) = \mathrm{logit} \sum_{j=1}^{U} w_j \, \sigma(a_j x + b_j)

    with positive weights :math:`w` that sum to one and positive scales :math:`a`. This :math:`h`
    is the paper's map. Alone it would start with units that are all the same, or else away from
    the identity. So :math:`h_0`, what :math:`h` is with all parameters at zero, has its shifts
    spread over :math:`\pm 3`, and the remainder :math:`x - h_0` is added with a scale
    :math:`\kappa > 0` that is learnt. The remainder is bounded and increases: by Jensen's
    inequality, the slope of :math:`h_0` lies between zero and one. Last, :math:`\epsilon = 0.01`
    keeps every slope above it.

    The map covers the whole real line, with linear tails: the mixture is computed from logarithms
    of both its sides, never from probabilities that round to zero or one.

    Args:
        num_units: Number of units, ``U``.
        log_scale_bound: Largest :math:`|\log a_j|` and :math:`|\log \kappa|`; approached smoothly.

    Raises:
        DomainError: An argument is not positive.

    Reference:
        Huang, Krueger, Lacoste & Courville (2018), *Neural autoregressive flows*, section 3.1.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Coupling, DeepSigmoid
        >>> transform = Coupling(DeepSigmoid(num_units=4), 2)
        >>> y = transform(torch.tensor([1e30, -1e30]))
        >>> y.allclose(torch.tensor([1e30, -1e30]))
        True
    """

    num_units: int = 8
    log_scale_bound: float = 3.0

    def __post_init__(self) -> None:
        _checks.check_count(self._name, "num_units", self.num_units)
        _checks.check_positive(self._name, "log_scale_bound", self.log_scale_bound)

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Number of parameters per coordinate: three of each unit, and the remainder's."""
        return 3 * self.num_units + 1

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = _map(widen(x), self._units(widen(params)))
        return y.to(x.dtype), ladj

    @override
    def _solve(self, y: Tensor, params: Tensor) -> Tensor:
        units, target = self._units(widen(params)), widen(y)
        bracket = self._bracket(target, units)
        x = solve_increasing(lambda x: _map(x, units), target, bracket=bracket, who=self._name)
        return x.to(y.dtype)

    def _units(self, params: Tensor) -> _Units:
        scale, shift, weight, rest = params.split([self.num_units] * 3 + [1], -2)
        first_shift = params.new_tensor(self._first_shifts())[:, None]
        return _Units(
            soft_bound(scale, self.log_scale_bound).exp(),
            shift + first_shift,
            torch.log_softmax(soft_bound(weight, _LOG_WEIGHT_BOUND), -2),
            soft_bound(rest, self.log_scale_bound).exp()[..., 0, :],
            first_shift,
        )

    def _first_shifts(self) -> list[float]:
        last = max(self.num_units - 1, 1)
        return [_SPREAD * (2 * j - self.num_units + 1) / last for j in range(self.num_units)]

    def _bracket(self, y: Tensor, units: _Units) -> tuple[Tensor, Tensor]:
        """Return bounds of the root: the mixture lies between its units, and h_0 near x."""
        gap = units.first_shift.logsumexp(0) - math.log(self.num_units)
        share = 1 - _LEAST_SLOPE
        reach, slope = share * gap * units.rest, share * units.scale + _LEAST_SLOPE
        low, high = (
            (end[..., None, :] - share * units.shift) / slope for end in (y - reach, y + reach)
        )
        return low.amin(-2), high.amax(-2)


def _map(x: Tensor, units: _Units) -> tuple[Tensor, Tensor]:
    value, slope = _mixture(x, units)
    rest, rest_slope = _remainder(x, units.first_shift)
    value, slope = value + units.rest * rest, slope + units.rest * rest_slope
    share = 1 - _LEAST_SLOPE
    return share * value + _LEAST_SLOPE * x, torch.log(share * slope + _LEAST_SLOPE)


def _mixture(x: Tensor, units: _Units) -> tuple[Tensor, Tensor]:
    """Return the logit of the mixture, and its slope as a sum of positive terms."""
    z = units.scale * x[..., None, :] + units.shift
    log_below = logsigmoid(z)
    log_above = log_below - z
    log_left, left = _normalise(units.log_weight + log_below)
    log_right, right = _normalise(units.log_weight + log_above)
    slopes = units.scale * (left * torch.sigmoid(-z) + right * torch.sigmoid(z))
    return log_left - log_right, slopes.sum(-2)


def _normalise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of a sum of exponentials, and their shares of it."""
    # Shares that add up to one, also where huge logits round and terms come out equal.
    top = logits.amax(-2, keepdim=True).detach()
    terms = torch.exp(logits - top)
    total = terms.sum(-2, keepdim=True)
    return (top + total.log())[..., 0, :], terms / total


def _remainder(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x - h_0(x)`` and its slope."""
    # It is constant far away, to rounding.
    x = x.clamp(-_FAR, _FAR)
    z = x[..., None, :] + shift
    below, above = torch.sigmoid(z), torch.sigmoid(-z)
    left, right = below.sum(-2), above.sum(-2)
    slope = len(shift) * (below * above).sum(-2) / (left * right)
    return x - torch.log(left / right), 1 - slope


class NeuralAutoregressive(Autoregressive):
    r"""Map each coordinate by a monotone network, given the coordinates before it.

    .. math:: y_i = f(x_i;\, p_i(x_{<i}, c)), \qquad
        \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    with the network :math:`f` of :class:`DeepSigmoid`. The inverse is numerical.

    Args:
        input_dim: Number of coordinates, ``D``.
        num_units: Number of units of each coordinate's network.
        log_scale_bound: Largest log-scale of a unit; approached smoothly.
        **options: Those of :class:`Autoregressive`.

    Raises:
        DomainError: A size, a bound or the activation is not possible.

    Reference:
        Huang, Krueger, Lacoste & Courville (2018), *Neural autoregressive flows*, section 3.

    Example:
        >>> import torch
        >>> transform = NeuralAutoregressive(3, hidden_dims=(16,))
        >>> y = transform(torch.ones(10, 3))
        >>> torch.allclose(transform.inv(y), torch.ones(10, 3))
        True
    """

    def __init__(
        self,
        input_dim: int,
        *,
        num_units: int = 8,
        log_scale_bound: float = 3.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        super().__init__(DeepSigmoid(num_units, log_scale_bound), input_dim, **options)
