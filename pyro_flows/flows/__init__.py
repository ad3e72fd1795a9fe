"""Recipes: functions that build a flow from its number of coordinates.

Every recipe starts at (or next to) the identity, takes a context by ``context_dim``, and works in
one dimension, where affine transforms have nothing to condition on: their recipes then stack
planar transforms, which bend a single coordinate.
"""

from pyro_flows.flows._options import Recipe
from pyro_flows.flows.autoregressive import iaf, maf
from pyro_flows.flows.continuous import cnf
from pyro_flows.flows.coupling import nice, realnvp
from pyro_flows.flows.image import glow, nice_image, realnvp_image
from pyro_flows.flows.monotone import bnaf, elementwise, naf, nsf, sospf
from pyro_flows.flows.registry import find, register
from pyro_flows.flows.residual import planar, radial, sylvester

__all__ = [
    "Recipe",
    "bnaf",
    "cnf",
    "elementwise",
    "find",
    "glow",
    "iaf",
    "maf",
    "naf",
    "nice",
    "nice_image",
    "nsf",
    "planar",
    "radial",
    "realnvp",
    "realnvp_image",
    "register",
    "sospf",
    "sylvester",
]
