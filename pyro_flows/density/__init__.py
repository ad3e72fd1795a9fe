"""Density estimation: flows fitted to data, by maximum likelihood or flow matching."""

from pyro_flows.density import toy
from pyro_flows.density.dequantised import Dequantised
from pyro_flows.density.estimator import FlowDensity
from pyro_flows.density.images import ImageDensity
from pyro_flows.density.matching import fit_matching
from pyro_flows.density.mle import fit_mle
from pyro_flows.density.noise import UniformNoise, VariationalNoise
from pyro_flows.density.result import MleResult

__all__ = [
    "Dequantised",
    "FlowDensity",
    "ImageDensity",
    "MleResult",
    "UniformNoise",
    "VariationalNoise",
    "fit_matching",
    "fit_mle",
    "toy",
]
