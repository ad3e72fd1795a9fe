"""A field without curl: the gradient of a potential."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.timed import TimedField


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
        activation: Name of the activation: one with a continuous slope, since the field is made of
            that.
        num_frequencies: Number of sines, and of cosines, of the time.

    Raises:
        DomainError: A size is not possible, or the activation is not known.

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
        potential, pull = self.net.forward_and_pull(z, self._given(t, context))
        return pull(torch.ones_like(potential)).expand(*potential.shape[:-1], -1)
