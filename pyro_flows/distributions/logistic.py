"""The logistic base, whose tails are exponential."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_flows.distributions.base import BaseDistribution
from pyro_flows.numerics import widen


class StandardLogistic(BaseDistribution):
    r"""Independent standard logistic coordinates.

    .. math:: \log p(x) = -\sum_i \bigl(\log(1 + e^{x_i}) + \log(1 + e^{-x_i})\bigr)

    Args:
        input_dim: Number of coordinates.

    Raises:
        DomainError: ``input_dim`` is not a positive integer.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 3.4.

    Example:
        >>> import torch
        >>> StandardLogistic(2).log_prob(torch.zeros(2)).item()
        -2.7725887298583984
    """

    origin: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.register_buffer("origin", torch.zeros(input_dim), persistent=False)

    def _draw(self, shape: torch.Size) -> Tensor:
        uniform = torch.rand(shape, **self._kind)
        # A uniform draw may be zero, whose logit is infinite.
        return uniform.logit(eps=torch.finfo(uniform.dtype).tiny)

    def _log_density(self, value: Tensor) -> Tensor:
        wide = widen(value)
        return (logsigmoid(wide) + logsigmoid(-wide)).sum(-1)

    def _score(self, value: Tensor) -> Tensor:
        return -torch.tanh(value / 2)
