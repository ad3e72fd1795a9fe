"""Transforms: bijections with a tractable log-determinant, as Pyro ``TransformModule``s."""

from pyro_flows.transforms.affine import ElementwiseAffine, LowerTriangularAffine
from pyro_flows.transforms.autoregressive import AffineAutoregressive, Autoregressive
from pyro_flows.transforms.base import Conditioned, FlowTransform
from pyro_flows.transforms.compose import Compose, Inverse
from pyro_flows.transforms.coupling import AdditiveCoupling, AffineCoupling, Coupling
from pyro_flows.transforms.elementwise import Elementwise
from pyro_flows.transforms.permute import Permute
from pyro_flows.transforms.planar import Planar
from pyro_flows.transforms.univariate import Affine, Shift, Univariate

__all__ = [
    "AdditiveCoupling",
    "Affine",
    "AffineAutoregressive",
    "AffineCoupling",
    "Autoregressive",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "ElementwiseAffine",
    "FlowTransform",
    "Inverse",
    "LowerTriangularAffine",
    "Permute",
    "Planar",
    "Shift",
    "Univariate",
]
