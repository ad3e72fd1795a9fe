r"""A masked (autoregressive) conditioner that is cheap in both directions.

Coordinate :math:`i` counts from zero. A hidden unit of degree :math:`k` sees the coordinates
:math:`\le k`, and the parameters of coordinate :math:`j` see the units of degree :math:`< j`
(Germain, Gregor, Murray & Larochelle 2015). Hidden units stand in the order of their degrees, so
what becomes known together with coordinate :math:`i` is one block of rows. Walking over the blocks
in order, the inverse uses every weight once: it costs about one forward pass instead of one for
each coordinate. The transposed Jacobian is solved by the same walk, backwards.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import ACTIVATIONS, check_activation
from pyro_flows.nn.opaque import implicit_zero, opaque

# Coordinates whose dependence on all before them is one matrix product; saves memory traffic.
_GROUP = 8

ElementInverse = Callable[[Tensor, Tensor], Tensor]


class MaskedLinear(nn.Module):
    """A linear layer whose forbidden weights are masked out.

    Args:
        mask: Of shape ``(output_dim, input_dim)``; true where a weight may act.
    """

    mask: Tensor
    weight: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        # Each row is scaled by the number of inputs that it really has.
        fan_in = mask.sum(-1, keepdim=True).clamp(min=1)
        weight = nn.init.uniform_(torch.empty(mask.shape), -1.0, 1.0) * fan_in.rsqrt()
        self.bias = nn.Parameter(torch.zeros(mask.shape[0]))
        # Weights that are all forbidden, as with one coordinate, would never get a gradient.
        if bool(mask.any()):
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def masked_weight(self) -> Tensor:
        """Return the weights with the forbidden ones at zero."""
        # Not a product: in its gradient, an overflow at a forbidden weight would turn into a NaN.
        return torch.where(self.mask, self.weight, 0.0)

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
        DomainError: A size is not a positive integer, a layer is too narrow to hold every degree,
            or the activation is not known.

    Reference:
        Germain, Gregor, Murray & Larochelle (2015), *MADE: Masked autoencoder for distribution
        estimation*, section 4.

    Example:
        >>> import torch
        >>> net = MaskedNet(3, 2, hidden_dims=(16,))
        >>> net(torch.randn(100, 3)).shape
        torch.Size([100, 2, 3])
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
        outputs = inputs.repeat(num_params) - 1
        levels = [inputs, *degrees, outputs]
        masks = [above[:, None] >= below for below, above in pairwise(levels)]
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        width = len(masks[0])
        self.from_context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        # By stage, how many units the first i coordinates determine, for i = 0 ... D.
        steps = range(input_dim + 1)
        self._edges = [
            list(steps),
            *([int((degree < i).sum()) for i in steps] for degree in degrees),
            [i * num_params for i in steps],
        ]
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

    @property
    def _linears(self) -> list[MaskedLinear]:
        return cast("list[MaskedLinear]", list(self.layers))

    def _start_at_zero(self) -> None:
        nn.init.zeros_(self._linears[-1].weight)
        if len(self.layers) == 1 and self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters, of shape ``(*, num_params, input_dim)``.

        Args:
            x: Coordinates, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.
        """
        flat = self._pre_activations(x, context)[-1]
        return flat.unflatten(-1, (self.num_params, self.input_dim))

    def _pre_activations(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        activate = ACTIVATIONS[self.activation].function
        first, *later = self._linears
        h = first(x)
        if self.from_context is not None:
            h = h + self.from_context(context)
        stages = [h]
        for layer in later:
            stages.append(layer(activate(stages[-1])))
        return stages

    def _weights(self) -> list[Tensor]:
        """Return weights and biases in turn; in the last two, a coordinate's rows side by side."""
        *layers, last = [(layer.masked_weight(), layer.bias) for layer in self._linears]
        return [t for pair in layers for t in pair] + [self._by_coordinate(t) for t in last]

    def _by_coordinate(self, rows: Tensor, axis: int = 0) -> Tensor:
        shape = self.num_params, self.input_dim
        return rows.movedim(axis, -1).unflatten(-1, shape).mT.flatten(-2).movedim(-1, axis)

    def _shift(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Return what the context adds to the first layer, for the walk."""
        if self.from_context is None:
            return y.new_zeros(1)
        shift: Tensor = self.from_context(context)
        return self._by_coordinate(shift, -1) if len(self.layers) == 1 else shift

    def solve(
        self, y: Tensor, context: Tensor | None, element_inverse: ElementInverse
    ) -> tuple[Tensor, Tensor]:
        r"""Return the ``x`` at which every coordinate's map, given the ones before, meets ``y``.

        Coordinate by coordinate, :math:`x_i = f^{-1}(y_i;\, p_i(x_{<i}, c))`. The results carry no
        gradient.

        Args:
            y: Targets, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            element_inverse: Maps ``y_i``, of shape ``(N,)``, and ``p_i``, of shape ``(K, N)``, to
                ``x_i``.

        Returns:
            ``x``, of shape ``(*, input_dim)``, and the parameters there, of shape
            ``(*, num_params, input_dim)``.
        """

        def walk(y: Tensor, shift: Tensor, *weights: Tensor) -> Tensor:
            return self._walk(y, shift, weights, element_inverse)

        shift = self._shift(y, context)
        batch = torch.broadcast_shapes(y.shape[:-1], shift.shape[:-1])
        rows = [y.expand(*batch, -1), shift.expand(*batch, -1)]
        x, flat = opaque(walk, rows, self._weights()).tensor_split([self.input_dim], -1)
        return x, flat.unflatten(-1, (self.input_dim, self.num_params)).transpose(-1, -2)

    def _walk(
        self, y: Tensor, shift: Tensor, weights: Sequence[Tensor], element_inverse: ElementInverse
    ) -> Tensor:
        """Return ``x`` and its parameters side by side on the last axis."""
        activate = ACTIVATIONS[self.activation].function
        edges, last, batch = self._edges, len(self._edges) - 1, y.shape[:-1]
        y = y.reshape(-1, self.input_dim).T.contiguous()
        matrices, biases = weights[0::2], [bias[:, None] for bias in weights[1::2]]
        biases[0] = biases[0] + shift.reshape(-1, shift.shape[-1]).T
        result = y.new_empty(edges[0][-1] + edges[last][-1], y.shape[1])
        x, params = result.tensor_split([self.input_dim])
        stages = [x, *(y.new_empty(edge[-1], y.shape[1]) for edge in edges[1:last]), params]

        def begin(stage: int, start: int, stop: int, known: int) -> Tensor:
            target, bias = stages[stage][start:stop], biases[stage - 1][start:stop]
            weight = matrices[stage - 1][start:stop, :known]
            return torch.addmm(bias, weight, stages[stage - 1][:known], out=target)

        def extend(stage: int, start: int, stop: int, first: int, known: int) -> Tensor:
            weight = matrices[stage - 1][start:stop, first:known]
            return stages[stage][start:stop].addmm_(weight, stages[stage - 1][first:known])

        for s in range(1, last):
            block = begin(s, 0, edges[s][0], edges[s - 1][0])
            block.copy_(activate(block))
        for low in range(0, self.input_dim, _GROUP):
            high = min(low + _GROUP, self.input_dim)
            for s in range(1, last + 1):
                begin(s, edges[s][low], edges[s][high], edges[s - 1][low])
            for i in range(low, high):
                mine = edges[last][i], edges[last][i + 1]
                x[i] = element_inverse(
                    y[i], extend(last, *mine, edges[last - 1][low], edges[last - 1][i])
                )
                for s in range(1, last):
                    mine = edges[s][i], edges[s][i + 1]
                    block = extend(s, *mine, edges[s - 1][low], edges[s - 1][i + 1])
                    block.copy_(activate(block))
        return result.T.reshape(*batch, result.shape[0])

    def implicit_zero(
        self, residual: Tensor, x: Tensor, context: Tensor | None, slope: Tensor, pull: Tensor
    ) -> Tensor:
        r"""Return the zero that gives a solution ``x`` of :meth:`solve` its gradient.

        With :math:`y_j = f(x_j;\, p_j(x_{<j}))`, the Jacobian is

        .. math:: J_{ji} = f'_j \delta_{ij}
            + \frac{\partial f_j}{\partial p_j} \frac{\partial p_j}{\partial x_i}

        and the gradient of the residual is the solution of :math:`J^\top u = g` (see
        :func:`pyro_flows.nn.opaque.implicit_zero`).

        Args:
            residual: :math:`y - f(x; p(x))`, of shape ``(*, input_dim)``.
            x: The solution, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            slope: :math:`f'_j`, of shape ``(*, input_dim)``.
            pull: :math:`\partial f_j / \partial p_j`, of shape ``(*, num_params, input_dim)``.
        """
        with torch.no_grad():
            slope_of = ACTIVATIONS[self.activation].slope
            gates = [slope_of(stage) for stage in self._pre_activations(x, context)[:-1]]
        batch = residual.shape[:-1]
        rows = [row.expand(*batch, -1) for row in (slope, pull.mT.flatten(-2), *gates)]
        return implicit_zero(residual, self._walk_back, rows, self._weights()[0::2])

    def _walk_back(self, *tensors: Tensor) -> Tensor:
        edges, last, num_params = self._edges, len(self._edges) - 1, self.num_params
        batch = tensors[0].shape[:-1]
        rows = [tensor.reshape(-1, tensor.shape[-1]).T for tensor in tensors[: last + 2]]
        cotangent, slope, pull, *gates = rows
        matrices = tensors[last + 2 :]
        # What each stage receives from the one above; in the end, the solution in the first.
        received = [torch.empty_like(row) for row in (cotangent, *gates, pull)]

        def begin(stage: int, start: int, stop: int, known: int) -> None:
            weight = matrices[stage][known:, start:stop].T
            torch.mm(weight, received[stage + 1][known:], out=received[stage][start:stop])

        def extend(stage: int, start: int, stop: int, known: int, end: int) -> Tensor:
            weight = matrices[stage][known:end, start:stop].T
            return received[stage][start:stop].addmm_(weight, received[stage + 1][known:end])

        for high in range(self.input_dim, 0, -_GROUP):
            low = max(high - _GROUP, 0)
            for s in range(last):
                begin(s, edges[s][low], edges[s][high], edges[s + 1][high])
            for i in reversed(range(low, high)):
                known = edges[last][i + 1]
                for s in reversed(range(1, last)):
                    mine = slice(edges[s][i], edges[s][i + 1])
                    block = extend(s, mine.start, mine.stop, known, edges[s + 1][high])
                    block.mul_(gates[s - 1][mine])
                    known = mine.start
                u = extend(0, i, i + 1, known, edges[1][high])
                u.copy_((cotangent[i] - u) / slope[i])
                mine = slice(i * num_params, (i + 1) * num_params)
                received[last][mine] = u * pull[mine]
        return received[0].T.reshape(*batch, self.input_dim)
