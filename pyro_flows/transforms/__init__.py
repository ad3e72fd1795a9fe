"""Transforms: bijections with a tractable log-determinant, as Pyro ``TransformModule``s."""

from pyro_flows.transforms.affine import ElementwiseAffine, LowerTriangularAffine
from pyro_flows.transforms.autoregressive import AffineAutoregressive
from pyro_flows.transforms.base import Conditioned, FlowTransform
from pyro_flows.transforms.compose import Compose, Inverse
from pyro_flows.transforms.coupling import AdditiveCoupling, AffineCoupling
from pyro_flows.transforms.permute import Permute
from pyro_flows.transforms.planar import Planar

__all__ = [
    "AdditiveCoupling",
    "AffineAutoregressive",
    "AffineCoupling",
    "Compose",
    "Conditioned",
    "ElementwiseAffine",
    "FlowTransform",
    "Inverse",
    "LowerTriangularAffine",
    "Permute",
    "Planar",
]
