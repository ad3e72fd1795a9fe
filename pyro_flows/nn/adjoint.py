"""The transposed Jacobian of an autoregressive map, given one pass of its network."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.stages import jacobian_of_rows, received
from pyro_flows.nn.walk import Walk
from pyro_flows.numerics import widen

# Coordinates that are solved for together: fewer mean more operators, more mean more work.
BLOCK = 16


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

        Block by block, from the last coordinates to the first.

        Args:
            cotangent: :math:`g`, of shape ``(*, D)``.
            slope: :math:`f'`, of shape ``(*, D)``.
            pull: :math:`\partial f / \partial p`, of shape ``(*, K, D)``.
        """
        size, shape = self.walk.input_dim, cotangent.shape
        cotangent, slope = cotangent.reshape(-1, size), slope.reshape(-1, size)
        pull = pull.reshape(-1, self.walk.num_params, size)
        count = -(-size // BLOCK)
        solved: list[Tensor] = []
        sent: list[Tensor] = []
        for k in reversed(range(count)):
            mine = slice(size * k // count, size * (k + 1) // count)
            block = self._block(mine)
            back = block.receive(sent)
            target = cotangent[:, mine] - back[0] if back else cotangent[:, mine]
            u = block.solve(target, slope[:, mine], pull[..., mine])
            solved.insert(0, u)
            if k:
                sent = block.send(u[:, None, :] * pull[..., mine], back[1:], sent)
        return torch.cat(solved, -1).reshape(shape)

    def solve_and_send(self, cotangent: Tensor, slope: Tensor, pull: Tensor) -> list[Tensor]:
        r"""Return ``u``, and what :math:`u_j \, \partial f_j / \partial p_j` sends to each stage.

        Args:
            cotangent: As for :meth:`solve_transposed`.
            slope: As there.
            pull: As there.
        """
        u = self.solve_transposed(cotangent, slope, pull)
        return [u, *self.received(u[..., None, :] * pull)[1:]]

    def _block(self, mine: slice) -> "_Block":
        spans = [slice(edge[mine.start], edge[mine.stop]) for edge in self.walk.edges[:-1]]
        hidden = [
            stage.reshape(-1, stage.shape[-1])[:, span]
            for stage, span in zip(self.stages[:-1], spans[1:], strict=True)
        ]
        *earlier, last = self.weights[0::2]
        by_kind = last.unflatten(0, (self.walk.num_params, self.walk.input_dim))[..., spans[-1]]
        layers = list(zip(earlier, spans[1:], spans[:-1], strict=True))
        return _Block(
            hidden,
            [
                *(matrix[above, span] for matrix, above, span in layers),
                by_kind[:, mine].flatten(0, 1),
            ],
            [
                *(matrix[above.stop :, span] for matrix, above, span in layers),
                by_kind[:, mine.stop :].flatten(0, 1),
            ],
            self.walk.activation,
        )


class _Block(NamedTuple):
    """Neighbouring coordinates, with the units that become known together with them.

    Args:
        hidden: The hidden stages of these units, of shape ``(N, n)`` each.
        inner: By layer, the matrix from the block to itself.
        outer: By layer, the matrix from the block to later ones.
        activation: Name of the activation.
    """

    hidden: list[Tensor]
    inner: list[Tensor]
    outer: list[Tensor]
    activation: str

    def receive(self, sent: Sequence[Tensor]) -> list[Tensor]:
        """Return what the coordinates and the hidden units receive from later blocks.

        Args:
            sent: What their hidden units and parameters receive, by stage, the latter of shape
                ``(N, K, d)``; nothing for the last block.
        """
        if not sent:
            return []
        pull = ACTIVATIONS[self.activation].pull
        found = [sent[-1].flatten(-2) @ self.outer[-1]]
        layers = zip(self.hidden, self.inner, self.outer, sent, strict=False)
        for stage, inner, outer, later in reversed(list(layers)):
            found[0] = pull(found[0], stage)
            found.insert(0, found[0] @ inner + later @ outer)
        return found

    def solve(self, target: Tensor, slope: Tensor, pull: Tensor) -> Tensor:
        """Return the solution within the block.

        Args:
            target: What remains of the cotangent, of shape ``(N, d)``.
            slope: Of shape ``(N, d)``.
            pull: Of shape ``(N, K, d)``.
        """
        # Over the slopes, what the unknowns times the slopes solve is unit-triangular.
        rows = pull / slope[:, None, :]
        jacobian = jacobian_of_rows(rows, self.hidden, self.inner, self.activation)
        solved = torch.linalg.solve_triangular(
            widen(jacobian.permute(1, 2, 0)),
            widen(target[..., None]),
            upper=True,
            unitriangular=True,
        )
        return solved[..., 0].to(target.dtype) / slope

    def send(self, share: Tensor, back: Sequence[Tensor], sent: Sequence[Tensor]) -> list[Tensor]:
        """Return what each stage of this and the later blocks receives.

        Args:
            share: What the block's parameters receive, of shape ``(N, K, d)``.
            back: What its hidden units receive from later blocks; nothing for the last block.
            sent: What those have received, as for :meth:`receive`.
        """
        _, *mine, _ = received(share.flatten(-2), self.hidden, self.inner, self.activation)
        if not sent:
            return [*mine, share]
        mine = [own + later for own, later in zip(mine, back, strict=True)]
        return [torch.cat(pair, -1) for pair in zip([*mine, share], sent, strict=True)]
