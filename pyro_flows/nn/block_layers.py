"""The layers of a block-triangular network, and what its two directions compute with them.

Tensors are kept unit by unit, of shape ``(D, units, N)`` for ``D`` blocks and ``N`` points, so
that a layer is one product for what comes from other blocks and one batched product for what stays
in its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class HiddenWeights(NamedTuple):
    """A hidden layer of ``A`` units in a block, above ``M`` units with ``F`` features."""

    mixing: Tensor  # (D, A, M), positive; rows sum to one
    weight: Tensor  # (D * A, D * F), zero but for the blocks before
    bias: Tensor  # (D, A, 1), or (D, A, N) with a context
    sharpness: Tensor  # (D, A, 1), positive
    leak: Tensor  # (D, A, 1), positive

    def of_block(self, i: int) -> "HiddenWeights":
        """Return the weights of one block, without the axis of the blocks."""
        own = slice(i * self.bias.shape[1], (i + 1) * self.bias.shape[1])
        rest = (tensor[i] for tensor in self[2:])
        return HiddenWeights(self.mixing[i], self.weight[own], *rest)


class OutputWeights(NamedTuple):
    """The last layer, whose two rows in a block are a shift and a raw log-scale."""

    mixing: Tensor  # (D, 1, M), positive; rows sum to one
    weight: Tensor  # (D * 2, D * F), zero but for the blocks before
    bias: Tensor  # (D, 2, 1), or (D, 2, N) with a context


class Units(NamedTuple):
    """Hidden units and their steps, with derivatives."""

    value: Tensor
    step: Tensor
    value_by_own: Tensor
    step_by_added: Tensor


class BlockLayer(nn.Module):
    """The weights of one layer: positive ones within a block, free ones from blocks before.

    Args:
        input_dim: Number of blocks, ``D``.
        num_units: Number of a block's units in the layer below, ``M``.
        num_mixed: Number of mixtures of them.
        num_features: Number of a block's features that later blocks see, ``F``.
        num_rows: Number of a block's rows that see the features of the blocks before.
    """

    mask: Tensor

    def __init__(
        self, input_dim: int, num_units: int, num_mixed: int, *, num_features: int, num_rows: int
    ) -> None:
        super().__init__()
        self.shape = input_dim, num_mixed, num_units
        blocks = torch.arange(input_dim)
        mask = blocks.repeat_interleave(num_rows)[:, None] > blocks.repeat_interleave(num_features)
        self.register_buffer("mask", mask)
        # A lone unit is its own mixture, and a lone block has none before it: nothing to learn.
        self.mixing = nn.Parameter(torch.randn(self.shape)) if num_units > 1 else None
        # Each row is scaled by the number of features that it really has.
        fan_in = mask.sum(-1, keepdim=True).clamp(min=1)
        weight = nn.init.uniform_(torch.empty(mask.shape), -1.0, 1.0) * fan_in.rsqrt()
        self.weight = nn.Parameter(weight) if input_dim > 1 else None

    def matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positive and the free weights, in the dtype and on the device of ``like``."""
        if self.mixing is None:
            mixing = like.new_ones(self.shape)
        else:
            mixing = self.mixing.to(like.dtype).softmax(-1)
        if self.weight is None:
            weight = like.new_zeros(self.mask.shape)
        else:
            # Not a product: in its gradient, an overflow at a forbidden weight would be a NaN.
            weight = torch.where(self.mask, self.weight.to(like.dtype), 0.0)
        return mixing, weight


def mix(mixing: Tensor, units: Tensor) -> Tensor:
    """Return the mixtures of each block's units; a lone one is left to broadcast instead.

    Args:
        mixing: Of shape ``(*, A, M)``.
        units: Of shape ``(*, M, N)``.
    """
    return units if mixing.shape[-1] == 1 else mixing @ units


def from_before(layer: HiddenWeights | OutputWeights, features: Tensor) -> Tensor:
    """Return what the blocks before, and the bias, add to each row of a layer.

    Args:
        layer: With ``A`` rows in a block.
        features: Of shape ``(D, F, N)``.

    Returns:
        Of shape ``(D, A, N)``.
    """
    added = layer.weight @ features.flatten(0, 1)
    return added.unflatten(0, layer.bias.shape[:2]) + layer.bias


def bend(own: Tensor, added: Tensor, layer: HiddenWeights) -> Units:
    r"""Return the units :math:`h = \alpha t + (1 - \alpha) \tanh(w t + r) / w` of a layer.

    Args:
        own: :math:`t`, of shape ``(*, A, N)`` or ``(*, 1, N)``.
        added: :math:`r`, of shape ``(*, A, N)``.
        layer: Holds the sharpness :math:`w` and the leak :math:`\alpha`.
    """
    step = torch.tanh(torch.addcmul(added, layer.sharpness, own))
    rest, slope = 1 - layer.leak, 1 - step.square()
    value = torch.addcmul(layer.leak * own, rest / layer.sharpness, step)
    return Units(value, step, torch.addcmul(layer.leak, rest, slope), slope)
