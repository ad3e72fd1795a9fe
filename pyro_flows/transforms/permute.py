"""Permutations of the coordinates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.numerics import zero_ladj
from pyro_flows.transforms.base import FlowTransform, Push


class Permute(FlowTransform):
    r"""Reorder the coordinates: :math:`y_i = x_{\pi(i)}`.

    The permutation is a buffer: it is saved, loaded and moved with the module.

    Args:
        permutation: :math:`\pi`, each of ``0 ... D-1`` once.

    Raises:
        DomainError: ``permutation`` is not a permutation.

    Example:
        >>> import torch
        >>> Permute([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        tensor([12., 10., 11.])
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Sequence[int] | Tensor) -> None:
        order = torch.tensor(_checks.check_permutation(type(self).__name__, permutation))
        super().__init__(len(order))
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", order.argsort())

    @classmethod
    def reversal(cls, input_dim: int) -> "Permute":
        """Return the permutation that puts the last coordinate first."""
        return cls(torch.arange(input_dim).flip(0))

    @classmethod
    def random(cls, input_dim: int, *, seed: int) -> "Permute":
        """Return a permutation that depends on ``input_dim`` and ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randperm(input_dim, generator=generator, device="cpu"))

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.permutation), zero_ladj(x)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return y.index_select(-1, self.inverse_permutation), zero_ladj(y)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        y, ladj = self._forward_and_ladj(x, context)
        return y, ladj, lambda score: score.index_select(-1, self.permutation)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        x, ladj = self._inverse_and_ladj(y, context)
        return x, ladj, lambda score: score.index_select(-1, self.inverse_permutation)
