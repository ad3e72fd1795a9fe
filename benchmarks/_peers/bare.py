"""The conditioners' networks by themselves: what no library that uses them can be faster than.

Plain ``torch.nn.Linear`` and relu, without masks; the output of a network feeds the next.
"""

from functools import partial

from torch import Tensor, nn

from _peers import (
    AUTOREGRESSIVE,
    COUPLINGS,
    DEGREE,
    HIDDEN,
    POLYNOMIALS,
    SPLINE_PARAMS,
    UNITS,
    Peer,
)


class Bare(Peer):
    """A chain of networks that stands where a flow would."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what has the points' shape, and zeros."""
        input_dim = x.shape[-1]
        for part in self.parts:
            x = part(x[:, : part[0].in_features])
        return x[:, :input_dim], x.new_zeros(len(x))


def net(input_dim: int, output_dim: int) -> nn.Sequential:
    """Return a network with two hidden layers."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Linear(input_dim, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, output_dim),
    )


def coupling(num_params: int, input_dim: int) -> Bare:
    """Return the networks of couplings of halves."""
    half = input_dim // 2
    return Bare([net(half, num_params * half) for _ in range(COUPLINGS)])


def autoregressive(num_params: int, input_dim: int, count: int = AUTOREGRESSIVE) -> Bare:
    """Return the networks of autoregressive layers."""
    return Bare([net(input_dim, num_params * input_dim) for _ in range(count)])


FAMILIES = {
    "affine_coupling": partial(coupling, 2),
    "additive_coupling": partial(coupling, 1),
    "spline_coupling": partial(coupling, SPLINE_PARAMS),
    "affine_autoregressive": partial(autoregressive, 2),
    "spline_autoregressive": partial(autoregressive, SPLINE_PARAMS),
    "neural": partial(autoregressive, 3 * UNITS),
    "polynomial": partial(autoregressive, (DEGREE + 1) * POLYNOMIALS, count=1),
}
