"""A fully connected conditioner."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows import _checks
from pyro_flows.nn.activations import check_activation
from pyro_flows.nn.stages import received, stages_from


class DenseNet(nn.Module):
    r"""Map some coordinates and a context to parameters, by a fully connected network.

    .. math:: h_1 = a(W_x x + W_c c + b_1), \quad h_l = a(W_l h_{l-1} + b_l), \quad p = W h_L + b

    The last layer starts at zero, so that a transform built on the network starts at the identity.
    With neither coordinates nor context, the network is a free vector of parameters.

    Args:
        input_dim: Number of coordinates; zero is allowed.
        output_dim: Number of parameters.
        hidden_dims: Widths of the hidden layers.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the activation.

    Raises:
        DomainError: A size is not a positive integer, or the activation is not known.

    Example:
        >>> import torch
        >>> net = DenseNet(2, 3, hidden_dims=(16,), context_dim=5)
        >>> net(torch.randn(100, 4, 2), torch.randn(4, 5)).shape
        torch.Size([100, 4, 3])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim, least=0)
        self.output_dim = _checks.check_count(who, "output_dim", output_dim)
        self.context_dim = _checks.check_count(who, "context_dim", context_dim, least=0)
        widths = _checks.check_counts(who, "hidden_dims", hidden_dims)
        self.activation = check_activation(who, activation)
        if not (self.input_dim or self.context_dim):
            widths = ()
        sizes = (*widths, self.output_dim)
        self.from_input = nn.Linear(input_dim, sizes[0], bias=False) if input_dim else None
        self.from_context = nn.Linear(context_dim, sizes[0], bias=False) if context_dim else None
        self.bias = nn.Parameter(torch.zeros(sizes[0]))
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        last = [self.layers[-1]] if self.layers else [self.from_input, self.from_context]
        for layer in last:
            if layer is not None:
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the parameters, of shape ``(*, output_dim)``.

        Args:
            x: Coordinates, of shape ``(*, input_dim)``; ignored where ``input_dim`` is zero.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.
        """
        return self.forward_and_pull(x, context)[0]

    def forward_and_pull(
        self, x: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the parameters, and what maps a cotangent of theirs to one of the coordinates.

        It refers to the weights as they are, and to tensors of the graph.

        Args:
            x: As for :meth:`forward`.
            context: As for :meth:`forward`.
        """
        first: Tensor = self.bias
        if self.from_input is not None:
            first = linear(cast(Tensor, x), self.from_input.weight, first)
        if self.from_context is not None:
            first = first + self.from_context(context)
        layers = cast("list[nn.Linear]", list(self.layers))
        weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        *hidden, params = stages_from(first, weights, self.activation)

        def pull(cotangent: Tensor) -> Tensor:
            matrices = [cast(nn.Linear, self.from_input).weight, *weights[0::2]]
            return received(cotangent, hidden, matrices, self.activation)[0]

        return params, pull
