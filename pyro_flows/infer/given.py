"""A distribution that says what its value is, and nothing on how likely that is."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Given(TorchDistribution):
    """A value that is known, with a log-density of zero wherever it is asked for.

    Args:
        value: The value, of shape ``batch_shape + event_shape``.
        event_dim: Number of axes of an event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as torch has it
    # It claims not to be a function of noise: a class may well be the same in several draws.
    has_rsample = False

    def __init__(self, value: Tensor, event_dim: int = 0) -> None:
        self._value = value
        batch_dim = value.dim() - event_dim
        super().__init__(value.shape[:batch_dim], value.shape[batch_dim:], validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The constraint that anything fulfils."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Given":
        """Return the same value for a larger batch.

        Args:
            batch_shape: The shape of the batch.
            _instance: Not used.
        """
        value = self._value.expand(torch.Size(batch_shape) + self.event_shape)
        return Given(value, self.event_dim)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return the value.

        Args:
            sample_shape: Number of repeats.
        """
        return self._value.expand(torch.Size(sample_shape) + self._value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros, one for each entry of the batch.

        Args:
            value: Any value.
        """
        return torch.zeros(value.shape[: value.dim() - self.event_dim], device=value.device)
