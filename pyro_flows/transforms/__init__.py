"""Transforms: bijections with a tractable log-determinant, each a ``TransformModule`` of Pyro."""

from pyro_flows.transforms.actnorm import ActNorm, initialise_from_data
from pyro_flows.transforms.affine import ElementwiseAffine, LowerTriangularAffine
from pyro_flows.transforms.autoregressive import AffineAutoregressive, Autoregressive
from pyro_flows.transforms.base import Conditioned, FlowTransform
from pyro_flows.transforms.block_neural import BlockNeuralAutoregressive
from pyro_flows.transforms.compose import Compose, Inverse
from pyro_flows.transforms.continuous import Continuous, TransportCost
from pyro_flows.transforms.coupling import AdditiveCoupling, AffineCoupling, Coupling
from pyro_flows.transforms.elementwise import Elementwise
from pyro_flows.transforms.graphical import GraphicalAutoregressive, Node
from pyro_flows.transforms.image import InvertibleConv1x1, Pixelwise, Squeeze
from pyro_flows.transforms.linear import LULinear, Orthogonal, QRLinear
from pyro_flows.transforms.multiscale import MultiScale, Partial
from pyro_flows.transforms.neural import DeepSigmoid, NeuralAutoregressive
from pyro_flows.transforms.permute import Permute
from pyro_flows.transforms.planar import Planar
from pyro_flows.transforms.polynomial import PolynomialAutoregressive, SumOfSquares
from pyro_flows.transforms.radial import Radial
from pyro_flows.transforms.sigmoid import Sigmoid
from pyro_flows.transforms.spline import (
    CircularSpline,
    ElementwiseSpline,
    RationalQuadraticSpline,
    SplineAutoregressive,
    SplineCoupling,
)
from pyro_flows.transforms.sylvester import Sylvester
from pyro_flows.transforms.tails import LOFT, LeakyTanh, TailTransform, TukeyH
from pyro_flows.transforms.univariate import Affine, Shift, Univariate

__all__ = [
    "LOFT",
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineAutoregressive",
    "AffineCoupling",
    "Autoregressive",
    "BlockNeuralAutoregressive",
    "CircularSpline",
    "Compose",
    "Conditioned",
    "Continuous",
    "Coupling",
    "DeepSigmoid",
    "Elementwise",
    "ElementwiseAffine",
    "ElementwiseSpline",
    "FlowTransform",
    "GraphicalAutoregressive",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "LeakyTanh",
    "LowerTriangularAffine",
    "MultiScale",
    "NeuralAutoregressive",
    "Node",
    "Orthogonal",
    "Partial",
    "Permute",
    "Pixelwise",
    "Planar",
    "PolynomialAutoregressive",
    "QRLinear",
    "Radial",
    "RationalQuadraticSpline",
    "Shift",
    "Sigmoid",
    "SplineAutoregressive",
    "SplineCoupling",
    "Squeeze",
    "SumOfSquares",
    "Sylvester",
    "TailTransform",
    "TransportCost",
    "TukeyH",
    "Univariate",
    "initialise_from_data",
]
