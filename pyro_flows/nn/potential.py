"""A field without curl: the gradient of a potential."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.timed import TimedField

SMOOTH = ("tanh", "silu")


class PotentialNet(TimedField):
    r"""The gradient of a fully connected network's single output.

    .. math:: v(z, t, c) = \nabla_z \, \mathrm{net}(z, \phi(t), c)

    Its Jacobian is symmetric, and the trace of that the Laplacian. Optimal transport moves points
    with such fields (Brenier 1991). The last layer starts at zero: nothing moves. The exact trace
    costs as many Jacobian-vector products as there are coordinates.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers, at least one.
        activation: ``"tanh"`` or ``"silu"``: the field is made of its slope.
        num_frequencies: Number of sines, and of cosines, of the time.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Onken, Wu Fung, Li & Ruthotto (2021), *OT-Flow: Fast and accurate continuous normalizing
        flows via optimal transport*, section 3.

    Example:
        >>> import torch
        >>> field = PotentialNet(2, hidden_dims=(16,), context_dim=5)
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
        _checks.check_choice(type(self).__name__, "activation", activation, SMOOTH)
        self.net = DenseNet(
            input_dim,
            1,
            hidden_dims=hidden_dims,
            context_dim=self._num_features + context_dim,
            activation=activation,
        )
        if not self.net.layers:
            raise _checks.refusal(
                DomainError,
                type(self).__name__,
                expected="at least one hidden layer, for a gradient that varies",
                got=f"hidden_dims={tuple(hidden_dims)}",
            )
        # A constant has no gradient.
        self.net.layers[-1].register_parameter("bias", None)

    def potential(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the potential, of shape ``(*)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        potential: Tensor = self.net(z, self._given(t, context))
        return potential[..., 0]

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, of shape ``(*, input_dim)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        net, activation = self.net, ACTIVATIONS[self.net.activation]
        first, others = (cast(nn.Linear, each) for each in (net.from_input, net.from_context))
        stage = linear(z, first.weight, net.bias) + others(self._given(t, context))
        *hidden, last = cast("list[nn.Linear]", list(net.layers))
        slopes = []
        for layer in hidden:
            value, slope = activation.value_and_slope(stage)
            slopes.append(slope)
            stage = layer(value)
        received = last.weight[0] * activation.value_and_slope(stage)[1]
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            received = (received @ layer.weight) * slope
        return received @ first.weight
