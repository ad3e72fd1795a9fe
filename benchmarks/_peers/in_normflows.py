"""The flows in normflows, called as its ``NormalizingFlow`` does.

Its masked network has no activation after the first layer where it has no residual blocks: one
less than the others'.
"""

from functools import partial

import torch
from normflows import flows as nff
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from normflows.nets import MLP
from torch import Tensor

from _peers import (
    AUTOREGRESSIVE,
    BENDS,
    BOUND,
    COUNT_BINS,
    COUPLINGS,
    HIDDEN,
    LINEARS,
    Peer,
    halves,
)

SPLINE = {"num_bins": COUNT_BINS, "tails": "linear", "tail_bound": BOUND}
NET = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}


class Net(MLP):
    """A fully connected network, called as a coupling does: with a context, which is none."""

    hidden_features = HIDDEN[0]  # by which the splines scale what goes into their softmax

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__([input_dim, *HIDDEN, output_dim])

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Return the parameters."""
        return super().forward(x)


class Summed(Peer):
    """A chain of transforms, in one of their two directions."""

    def __init__(self, parts: list[nff.Flow], direction: str = "forward") -> None:
        super().__init__(parts)
        self.direction = direction

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        total = torch.zeros(len(x), dtype=x.dtype)
        for part in self.parts:
            x, ladj = getattr(part, self.direction)(x)
            total = total + ladj
        return x, total


def block_coupling(input_dim: int, *, scale: bool) -> Summed:
    """Return affine or additive couplings of alternating halves."""
    half = input_dim // 2
    modes = ["channel" if i % 2 == 0 else "channel_inv" for i in range(COUPLINGS)]
    outputs = half * (1 + scale)
    return Summed(
        [
            nff.AffineCouplingBlock(Net(half, outputs), scale=scale, split_mode=mode)
            for mode in modes
        ]
    )


def spline_coupling(input_dim: int) -> Summed:
    """Return rational-quadratic couplings of alternating halves."""
    build = PiecewiseRationalQuadraticCoupling
    kept = halves(input_dim, COUPLINGS)
    return Summed([build((~mask).int(), Net, **SPLINE) for mask in kept])


def autoregressive(transform: type[nff.Flow], input_dim: int, **options) -> Summed:
    """Return autoregressive layers with the order reversed between them."""
    parts = []
    for _ in range(AUTOREGRESSIVE):
        reversal = nff.Permute(input_dim)
        reversal.perm.copy_(torch.arange(input_dim).flip(0))
        parts += [transform(features=input_dim, **NET, **options), reversal]
    return Summed(parts[:-1])


FAMILIES = {
    "affine_coupling": partial(block_coupling, scale=True),
    "additive_coupling": partial(block_coupling, scale=False),
    "spline_coupling": spline_coupling,
    "affine_autoregressive": partial(autoregressive, nff.MaskedAffineAutoregressive),
    "spline_autoregressive": partial(
        autoregressive, MaskedPiecewiseRationalQuadraticAutoregressive, **SPLINE
    ),
    "planar": lambda d: Summed([nff.Planar((d,)) for _ in range(BENDS)]),
    "radial": lambda d: Summed([nff.Radial((d,)) for _ in range(BENDS)]),
    "lu_linear": lambda d: Summed([nff.LULinearPermute(d) for _ in range(LINEARS)], "inverse"),
}
