"""MCMC that a fitted guide makes easy: NUTS in a flow's space, and a flow as proposal."""

from pyro_flows.infer.mcmc.metropolis import independence_metropolis
from pyro_flows.infer.mcmc.neutra import neutra

__all__ = ["independence_metropolis", "neutra"]
