"""The bases of flows, by name, with parameters away from where they start."""

import torch
import zoo

from pyro_flows.distributions import (
    Box,
    DiagonalNormal,
    GaussianMixture,
    StandardLogistic,
    StandardNormal,
    StudentT,
)

BASES = {
    "standard_normal": StandardNormal,
    "diagonal_normal": DiagonalNormal,
    "logistic": StandardLogistic,
    "student": StudentT,
    "mixture_one": lambda d: GaussianMixture(d, 1),
    "mixture": lambda d: GaussianMixture(d, 3),
    "box": lambda d: Box(d, low=-1.5, high=torch.linspace(2.0, 3.0, d)),
}
UNBOUNDED = [name for name in BASES if name != "box"]
TRAINED = [name for name in UNBOUNDED if name not in ("standard_normal", "logistic")]


def build(name, d=2, *, dtype=torch.float64, scale=0.4):
    return zoo.randomise(BASES[name](d).to(dtype), scale=scale)


def points(base, *batch, dtype=torch.float64):
    """Return points inside of any of the boxes."""
    return torch.tanh(zoo.points(*batch, base.input_dim, dtype=dtype))


class Scorer(torch.nn.Module):
    """Scores, or draws, as a module's forward, for ``functional_call``."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base.rsample(x) if isinstance(x, tuple) else self.base.log_prob(x)


def prefixed(parameters):
    return {f"base.{key}": value for key, value in parameters.items()}
