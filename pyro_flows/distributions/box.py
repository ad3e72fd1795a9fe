"""The uniform base on a box, for transforms of bounded coordinates."""

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.distributions.base import BaseDistribution, per_coordinate
from pyro_flows.errors import DomainError
from pyro_flows.numerics import widen


class Box(BaseDistribution):
    r"""The uniform distribution on a box.

    .. math:: p(x) = \prod_i \frac{1}{b_i - a_i} \quad \text{for } a \le x \le b

    It is the base of transforms whose domain is that box, such as those of angles. Outside, the
    log-density is minus infinity.

    Args:
        input_dim: Number of coordinates.
        low: :math:`a`, a number or a tensor of shape ``(input_dim,)``.
        high: :math:`b > a`, likewise.

    Raises:
        DomainError: ``input_dim`` is not a positive integer, the bounds are not finite tensors of
            one dtype, or one of ``low`` is not below ``high``.
        ShapeError: A bound has the wrong shape.

    Example:
        >>> import torch
        >>> Box(2, low=-1.0, high=1.0).log_prob(torch.tensor([[0.5, 1.0], [0.5, 1.5]])).tolist()
        [-1.3862, -inf]
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, input_dim: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0
    ) -> None:
        super().__init__(input_dim)
        low, high = per_coordinate(self._name, self.input_dim, low=low, high=high)
        if not bool(((low < high) & (high - low).isfinite()).all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="low < high in every coordinate, a finite width apart",
                got=f"low={low.tolist()} and high={high.tolist()}",
            )
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The box, its faces included."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.lerp(self.low, self.high, torch.rand(shape, **self._kind))

    def _log_density(self, value: Tensor) -> Tensor:
        outside = (value < self.low) | (value > self.high)
        # A NaN is not outside; times zero, it stays one.
        inside = torch.where(outside, -torch.inf, 0 * widen(value))
        return inside.sum(-1) - widen(self.high - self.low).log().sum()
