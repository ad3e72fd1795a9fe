"""Density estimation: flows fitted to data by maximum likelihood."""

from pyro_flows.density.mle import fit_mle
from pyro_flows.density.result import MleResult

__all__ = ["MleResult", "fit_mle"]
