"""The flows in nflows."""

from functools import partial

from nflows import transforms as nft
from nflows.nn.nets import MLP
from torch import Tensor

from _peers import (
    AUTOREGRESSIVE,
    BOUND,
    COUNT_BINS,
    COUPLINGS,
    HIDDEN,
    LINEARS,
    Peer,
    halves,
    reflections,
)

SPLINE = {"num_bins": COUNT_BINS, "tails": "linear", "tail_bound": BOUND}
# Without residual blocks, one block is the second of two hidden layers.
NET = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}


class Net(MLP):
    """A fully connected network, called as a coupling does: with a context, which is none."""

    hidden_features = HIDDEN[0]  # by which the splines scale what goes into their softmax

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__([input_dim], [output_dim], HIDDEN)

    def forward(self, inputs: Tensor, context: None) -> Tensor:
        """Return the parameters."""
        return super().forward(inputs)


class Composite(Peer):
    """A chain of transforms."""

    def __init__(self, parts: list[nft.Transform]) -> None:
        super().__init__([nft.CompositeTransform(parts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        return self.parts[0](x)

    def draw(self, z: Tensor) -> Tensor:
        """Return the points that the cheap direction maps to ``z``."""
        return self.parts[0].inverse(z)[0]


def coupling(transform: type[nft.Transform], input_dim: int, **options) -> Composite:
    """Return couplings of alternating halves."""
    kept = halves(input_dim, COUPLINGS)
    return Composite([transform((~mask).int(), Net, **options) for mask in kept])


def autoregressive(transform: type[nft.Transform], input_dim: int, **options) -> Composite:
    """Return autoregressive layers with the order reversed between them."""
    parts = []
    for _ in range(AUTOREGRESSIVE):
        parts.append(transform(features=input_dim, **NET, **options))
        parts.append(nft.ReversePermutation(input_dim))
    return Composite(parts[:-1])


FAMILIES = {
    "affine_coupling": partial(coupling, nft.AffineCouplingTransform),
    "additive_coupling": partial(coupling, nft.AdditiveCouplingTransform),
    "spline_coupling": partial(
        coupling, nft.PiecewiseRationalQuadraticCouplingTransform, **SPLINE
    ),
    "affine_autoregressive": partial(autoregressive, nft.MaskedAffineAutoregressiveTransform),
    "spline_autoregressive": partial(
        autoregressive, nft.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, **SPLINE
    ),
    "lu_linear": lambda d: Composite([nft.LULinear(d) for _ in range(LINEARS)]),
    "orthogonal": lambda d: Composite([nft.HouseholderSequence(d, reflections(d))]),
}
