"""Distributions that are modules: bases, and the flow built on them."""

from pyro_flows.distributions.base import BaseDistribution, DistributionModule
from pyro_flows.distributions.box import Box
from pyro_flows.distributions.flow import Flow
from pyro_flows.distributions.logistic import StandardLogistic
from pyro_flows.distributions.mixture import GaussianMixture
from pyro_flows.distributions.normal import DiagonalNormal, StandardNormal
from pyro_flows.distributions.student import StudentT

__all__ = [
    "BaseDistribution",
    "Box",
    "DiagonalNormal",
    "DistributionModule",
    "Flow",
    "GaussianMixture",
    "StandardLogistic",
    "StandardNormal",
    "StudentT",
]
