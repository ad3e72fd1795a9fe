"""Distributions whose tensors move with ``.to()`` and are trained and saved like any module's."""

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.numerics import linearise
from pyro_flows.transforms.base import any_float, parameters_held

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
        input_dim = _checks.check_count(self._name, "input_dim", input_dim)
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
        new._batch_shape = _checks.check_expansion(self._name, self.batch_shape, batch_shape)
        return new

    @property
    def _name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __hash__(self) -> int:
        return object.__hash__(self)


class BaseDistribution(DistributionModule):
    """What the bases of flows share: a family without batch axes of its own.

    A subclass writes two methods:

    - ``_draw(shape)`` returns a reparameterised sample of that shape,
    - ``_log_density(value)`` returns the log-density of points that are already checked.

    Args:
        input_dim: Number of coordinates.

    Raises:
        DomainError: ``input_dim`` is not a positive integer.

    Example:
        A base of one's own:

        >>> import torch
        >>> class Logistic(BaseDistribution):
        ...     def _draw(self, shape):
        ...         return torch.rand(shape).logit()
        ...
        ...     def _log_density(self, value):
        ...         return -(4 * torch.cosh(value / 2) ** 2).log().sum(-1)
        >>> Logistic(2).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def _draw(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError(f"{self._name} does not define _draw.")

    def _log_density(self, value: Tensor) -> Tensor:
        raise NotImplementedError(f"{self._name} does not define _log_density.")

    def _score(self, value: Tensor) -> Tensor:
        return _score_by_autodiff(self, value)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw a sample of shape ``sample_shape + batch_shape + (input_dim,)``."""
        return self._draw(self.shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, of shape ``(*, input_dim)``.

        Args:
            value: Its batch axes broadcast with the batch shape.

        Raises:
            DomainError: ``value`` is not a real floating-point tensor of the parameters' dtype.
            ShapeError: A shape is wrong.
        """
        _checks.check_points(self._name, "value", value, self.input_dim)
        own = next(iter(self._parameters.values()), None)
        _checks.check_dtypes(self._name, value=value, parameters=own)
        _checks.check_broadcast(self._name, value=value.shape[:-1], distribution=self.batch_shape)
        log_prob = self._log_density(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @property
    def _kind(self) -> dict[str, Any]:
        """The dtype and the device of the parameters and buffers."""
        own = any_float(self)
        return {} if own is None else {"dtype": own.dtype, "device": own.device}


def score_of(base: TorchDistribution, value: Tensor) -> Tensor:
    """Return the gradient of a base's log-density at ``value``, its parameters held."""
    if isinstance(base, BaseDistribution):
        return base._score(value)
    return _score_by_autodiff(base, value)


def _score_by_autodiff(base: TorchDistribution, value: Tensor) -> Tensor:
    with parameters_held(base) if isinstance(base, nn.Module) else nullcontext():
        (log_prob,), pull = linearise(lambda value: (base.log_prob(value),), value)
    return pull(torch.ones_like(log_prob))[0]


def per_coordinate(who: str, input_dim: int, **values: float | Tensor) -> list[Tensor]:
    """Return numbers, or vectors of one per coordinate, as vectors; numbers follow the vectors."""
    vectors = [value for value in values.values() if isinstance(value, Tensor)]
    like = vectors[0] if vectors else torch.zeros(())
    full = {
        name: like.new_full((input_dim,), value) if isinstance(value, (int, float)) else value
        for name, value in values.items()
    }
    checked = {
        name: _checks.check_buffer(who, name, value, (input_dim,)) for name, value in full.items()
    }
    _checks.check_dtypes(who, **checked)
    return list(checked.values())
