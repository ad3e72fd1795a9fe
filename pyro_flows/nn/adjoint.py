"""The transposed Jacobian of an autoregressive map, given one pass of its network."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.opaque import opaque
from pyro_flows.nn.stages import jacobian_of_rows, received
from pyro_flows.nn.walk import Walk
from pyro_flows.numerics import widen

# Up to here, all rows of the Jacobian together are cheaper than a walk over the coordinates.
MOST_ROWS = 16


class Pass(NamedTuple):
    r"""A pass of a masked network, for a map :math:`y_j = f(x_j;\, p_j(x_{<j}))`.

    Args:
        walk: The network's blocks.
        stages: Its stages before their activations, of shape ``(*, n)``; last, the parameters.
        weights: Matrix and bias of each layer, in turn.
    """

    walk: Walk
    stages: list[Tensor]
    weights: Sequence[Tensor]

    @property
    def params(self) -> Tensor:
        """The parameters, of shape ``(*, K, D)``."""
        return self.walk.unflatten(self.stages[-1])

    def received(self, share: Tensor) -> list[Tensor]:
        """Return what the coordinates and every stage receive, given what the parameters do.

        Args:
            share: Of shape ``(*, K, D)``.
        """
        matrices = self.weights[0::2]
        return received(share.flatten(-2), self.stages[:-1], matrices, self.walk.activation)

    def solve_transposed(self, cotangent: Tensor, slope: Tensor, pull: Tensor) -> Tensor:
        r"""Return the solution ``u`` of :math:`J^\top u = g`, without a graph.

        .. math:: J_{ji} = f'_j \delta_{ij}
            + \frac{\partial f_j}{\partial p_j} \frac{\partial p_j}{\partial x_i}

        Args:
            cotangent: :math:`g`, of shape ``(*, D)``.
            slope: :math:`f'`, of shape ``(*, D)``.
            pull: :math:`\partial f / \partial p`, of shape ``(*, K, D)``.
        """
        if self.walk.input_dim > MOST_ROWS:
            return self._walk_back(cotangent, slope, pull)[0]
        return self._solve_by_rows(cotangent, slope, pull)

    def solve_and_send(self, cotangent: Tensor, slope: Tensor, pull: Tensor) -> list[Tensor]:
        r"""Return ``u``, and what :math:`u_j \, \partial f_j / \partial p_j` sends to each stage.

        Args:
            cotangent: As for :meth:`solve_transposed`.
            slope: As there.
            pull: As there.
        """
        if self.walk.input_dim > MOST_ROWS:
            return self._walk_back(cotangent, slope, pull)
        u = self._solve_by_rows(cotangent, slope, pull)
        return [u, *self.received(u[..., None, :] * pull)[1:]]

    def _solve_by_rows(self, cotangent: Tensor, slope: Tensor, pull: Tensor) -> Tensor:
        size = self.walk.input_dim
        # Over the slopes, what the unknowns times the slopes solve is unit-triangular.
        rows = (pull / slope[..., None, :]).reshape(-1, self.walk.num_params, size)
        hidden = [stage.reshape(-1, stage.shape[-1]) for stage in self.stages[:-1]]
        jacobian = jacobian_of_rows(rows, hidden, self.weights[0::2], self.walk.activation)
        target = widen(cotangent.reshape(-1, size, 1))
        transposed = widen(jacobian.permute(1, 2, 0))
        solved = torch.linalg.solve_triangular(transposed, target, upper=True, unitriangular=True)
        return solved.reshape(cotangent.shape).to(cotangent.dtype) / slope

    def _walk_back(self, cotangent: Tensor, slope: Tensor, pull: Tensor) -> list[Tensor]:
        activation, walk = ACTIVATIONS[self.walk.activation], self.walk
        gates = [activation.slope(stage) for stage in self.stages[:-1]]
        ordered = walk.by_coordinate(self.weights)
        sent = opaque(
            walk.solve_transposed, [cotangent, slope, pull.mT.flatten(-2), *gates], ordered[0::2]
        )
        u, *deltas = sent.split([edge[-1] for edge in walk.edges], -1)
        deltas[-1] = deltas[-1].unflatten(-1, (walk.input_dim, walk.num_params)).mT.flatten(-2)
        return [u, *deltas]
