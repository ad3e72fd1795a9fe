"""The flows in Pyro itself.

Its transforms keep the log-determinant of their last call, which is how it trains. The Sylvester
transform's is not that of the map away from small weights; it is timed as it is.
"""

from pyro.distributions import transforms as pyro_transforms
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from _peers import (
    AUTOREGRESSIVE,
    BENDS,
    BLOCK_FACTORS,
    BOUND,
    COUNT_BINS,
    COUPLINGS,
    DEGREE,
    HIDDEN,
    POLYNOMIALS,
    SYLVESTERS,
    UNITS,
    Peer,
    orders,
    reflections,
)

SIZES = [COUNT_BINS, COUNT_BINS, COUNT_BINS - 1]


class Chained(Peer):
    """A chain of Pyro's transforms, called as a ``TransformedDistribution`` does."""

    def __init__(self, parts: list) -> None:
        super().__init__([part for part in parts if isinstance(part, nn.Module)])
        self.chain = parts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        total = 0.0
        for part in self.chain:
            y = part(x)
            total = total + part.log_abs_det_jacobian(x, y)
            x = y
        return x, total


def swapping(parts: list, input_dim: int) -> Chained:
    """Return couplings, which keep the first half each, with the halves swapped between them."""
    swap = orders(input_dim, 2)[1]
    chain = []
    for part in parts:
        chain += [part, pyro_transforms.Permute(swap)]
    return Chained(chain[:-1])


def affine_coupling(input_dim: int) -> Chained:
    """Return affine couplings of alternating halves."""
    build = pyro_transforms.affine_coupling
    return swapping([build(input_dim, list(HIDDEN)) for _ in range(COUPLINGS)], input_dim)


def spline_coupling(input_dim: int) -> Chained:
    """Return rational-quadratic couplings of alternating halves."""
    kept = input_dim // 2
    moved = input_dim - kept
    parts = []
    for _ in range(COUPLINGS):
        net = DenseNN(kept, list(HIDDEN), [size * moved for size in SIZES])
        part = pyro_transforms.SplineCoupling(
            input_dim, kept, net, COUNT_BINS, BOUND, order="quadratic", identity=True
        )
        part.lower_spline = None  # of the kept half, which `identity` leaves as it is
        parts.append(part)
    return swapping(parts, input_dim)


def networks(
    input_dim: int, param_dims: list[int], count: int = AUTOREGRESSIVE
) -> list[AutoRegressiveNN]:
    """Return one masked network for each layer."""
    return [
        AutoRegressiveNN(input_dim, list(HIDDEN), param_dims, permutation=order)
        for order in orders(input_dim, count)
    ]


def spline_autoregressive(input_dim: int) -> Chained:
    """Return autoregressive layers of rational-quadratic splines."""
    build = pyro_transforms.SplineAutoregressive
    return Chained(
        [
            build(input_dim, net, count_bins=COUNT_BINS, bound=BOUND, order="quadratic")
            for net in networks(input_dim, SIZES)
        ]
    )


FAMILIES = {
    "affine_coupling": affine_coupling,
    "spline_coupling": spline_coupling,
    "affine_autoregressive": lambda d: Chained(
        [pyro_transforms.AffineAutoregressive(net) for net in networks(d, [1, 1])]
    ),
    "spline_autoregressive": spline_autoregressive,
    "planar": lambda d: Chained([pyro_transforms.Planar(d) for _ in range(BENDS)]),
    "radial": lambda d: Chained([pyro_transforms.Radial(d) for _ in range(BENDS)]),
    "sylvester": lambda d: Chained(
        [pyro_transforms.Sylvester(d, reflections(d)) for _ in range(SYLVESTERS)]
    ),
    "neural": lambda d: Chained(
        [
            pyro_transforms.NeuralAutoregressive(net, hidden_units=UNITS)
            for net in networks(d, 3 * [UNITS])
        ]
    ),
    "block_neural": lambda d: Chained(
        [pyro_transforms.BlockAutoregressive(d, hidden_factors=list(BLOCK_FACTORS))]
    ),
    "polynomial": lambda d: Chained(
        [
            pyro_transforms.Polynomial(net, d, DEGREE, POLYNOMIALS)
            for net in networks(d, [(DEGREE + 1) * POLYNOMIALS], 1)
        ]
    ),
    "orthogonal": lambda d: Chained([pyro_transforms.Householder(d, reflections(d))]),
}
