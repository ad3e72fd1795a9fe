"""The flows in pyro_flows."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from _peers import (
    AUTOREGRESSIVE,
    BENDS,
    BLOCK_FACTORS,
    BOUND,
    COUNT_BINS,
    COUPLINGS,
    DEGREE,
    HIDDEN,
    LINEARS,
    POLYNOMIALS,
    SYLVESTERS,
    UNITS,
    Peer,
    halves,
    reflections,
)
from pyro_flows import transforms as pft

NET = {"hidden_dims": HIDDEN, "activation": "relu"}
SPLINE = {"count_bins": COUNT_BINS, "bound": BOUND}
Transform = Callable[..., pft.FlowTransform]


class Ours(Peer):
    """A chain of transforms, checks included."""

    def __init__(self, parts: list[pft.FlowTransform]) -> None:
        super().__init__([pft.Compose(parts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        return self.parts[0].forward_and_ladj(x)

    def draw(self, z: Tensor) -> Tensor:
        """Return the points that the cheap direction maps to ``z``."""
        return self.parts[0].inverse_and_ladj(z)[0]


def coupling(transform: Transform, input_dim: int, **options) -> Ours:
    """Return couplings of alternating halves."""
    masks = halves(input_dim, COUPLINGS)
    return Ours([transform(input_dim, mask=mask, **NET, **options) for mask in masks])


def autoregressive(
    transform: Transform, input_dim: int, num_transforms: int = AUTOREGRESSIVE, **options
) -> Ours:
    """Return autoregressive layers with the order reversed between them."""
    parts = []
    for _ in range(num_transforms):
        parts += [transform(input_dim, **NET, **options), pft.Permute.reversal(input_dim)]
    return Ours(parts[:-1])


def repeated(transform: Transform, input_dim: int, num_transforms: int = 1, **options) -> Ours:
    """Return transforms without a network."""
    return Ours([transform(input_dim, **options) for _ in range(num_transforms)])


def reflecting(transform: Transform, input_dim: int, num_transforms: int = 1) -> Ours:
    """Return transforms with Householder reflections."""
    options = {"num_reflections": reflections(input_dim)}
    return repeated(transform, input_dim, num_transforms, **options)


FAMILIES = {
    "affine_coupling": partial(coupling, pft.AffineCoupling),
    "additive_coupling": partial(coupling, pft.AdditiveCoupling),
    "spline_coupling": partial(coupling, pft.SplineCoupling, **SPLINE),
    "affine_autoregressive": partial(autoregressive, pft.AffineAutoregressive),
    "spline_autoregressive": partial(autoregressive, pft.SplineAutoregressive, **SPLINE),
    "planar": partial(repeated, pft.Planar, num_transforms=BENDS),
    "radial": partial(repeated, pft.Radial, num_transforms=BENDS),
    "sylvester": partial(reflecting, pft.Sylvester, num_transforms=SYLVESTERS),
    "neural": partial(autoregressive, pft.NeuralAutoregressive, num_units=UNITS),
    "block_neural": partial(repeated, pft.BlockNeuralAutoregressive, hidden_factors=BLOCK_FACTORS),
    "polynomial": partial(
        autoregressive,
        pft.PolynomialAutoregressive,
        num_transforms=1,
        degree=DEGREE,
        num_polynomials=POLYNOMIALS,
    ),
    "lu_linear": partial(repeated, pft.LULinear, num_transforms=LINEARS),
    "orthogonal": partial(reflecting, pft.Orthogonal),
}
