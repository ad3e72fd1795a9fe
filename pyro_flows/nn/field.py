"""Fields: the velocities of continuous flows."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows import _checks
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.divergence import TraceOfLayers, velocity_and_estimate, velocity_and_trace
from pyro_flows.numerics import expand_batch

# From t and z to the velocity and the trace of its Jacobian.
Dynamics = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Field(nn.Module):
    r"""Base of every field: a velocity :math:`v(z, t, c)` at each point, time and context.

    A subclass writes ``forward(t, z, context)``, which maps each row of ``z`` by itself. It may
    also write :meth:`dynamics`, where it knows the trace of its Jacobian, and then sets
    ``cheap_trace``.

    Attributes:
        input_dim: Number of coordinates, on the last axis.
        context_dim: Number of entries of the context; zero for none.
        cheap_trace: Whether the exact trace costs about as much as the velocity, for any number
            of coordinates.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not a positive integer.

    Example:
        >>> import torch
        >>> class Decay(Field):
        ...     def forward(self, t, z, context=None):
        ...         return -z
        >>> velocity, trace = Decay(3).dynamics()(torch.tensor(0.0), torch.ones(5, 3))
        >>> trace
        tensor([-3., -3., -3., -3., -3.])
    """

    cheap_trace: bool = False

    def __init__(self, input_dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim)
        self.context_dim = _checks.check_count(who, "context_dim", context_dim, least=0)

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, of shape ``(*, input_dim)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward.")

    def dynamics(self, context: Tensor | None = None, noise: Tensor | None = None) -> Dynamics:
        """Return what maps a time and points to the velocity and the trace of its Jacobian.

        The parameters are those at the time of this call, also where it runs later: an adjoint
        pass comes after ``torch.func.functional_call`` has put the module's own ones back.

        Args:
            context: Of shape ``(*, context_dim)``.
            noise: Random directions, of the shape of the points, to estimate the trace from; it
                is exact, if not given.
        """
        held = _Held(self)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            def velocity(z: Tensor) -> Tensor:
                return cast(Tensor, self(t, z, context))

            with held.in_place():
                if noise is None:
                    return velocity_and_trace(velocity, z)
                return velocity_and_estimate(velocity, z, noise)

        return run

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"input_dim={self.input_dim}{context}"


class _Held:
    """The parameters that a module has now, to be put in place later."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (owner._parameters, name, parameter)
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module compute with them."""
        others = [(owner, name, owner[name]) for owner, name, held in self._owners]
        try:
            for owner, name, held in self._owners:
                owner[name] = held
            yield
        finally:
            for owner, name, other in others:
                owner[name] = other


class TimeNet(Field):
    r"""A fully connected network that also sees the time.

    .. math:: v = \mathrm{net}(z, \phi(t), c), \qquad
        \phi(t) = (t, \sin \pi t, \cos \pi t, \ldots, \sin K \pi t, \cos K \pi t)

    The last layer starts at zero: nothing moves. With tanh, velocities are bounded and smooth.
    The exact trace of the Jacobian costs one layer more than the velocity, for up to two hidden
    layers.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers.
        activation: Name of the activation; one with a continuous slope, for a solver to have the
            order that it claims.
        num_frequencies: Number of sines, and of cosines, of the time, :math:`K`.

    Raises:
        DomainError: A size is not possible, or the activation is not known.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), *FFJORD: Free-form continuous
        dynamics for scalable reversible generative models*, section 3.

    Example:
        >>> import torch
        >>> field = TimeNet(2, hidden_dims=(16,), context_dim=5)
        >>> field(torch.tensor(0.5), torch.randn(100, 2), torch.randn(5)).shape
        torch.Size([100, 2])
    """

    frequencies: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        num_frequencies: int = 2,
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        count = _checks.check_count(
            type(self).__name__, "num_frequencies", num_frequencies, least=0
        )
        self.register_buffer("frequencies", math.pi * torch.arange(1.0, count + 1))
        self._num_features = 1 + 2 * count
        self.net = DenseNet(
            input_dim,
            input_dim,
            hidden_dims=hidden_dims,
            context_dim=self._num_features + context_dim,
            activation=activation,
        )

    @property
    def cheap_trace(self) -> bool:  # type: ignore[override]
        """Whether there are at most two hidden layers."""
        return len(self.net.layers) <= 2

    def _features(self, t: Tensor) -> Tensor:
        angles = t[..., None] * self.frequencies
        return torch.cat([t[..., None], angles.sin(), angles.cos()], -1)

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, of shape ``(*, input_dim)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        features = self._features(t)
        if context is not None:
            batch = torch.broadcast_shapes(features.shape[:-1], context.shape[:-1])
            parts = (features, context)
            features = torch.cat([part.expand(*batch, -1) for part in parts], -1)
        return cast(Tensor, self.net(z, features))

    def dynamics(self, context: Tensor | None = None, noise: Tensor | None = None) -> Dynamics:
        """Return what maps a time and points to the velocity and the trace of its Jacobian.

        What does not depend on either is computed here, once.

        Args:
            context: Of shape ``(*, context_dim)``.
            noise: Random directions, of the shape of the points, to estimate the trace from; it
                is exact, if not given.
        """
        if noise is not None:
            return super().dynamics(context, noise)
        activation = ACTIVATIONS[self.net.activation]
        layers = [(layer.weight, layer.bias) for layer in cast("list[nn.Linear]", self.net.layers)]
        from_input = cast(nn.Linear, self.net.from_input).weight
        from_others = cast(nn.Linear, self.net.from_context).weight
        from_time, from_context = from_others.split([self._num_features, self.context_dim], -1)
        trace_of = TraceOfLayers([from_input, *(weight for weight, _ in layers)])
        shift: Tensor = self.net.bias
        if context is not None:
            shift = linear(context, from_context, shift)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            stage = linear(z, from_input) + (linear(self._features(t), from_time) + shift)
            slopes = []
            for weight, bias in layers:
                value, slope = activation.value_and_slope(stage)
                slopes.append(slope)
                stage = linear(value, weight, bias)
            return stage, expand_batch(trace_of(slopes), stage.shape[:-1])

        return run
