"""Normal bases: the standard one, and one whose location and scale are trained."""

import torch
from torch import Tensor, nn

from pyro_flows.distributions.base import BaseDistribution
from pyro_flows.numerics import LOG_SQRT_TAU, widen


class StandardNormal(BaseDistribution):
    r"""The standard normal distribution of :math:`\mathbb{R}^D`.

    .. math:: \log p(x) = -\tfrac12 \|x\|^2 - \tfrac{D}{2} \log 2\pi

    Args:
        input_dim: Number of coordinates, ``D``.

    Raises:
        DomainError: ``input_dim`` is not a positive integer.

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    origin: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.register_buffer("origin", torch.zeros(input_dim), persistent=False)

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, **self._kind)

    def _log_density(self, value: Tensor) -> Tensor:
        return -0.5 * widen(value).square().sum(-1) - self.input_dim * LOG_SQRT_TAU

    def _score(self, value: Tensor) -> Tensor:
        return -value


class DiagonalNormal(BaseDistribution):
    r"""A normal distribution with a trained location and scale of each coordinate.

    .. math:: \log p(x) = -\sum_i \bigl(\tfrac12 z_i^2 + s_i + \tfrac12 \log 2\pi\bigr), \qquad
        z = e^{-s} \odot (x - m)

    The parameters :math:`m` (``loc``) and :math:`s` (``log_scale``) start at zero.

    Args:
        input_dim: Number of coordinates.

    Raises:
        DomainError: ``input_dim`` is not a positive integer.

    Example:
        >>> import torch
        >>> base = DiagonalNormal(2)
        >>> [name for name, _ in base.named_parameters()]
        ['loc', 'log_scale']
        >>> base.log_prob(torch.zeros(2)).item()
        -1.8379
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.loc = nn.Parameter(torch.zeros(input_dim))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))

    def _draw(self, shape: torch.Size) -> Tensor:
        return self.loc + self.log_scale.exp() * torch.randn(shape, **self._kind)

    def _log_density(self, value: Tensor) -> Tensor:
        log_scale = widen(self.log_scale)
        z = (widen(value) - widen(self.loc)) * torch.exp(-log_scale)
        return -(0.5 * z.square() + log_scale + LOG_SQRT_TAU).sum(-1)
