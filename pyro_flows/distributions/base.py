"""Distributions whose tensors move with ``.to()`` and are trained and saved like any module's."""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.numerics import LOG_SQRT_TAU, widen

Shape = torch.Size | list[int] | tuple[int, ...]


class DistributionModule(TorchDistribution, nn.Module):
    """A Pyro distribution over vectors that is a ``torch.nn.Module`` as well.

    A call draws a sample, as for every Pyro distribution.

    Args:
        input_dim: Number of coordinates.

    Raises:
        DomainError: ``input_dim`` is not a positive integer.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, input_dim: int) -> None:
        input_dim = _checks.check_count(type(self).__name__, "input_dim", input_dim)
        # torch's Distribution hands on to nn.Module.__init__; its checks are ours to make.
        super().__init__(torch.Size(), torch.Size((input_dim,)), validate_args=False)

    @property
    def input_dim(self) -> int:
        """Number of coordinates."""
        return self.event_shape[0]

    def expand(
        self, batch_shape: Shape, _instance: "DistributionModule | None" = None
    ) -> "DistributionModule":
        """Return a distribution of the given batch shape that shares the parameters of this one.

        Args:
            batch_shape: One that the present batch shape expands to.

        Raises:
            ShapeError: The present batch shape does not expand to it.
        """
        new: DistributionModule = self.__new__(type(self))
        # Parameters and submodules are shared; only what belongs to this one object is copied.
        new.__dict__.update(self.__dict__)
        new._batch_shape = _checks.check_expansion(
            type(self).__name__, self.batch_shape, batch_shape
        )
        return new

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __hash__(self) -> int:
        return object.__hash__(self)


class StandardNormal(DistributionModule):
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

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw a sample of shape ``sample_shape + batch_shape + (input_dim,)``."""
        shape = self.shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.origin.dtype, device=self.origin.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, of shape ``(*, input_dim)``."""
        _checks.check_points(type(self).__name__, "value", value, self.input_dim)
        log_prob = -0.5 * widen(value).square().sum(-1) - self.input_dim * LOG_SQRT_TAU
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
