"""The map between real coordinates and those of an interval."""

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.numerics import widen
from pyro_flows.transforms.base import FlowTransform


class Sigmoid(FlowTransform):
    r"""Map each coordinate into an interval that is a little wider than ``[low, high]``.

    .. math:: y = a + (b - a) \frac{\sigma(x) - \alpha}{1 - 2 \alpha}, \qquad
        \log |\det J| = \sum_i \log \frac{b - a}{1 - 2 \alpha}
        + \log \sigma(x_i) + \log \sigma(-x_i)

    The margin :math:`\alpha` keeps all of :math:`[a, b]` within reach of finite :math:`x`: data at
    the ends, such as black pixels, have a logit. What lies outside of the wider interval has a
    log-determinant of minus infinity, and so the density zero.

    Args:
        input_dim: Number of coordinates.
        low: :math:`a`.
        high: :math:`b > a`.
        margin: :math:`\alpha`, above 0 and below one half.

    Raises:
        DomainError: ``input_dim`` is not a positive integer, or a number is not possible.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, section 4.1.

    Example:
        >>> import torch
        >>> pixels = Sigmoid(3, high=256.0)
        >>> x = pixels.inv(torch.tensor([0.0, 128.0, 256.0]))
        >>> pixels(x).round().tolist()
        [0.0, 128.0, 256.0]
    """

    def __init__(
        self, input_dim: int, *, low: float = 0.0, high: float = 1.0, margin: float = 0.05
    ) -> None:
        super().__init__(input_dim)
        self.margin = _checks.check_positive(self._name, "margin", margin)
        if not self.margin < 0.5 or not math.isfinite(high - low) or not low < high:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="finite low < high, and a margin below 0.5",
                got=f"low={low!r}, high={high!r}, margin={margin!r}",
            )
        self.low, self.high = float(low), float(high)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The interval with its margins."""
        beyond = self._width * self.margin
        interval = constraints.interval(self.low - beyond, self.high + beyond)
        return constraints.independent(interval, 1)

    @property
    def _width(self) -> float:
        """The distance of the ends of the wider interval."""
        return (self.high - self.low) / (1 - 2 * self.margin)

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.low + self._width * (torch.sigmoid(x) - self.margin)
        wide = widen(x)
        slope = logsigmoid(wide) + logsigmoid(-wide) + math.log(self._width)
        return y, slope.sum(-1)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        share = (y - self.low) / self._width + self.margin
        outside = (share <= 0) | (share >= 1)
        inside = torch.where(outside, 0.5, share)
        x = torch.logit(inside)
        wide = widen(inside)
        slope = -(wide.log() + torch.log1p(-wide) + math.log(self._width))
        return x, torch.where(outside, -torch.inf, slope).sum(-1)
