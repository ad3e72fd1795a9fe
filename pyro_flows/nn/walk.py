r"""The walk over the blocks of a masked network: its inverse.

Coordinate :math:`i` counts from zero. Hidden units stand in the order of their degrees, so what
becomes known together with coordinate :math:`i` is one block of rows. Walking over the blocks in
order, the inverse uses every weight once: it costs about one forward pass instead of one for each
coordinate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.nn.activations import ACTIVATIONS

# Coordinates whose dependence on all before them is one matrix product; saves memory traffic.
_GROUP = 8

ElementInverse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Walk:
    """The blocks of a masked network.

    Args:
        edges: By stage, from the coordinates to their parameters, how many units the first ``i``
            coordinates determine, for ``i = 0 ... D``. In the last stage, the parameters of a
            coordinate stand side by side.
        num_params: Number of parameters per coordinate, ``K``.
        activation: Name of the activation.
    """

    edges: list[list[int]]
    num_params: int
    activation: str

    @property
    def input_dim(self) -> int:
        """Number of coordinates."""
        return self.edges[0][-1]

    def unflatten(self, flat: Tensor) -> Tensor:
        """Return parameters, those of a kind side by side, as ``(*, K, D)``."""
        return flat.unflatten(-1, (self.num_params, self.input_dim))

    def by_coordinate(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights, the rows of each coordinate's parameters side by side."""
        *earlier, matrix, bias = weights
        return [*earlier, self.reorder(matrix.mT).mT, self.reorder(bias)]

    def reorder(self, flat: Tensor) -> Tensor:
        """Return parameters, those of a coordinate side by side."""
        return self.unflatten(flat).mT.flatten(-2)

    def solve(
        self, y: Tensor, shift: Tensor, weights: Sequence[Tensor], element_inverse: ElementInverse
    ) -> Tensor:
        """Return ``x`` and the ladj of each coordinate's inverse, side by side on the last axis.

        Args:
            y: Targets, of shape ``(*, D)``.
            shift: What a context adds to the first stage, of shape ``(*, n)`` or ``(*, 1)``.
            weights: Matrix and bias of each layer, in turn.
            element_inverse: Maps ``y_i``, of shape ``(N,)``, and ``p_i``, of shape ``(K, N)``, to
                ``x_i`` and its ladj.
        """
        activate = ACTIVATIONS[self.activation].function
        edges, last, batch = self.edges, len(self.edges) - 1, y.shape[:-1]
        y = y.reshape(-1, self.input_dim).T.contiguous()
        matrices, biases = weights[0::2], [bias[:, None] for bias in weights[1::2]]
        biases[0] = biases[0] + shift.reshape(-1, shift.shape[-1]).T
        result = y.new_empty(2 * self.input_dim, y.shape[1])
        x, ladj = result.chunk(2)
        stages = [x, *(y.new_empty(edge[-1], y.shape[1]) for edge in edges[1:])]

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
                params = extend(last, *mine, edges[last - 1][low], edges[last - 1][i])
                x[i], ladj[i] = element_inverse(y[i], params)
                for s in range(1, last):
                    mine = edges[s][i], edges[s][i + 1]
                    block = extend(s, *mine, edges[s - 1][low], edges[s - 1][i + 1])
                    block.copy_(activate(block))
        return result.T.reshape(*batch, result.shape[0])
