"""Conditioners: the networks that turn some coordinates, and a context, into parameters."""

from pyro_flows.nn.convolutional import ConvNet
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.masked import MaskedNet

__all__ = ["ConvNet", "DenseNet", "MaskedNet"]
