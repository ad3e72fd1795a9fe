"""Fields whose exact trace costs a layer: fully connected networks, plain and gated."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.divergence import TraceOfLayers, tangents
from pyro_flows.nn.field import Dynamics
from pyro_flows.nn.timed import TimedField
from pyro_flows.numerics import expand_batch

# From t and z to the velocity, and the slopes of each hidden layer.
Layers = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]


class LayeredField(TimedField):
    """Base of fields that are fully connected layers with element-wise functions between them.

    A subclass holds a :class:`DenseNet` as ``net`` and writes ``_layers(context)``.
    """

    net: DenseNet

    def _layers(self, context: Tensor | None) -> tuple[list[Tensor], Layers]:
        """Return the matrix of each layer, and what maps a time and points to the velocity.

        And to the slopes of the hidden layers. What depends on neither is computed here, once.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define _layers.")

    @property
    def cheap_trace(self) -> bool:  # type: ignore[override]
        """Whether there are at most two hidden layers."""
        return len(self.net.layers) <= 2

    def _matrices(self) -> list[Tensor]:
        first = cast(nn.Linear, self.net.from_input).weight
        return [first, *(layer.weight for layer in cast("list[nn.Linear]", self.net.layers))]

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, of shape ``(*, input_dim)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        return self._layers(context)[1](t, z)[0]

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
        matrices, layers = self._layers(context)
        trace_of = TraceOfLayers(matrices)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            velocity, slopes = layers(t, z)
            return velocity, expand_batch(trace_of(slopes), velocity.shape[:-1])

        return run

    def dynamics_and_norm(
        self,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        exact_trace: bool = True,
    ) -> Dynamics:
        """Return what also returns the squared Frobenius norm of the Jacobian.

        Args:
            context: Of shape ``(*, context_dim)``.
            noise: Random directions, of the shape of the points, to estimate the norm from; it is
                exact, if not given.
            exact_trace: Whether the trace is exact where the norm is estimated.
        """
        matrices, layers = self._layers(context)
        trace_of = TraceOfLayers(matrices)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            velocity, slopes = layers(t, z)
            rows = tangents(matrices, slopes, noise)
            if noise is None:
                norm, trace = rows.square().sum((-1, -2)), trace_of(slopes)
            else:
                norm = rows.square().sum(-1)
                trace = trace_of(slopes) if exact_trace else (rows * noise).sum(-1)
            batch = velocity.shape[:-1]
            return velocity, expand_batch(trace, batch), expand_batch(norm, batch)

        return run


class TimeNet(LayeredField):
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

    def __init__(
        self,
        input_dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        num_frequencies: int = 2,
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim, num_frequencies=num_frequencies)
        self.net = DenseNet(
            input_dim,
            input_dim,
            hidden_dims=hidden_dims,
            context_dim=self._num_features + context_dim,
            activation=activation,
        )

    def _layers(self, context: Tensor | None) -> tuple[list[Tensor], Layers]:
        activation = ACTIVATIONS[self.net.activation]
        layers = [(layer.weight, layer.bias) for layer in cast("list[nn.Linear]", self.net.layers)]
        matrices = self._matrices()
        from_others = cast(nn.Linear, self.net.from_context).weight
        from_time, from_context = from_others.split([self._num_features, self.context_dim], -1)
        shift: Tensor = self.net.bias
        if context is not None:
            shift = linear(context, from_context, shift)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
            stage = linear(z, matrices[0]) + (linear(self._features(t), from_time) + shift)
            slopes = []
            for weight, bias in layers:
                value, slope = activation.value_and_slope(stage)
                slopes.append(slope)
                stage = linear(value, weight, bias)
            return stage, slopes

        return matrices, run


class GatedNet(LayeredField):
    r"""A fully connected network whose hidden layers are gated and shifted by time and context.

    .. math:: h_l = a\bigl((W_l h_{l-1} + b_l) \odot \sigma(g_l(t, c)) + s_l(t, c)\bigr),
        \qquad v = W h_L + b

    with :math:`h_0 = z` and affine maps :math:`g_l`, :math:`s_l` of the features of the time and
    of the context. The last layer, which is plain, starts at zero: nothing moves. The exact trace
    costs one layer more than the velocity, for up to two hidden layers.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers, at least one.
        activation: Name of the activation, as for :class:`TimeNet`.
        num_frequencies: Number of sines, and of cosines, of the time.

    Raises:
        DomainError: A size is not possible, or the activation is not known.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), *FFJORD: Free-form continuous
        dynamics for scalable reversible generative models*, appendix B.1, whose last layer is
        gated as well.

    Example:
        >>> import torch
        >>> field = GatedNet(2, hidden_dims=(16,), context_dim=5)
        >>> field(torch.tensor(0.5), torch.randn(100, 2), torch.randn(5)).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        input_dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        num_frequencies: int = 2,
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim, num_frequencies=num_frequencies)
        self.net = DenseNet(input_dim, input_dim, hidden_dims=hidden_dims, activation=activation)
        self._widths = [layer.in_features for layer in cast("list[nn.Linear]", self.net.layers)]
        if not self._widths:
            raise _checks.refusal(
                DomainError,
                type(self).__name__,
                expected="at least one hidden layer, to be gated",
                got=f"hidden_dims={tuple(hidden_dims)}",
            )
        self.gates = nn.Linear(self._num_features + context_dim, 2 * sum(self._widths))

    def _layers(self, context: Tensor | None) -> tuple[list[Tensor], Layers]:
        activation, matrices = ACTIVATIONS[self.net.activation], self._matrices()
        layers = cast("list[nn.Linear]", self.net.layers)
        biases = [self.net.bias, *(layer.bias for layer in layers)]
        from_time, from_context = self.gates.weight.split(
            [self._num_features, self.context_dim], -1
        )
        offset: Tensor = self.gates.bias
        if context is not None:
            offset = linear(context, from_context, offset)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
            gates, shifts = (linear(self._features(t), from_time) + offset).chunk(2, -1)
            of_layers = zip(
                gates.sigmoid().split(self._widths, -1),
                shifts.split(self._widths, -1),
                matrices,
                biases,
                strict=False,
            )
            stage, slopes = z, []
            for gate, shift, matrix, bias in of_layers:
                pre = torch.addcmul(shift, linear(stage, matrix, bias), gate)
                stage, slope = activation.value_and_slope(pre)
                slopes.append(slope * gate)
            return linear(stage, matrices[-1], biases[-1]), slopes

        return matrices, run
