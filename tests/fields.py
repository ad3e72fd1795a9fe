"""Fields of the tests of continuous flows."""

import torch
import zoo

from pyro_flows.nn import Field, GatedNet, PotentialNet, TimeNet

KINDS = {"time": TimeNet, "gated": GatedNet, "potential": PotentialNet}


class Linear(Field):
    """dz/dt = A z, whose trace is left to the products."""

    def __init__(self, matrix, context_dim=0):
        super().__init__(len(matrix), context_dim=context_dim)
        self.matrix = torch.nn.Parameter(matrix)

    def forward(self, t, z, context=None):
        """Return the velocity."""
        return z @ self.matrix.T


class Times(Field):
    """Each coordinate's velocity is a function of it and the time."""

    def __init__(self, rate, input_dim=2):
        super().__init__(input_dim)
        self.rate = rate

    def forward(self, t, z, context=None):
        """Return the velocity."""
        return self.rate(t, z)


def matrix(d=3):
    """Return a random matrix."""
    return zoo.points(d, d, scale=0.7, seed=3)


def net(d=3, c=0, kind="time", **options):
    """Return a network away from zero, in float64."""
    field = KINDS[kind](d, context_dim=c, **{"hidden_dims": (8, 6), **options}).double()
    # What a potential's gradient moves, its weights do twice over.
    return zoo.randomise(field, scale=0.3 if kind == "potential" else 0.5)
