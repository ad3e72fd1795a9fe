"""The flows in Zuko.

Its neural autoregressive flow has another architecture (one monotone network for all coordinates,
with a signal of each) and its rotations are matrix exponentials: neither is comparable.
"""

from functools import partial

import torch
from torch import Tensor
from zuko.flows import GeneralCouplingTransform, MaskedAutoregressiveTransform
from zuko.flows.polynomial import ShiftedSOSPTransform
from zuko.lazy import LazyComposedTransform, UnconditionalTransform
from zuko.transforms import AdditiveTransform, LULinearTransform, MonotonicRQSTransform

from _peers import (
    AUTOREGRESSIVE,
    BOUND,
    COUNT_BINS,
    COUPLINGS,
    DEGREE,
    HIDDEN,
    LINEARS,
    POLYNOMIALS,
    Peer,
    halves,
    orders,
)

SPLINE = {
    "univariate": partial(MonotonicRQSTransform, bound=BOUND),
    "shapes": [(COUNT_BINS,), (COUNT_BINS,), (COUNT_BINS - 1,)],
}
SHIFT = {"univariate": AdditiveTransform, "shapes": [()]}
SQUARES = {"univariate": ShiftedSOSPTransform, "shapes": [(POLYNOMIALS, DEGREE + 1), ()]}


class Lazy(Peer):
    """A chain of Zuko's transforms, called as its flows do."""

    def __init__(self, parts: list) -> None:
        super().__init__([LazyComposedTransform(*parts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points at the other end and the log-determinant."""
        return self.parts[0]().call_and_ladj(x)

    def draw(self, z: Tensor) -> Tensor:
        """Return the points that the cheap direction maps to ``z``."""
        return self.parts[0]().inv(z)


def coupling(input_dim: int, **options) -> Lazy:
    """Return couplings of alternating halves."""
    masks = halves(input_dim, COUPLINGS)
    build = partial(GeneralCouplingTransform, input_dim, hidden_features=HIDDEN, **options)
    return Lazy([build(mask=mask) for mask in masks])


def autoregressive(input_dim: int, count: int = AUTOREGRESSIVE, **options) -> Lazy:
    """Return autoregressive layers with the order reversed between them."""
    build = partial(MaskedAutoregressiveTransform, input_dim, hidden_features=HIDDEN, **options)
    return Lazy([build(order=order) for order in orders(input_dim, count)])


def lu_linear(input_dim: int) -> Lazy:
    """Return linear layers by their LU factors."""
    start = torch.eye(input_dim)
    return Lazy([UnconditionalTransform(LULinearTransform, start) for _ in range(LINEARS)])


FAMILIES = {
    "affine_coupling": coupling,
    "additive_coupling": partial(coupling, **SHIFT),
    "spline_coupling": partial(coupling, **SPLINE),
    "affine_autoregressive": autoregressive,
    "spline_autoregressive": partial(autoregressive, **SPLINE),
    "polynomial": partial(autoregressive, count=1, **SQUARES),
    "lu_linear": lu_linear,
}
