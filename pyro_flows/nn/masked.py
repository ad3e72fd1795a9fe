r"""A masked (autoregressive) conditioner that is cheap in both directions.

Coordinate :math:`i` counts from zero. A hidden unit of degree :math:`k` sees the coordinates
:math:`\le k`, and the parameters of coordinate :math:`j` see the units of degree :math:`< j` (Germain,
Gregor, Murray & Larochelle 2015). Hidden units stand in the order of their degrees, so what becomes
known together with coordinate :math:`i` is one block of rows. Walking over the blocks in order, the
inverse uses every weight once: it costs about one forward pass instead of one for each coordinate.
The transposed Jacobian is solved by the same walk, backwards.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import ACTIVATIONS, check_activation
from pyro_flows.nn.opaque import implicit_zero, opaque

ElementInverse = Callable[[Tensor, Tensor], Tensor]


class MaskedLinear(nn.Module):
    """A linear layer whose forbidden weights are masked out.

    Args:
        mask: Of shape ``(output_dim, input_dim)``; true where a weight may act.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(torch.empty(mask.shape))
        self.bias = nn.Parameter(torch.zeros(mask.shape[0]))
        # Each row is scaled by the number of inputs that it really has.
        fan_in = mask.sum(-1, keepdim=True).clamp(min=1)
        nn.init.uniform_(self.weight, -1.0, 1.0)
        with torch.no_grad():
            self.weight.mul_(fan_in.rsqrt())

    def masked_weight(self) -> Tensor:
        """Return the weights with the forbidden ones at zero."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, input_dim)`` to ``(*, output_dim)``."""
        return nn.functional.linear(x, self.masked_weight(), self.bias)


class MaskedNet(nn.Module):
    """Map coordinates to parameters, those of each coordinate from the coordinates before it only.

    The last layer starts at zero, so that a transform built on the network starts at the identity.

    Args:
        input_dim: Number of coordinates, ``D``.
        num_params: Number of parameters per coordinate, ``K``.
        hidden_dims: Widths of the hidden layers, each at least ``D - 1`` (``D`` with a context).
        context_dim: Number of entries of the context, which every parameter sees; zero for none.
        activation: Name of the activation.

    Raises:
        DomainError: A size is not a positive integer, a layer is too narrow to hold every degree, or
            the activation is not known.

    Reference:
        Germain, Gregor, Murray & Larochelle (2015), *MADE: Masked autoencoder for distribution
        estimation*, section 4.

    Example:
        >>> import torch
        >>> net = MaskedNet(3, 2, hidden_dims=(16,))
        >>> net(torch.randn(100, 3)).shape
        torch.Size([100, 3, 2])
    """

    def __init__(
        self,
        input_dim: int,
        num_params: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim)
        self.num_params = _checks.check_count(who, "num_params", num_params)
        self.context_dim = _checks.check_count(who, "context_dim", context_dim, least=0)
        self.activation = check_activation(who, activation)
        degrees = self._hidden_degrees(_checks.check_counts(who, "hidden_dims", hidden_dims))
        inputs = torch.arange(input_dim)
        outputs = inputs.repeat_interleave(num_params) - 1
        levels = [inputs, *degrees, outputs]
        self.layers = nn.ModuleList(
            MaskedLinear(above[:, None] >= below) for below, above in pairwise(levels)
        )
        width = self.layers[0].mask.shape[0]
        self.from_context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        # Units that depend on the coordinates up to i alone, for i = -1 (the context alone), 0, 1, ...
        self._ends = [[int((d <= i).sum()) for i in range(-1, input_dim)] for d in degrees]
        self._start_at_zero()

    def _hidden_degrees(self, widths: Sequence[int]) -> list[Tensor]:
        lowest = -1 if self.context_dim else 0
        levels = self.input_dim - 1 - lowest
        if levels == 0:
            return []
        if min(widths, default=levels) < levels:
            raise _checks.refusal(
                DomainError,
                type(self).__name__,
                expected=f"hidden_dims of at least {levels} for input_dim={self.input_dim}",
                got=f"hidden_dims={tuple(widths)}",
                advice="Widen the narrow layers, or some coordinates have no unit that sees them.",
            )
        return [lowest + torch.arange(width) * levels // width for width in widths]

    def _start_at_zero(self) -> None:
        nn.init.zeros_(self.layers[-1].weight)
        if len(self.layers) == 1 and self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters, of shape ``(*, input_dim, num_params)``.

        Args:
            x: Coordinates, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.
        """
        return self._shape_params(self._pre_activations(x, context)[-1])

    def _shape_params(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.input_dim, self.num_params))

    def _pre_activations(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        activate = ACTIVATIONS[self.activation].function
        first, *later = self.layers
        h = first(x)
        if self.from_context is not None:
            h = h + self.from_context(context)
        stages = [h]
        for layer in later:
            stages.append(layer(activate(stages[-1])))
        return stages

    def _weights(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in (layer.masked_weight(), layer.bias)]

    def solve(self, y: Tensor, context: Tensor | None, element_inverse: ElementInverse) -> Tensor:
        r"""Return the ``x`` at which every coordinate's map, given the ones before, meets ``y``.

        Coordinate by coordinate, :math:`x_i = f^{-1}(y_i;\, p_i(x_{<i}, c))`. The result carries no
        gradient.

        Args:
            y: Targets, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            element_inverse: Maps ``y_i`` of shape ``(N,)`` and ``p_i`` of shape ``(K, N)`` to ``x_i``.
        """

        def walk(y: Tensor, shift: Tensor, *weights: Tensor) -> Tensor:
            return self._walk(y, shift, weights, element_inverse)

        shift = y.new_zeros(1) if self.from_context is None else self.from_context(context)
        batch = torch.broadcast_shapes(y.shape[:-1], shift.shape[:-1])
        return opaque(
            walk,
            [y.expand(*batch, -1), shift.expand(*batch, -1)],
            self._weights(),
        )

    def _walk(
        self, y: Tensor, shift: Tensor, weights: Sequence[Tensor], element_inverse: ElementInverse
    ) -> Tensor:
        activate = ACTIVATIONS[self.activation].function
        batch, num_params = y.shape[:-1], self.num_params
        y = y.reshape(-1, self.input_dim).T.contiguous()
        shift = shift.reshape(y.shape[1], -1).T
        matrices, biases = weights[0::2], [bias[:, None] for bias in weights[1::2]]
        first = biases[0] + shift
        x = torch.empty_like(y)
        hidden = [y.new_empty(ends[-1], y.shape[1]) for ends in self._ends]
        stages = [x, *hidden]

        def affine(layer: int, start: int, stop: int, known: int) -> Tensor:
            bias = (first if layer == 0 else biases[layer])[start:stop]
            if known == 0:
                return bias.expand(stop - start, y.shape[1])
            return torch.addmm(bias, matrices[layer][start:stop, :known], stages[layer][:known])

        for i in range(-1, self.input_dim):
            if i >= 0:
                known = self._ends[-1][i] if hidden else i
                params = affine(len(hidden), i * num_params, (i + 1) * num_params, known)
                x[i] = element_inverse(y[i], params)
            known = i + 1
            for layer, ends in enumerate(self._ends):
                start, stop = (ends[i] if i >= 0 else 0), ends[i + 1]
                if stop > start:
                    hidden[layer][start:stop] = activate(affine(layer, start, stop, known))
                known = stop
        return x.T.reshape(*batch, self.input_dim)

    def implicit_zero(
        self, residual: Tensor, x: Tensor, context: Tensor | None, slope: Tensor, pull: Tensor
    ) -> Tensor:
        r"""Return the zero that gives a solution ``x`` of :meth:`solve` its gradient.

        With :math:`y_j = f(x_j;\, p_j(x_{<j}))`, the Jacobian is :math:`J_{ji} = f'_j \delta_{ij} +
        (\partial f_j / \partial p_j)\, \partial p_j / \partial x_i`; the gradient of the residual is
        the solution of :math:`J^\top u = g` (see :func:`pyro_flows.nn.opaque.implicit_zero`).

        Args:
            residual: :math:`y - f(x; p(x))`, of shape ``(*, input_dim)``.
            x: The solution, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            slope: :math:`f'_j`, of shape ``(*, input_dim)``.
            pull: :math:`\partial f_j / \partial p_j`, of shape ``(*, input_dim, num_params)``.
        """
        with torch.no_grad():
            slope_of = ACTIVATIONS[self.activation].slope
            gates = [slope_of(stage) for stage in self._pre_activations(x, context)[:-1]]
        batch = residual.shape[:-1]
        rows = [row.expand(*batch, -1) for row in (slope, pull.flatten(-2), *gates)]
        return implicit_zero(residual, self._walk_back, rows, self._weights()[0::2])

    def _walk_back(self, *tensors: Tensor) -> Tensor:
        num_params, count = self.num_params, 3 + len(self._ends)
        batch = tensors[0].shape[:-1]
        rows = [tensor.reshape(-1, tensor.shape[-1]).T for tensor in tensors[:count]]
        cotangent, slope, pull, *gates = rows
        matrices = tensors[count:]
        u = torch.empty_like(cotangent)
        # What each stage receives from above, hidden layers first and the parameters last.
        received = [torch.empty_like(row) for row in (*gates, pull)]

        def pulled(layer: int, start: int, stop: int, known: int) -> Tensor:
            return matrices[layer][known:, start:stop].T @ received[layer][known:]

        for i in reversed(range(self.input_dim)):
            known = (i + 1) * num_params
            for layer in reversed(range(len(gates))):
                start, stop = self._ends[layer][i], self._ends[layer][i + 1]
                block = pulled(layer + 1, start, stop, known)
                received[layer][start:stop] = block * gates[layer][start:stop]
                known = start
            u[i] = (cotangent[i] - pulled(0, i, i + 1, known)[0]) / slope[i]
            mine = slice(i * num_params, (i + 1) * num_params)
            received[-1][mine] = u[i] * pull[mine]
        return u.T.reshape(*batch, self.input_dim)
