"""Distributions that are modules: a base, and the flow built on it."""

from pyro_flows.distributions.base import DistributionModule, StandardNormal
from pyro_flows.distributions.flow import Flow

__all__ = ["DistributionModule", "Flow", "StandardNormal"]
