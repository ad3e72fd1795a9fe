"""The same flows in several libraries, each as that library trains them.

Each module here writes its library's flows in ``FAMILIES``: by name, a function from the number of
coordinates to a :class:`Peer`, a module that maps points of shape ``(N, D)`` to the points at the
other end of the chain and the log-determinant of shape ``(N,)``, in the library's cheap direction.
What the flows of a family have in common is here.
"""

import os
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

WIDTH = int(os.environ.get("BENCH_WIDTH", "128"))
HIDDEN = (WIDTH, WIDTH)  # of every conditioner, with relu
BOUND = 5.0  # of the box that a spline maps onto itself
COUNT_BINS = 8
SPLINE_PARAMS = 3 * COUNT_BINS - 1  # widths, heights, and the slopes at the inner knots
COUPLINGS = 6
AUTOREGRESSIVE = 3
BENDS = 16  # planar or radial transforms
SYLVESTERS = 4
UNITS = 16  # of the element-wise network of a neural autoregressive flow
BLOCK_FACTORS = (8, 8)
# Of the squared polynomials, and how many are summed; in one layer, as two overflow in Pyro.
DEGREE, POLYNOMIALS = 4, 3
LINEARS = 4

DESCRIPTIONS = {
    "affine_coupling": f"{COUPLINGS} affine couplings, alternating halves",
    "additive_coupling": f"{COUPLINGS} additive couplings, alternating halves",
    "spline_coupling": f"{COUPLINGS} couplings of {COUNT_BINS} rational-quadratic bins",
    "affine_autoregressive": f"{AUTOREGRESSIVE} affine autoregressive layers, order reversed",
    "spline_autoregressive": f"{AUTOREGRESSIVE} autoregressive layers of {COUNT_BINS} bins",
    "planar": f"{BENDS} planar transforms",
    "radial": f"{BENDS} radial transforms",
    "sylvester": f"{SYLVESTERS} Sylvester transforms, M = D, D / 2 + 1 reflections",
    "neural": f"{AUTOREGRESSIVE} neural autoregressive layers (DSF) of {UNITS} units",
    "block_neural": f"1 block neural autoregressive layer of factors {BLOCK_FACTORS}",
    "polynomial": f"1 layer of sums of squares, {POLYNOMIALS} polynomials of degree {DEGREE}",
    "lu_linear": f"{LINEARS} linear layers by their LU factors",
    "orthogonal": "1 product of D / 2 + 1 Householder reflections",
}
LIBRARIES = {
    "pyro": "in_pyro",
    "zuko": "in_zuko",
    "nflows": "in_nflows",
    "normflows": "in_normflows",
}


class Peer(nn.Module):
    """A chain of some library's transforms.

    Args:
        parts: The transforms, in the order in which the cheap direction takes them.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        raise NotImplementedError

    def draw(self, z: Tensor) -> Tensor:
        """Return the points that the cheap direction maps to ``z``."""
        raise NotImplementedError


Family = Callable[[int], Peer]


def halves(input_dim: int, count: int) -> list[Tensor]:
    """Return which coordinates each of ``count`` couplings keeps: one half, then the other."""
    first = torch.arange(input_dim) < input_dim // 2
    return [first if i % 2 == 0 else ~first for i in range(count)]


def orders(input_dim: int, count: int) -> list[Tensor]:
    """Return the coordinates in their order, then reversed, ``count`` times in turn."""
    order = torch.arange(input_dim)
    return [order if i % 2 == 0 else order.flip(0) for i in range(count)]


def reflections(input_dim: int) -> int:
    """Return the number of Householder reflections, which is Pyro's default."""
    return input_dim // 2 + 1


def load(library: str) -> dict[str, Family] | None:
    """Return the flows of a library, or none where it is not installed."""
    try:
        return import_module(f"_peers.{LIBRARIES[library]}").FAMILIES
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != library:
            raise
        return None
