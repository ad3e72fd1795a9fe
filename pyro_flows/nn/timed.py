"""Fields that see the time by sines and cosines."""

import math

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.nn.field import Field


class TimedField(Field):
    r"""Base of fields that see the time as a few features, beside the context.

    .. math:: \phi(t) = (t, \sin \pi t, \cos \pi t, \ldots, \sin K \pi t, \cos K \pi t)

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.
        num_frequencies: Number of sines, and of cosines, of the time, :math:`K`.

    Raises:
        DomainError: A size is not possible.
    """

    frequencies: Tensor

    def __init__(self, input_dim: int, *, context_dim: int, num_frequencies: int) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        count = _checks.check_count(
            type(self).__name__, "num_frequencies", num_frequencies, least=0
        )
        self.register_buffer("frequencies", math.pi * torch.arange(1.0, count + 1))
        self._num_features = 1 + 2 * count

    def _features(self, t: Tensor) -> Tensor:
        angles = t[..., None] * self.frequencies
        return torch.cat([t[..., None], angles.sin(), angles.cos()], -1)

    def _given(self, t: Tensor, context: Tensor | None) -> Tensor:
        """Return the features of the time and the context, side by side."""
        features = self._features(t)
        if context is None:
            return features
        batch = torch.broadcast_shapes(features.shape[:-1], context.shape[:-1])
        return torch.cat([part.expand(*batch, -1) for part in (features, context)], -1)
