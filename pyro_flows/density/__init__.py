"""Density estimation: flows fitted to data by maximum likelihood."""

from pyro_flows.density import toy
from pyro_flows.density.estimator import FlowDensity
from pyro_flows.density.mle import fit_mle
from pyro_flows.density.result import MleResult

__all__ = ["FlowDensity", "MleResult", "fit_mle", "toy"]
