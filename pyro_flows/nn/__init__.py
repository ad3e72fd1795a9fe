"""Conditioners, which turn coordinates and a context into parameters; and fields of velocities."""

from pyro_flows.nn.convolutional import ConvNet
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.field import Field
from pyro_flows.nn.layered import GatedNet, TimeNet
from pyro_flows.nn.masked import MaskedNet
from pyro_flows.nn.potential import PotentialNet

__all__ = ["ConvNet", "DenseNet", "Field", "GatedNet", "MaskedNet", "PotentialNet", "TimeNet"]
