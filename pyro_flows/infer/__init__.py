"""Inference: guides, start values, the engine, and the fit loop."""

from pyro_flows.infer.guides.auto_flow import AutoFlow
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.infer.guides.plates.guide import AutoPlateFlow
from pyro_flows.infer.importance import pareto_k, psis
from pyro_flows.infer.mcmc import independence_metropolis, neutra
from pyro_flows.infer.particles import Particles, Scores
from pyro_flows.infer.posterior_distribution import PosteriorDistribution
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.saving import load, save
from pyro_flows.infer.training.fit import fit
from pyro_flows.infer.training.loop import StepInfo
from pyro_flows.infer.training.result import FitResult

__all__ = [
    "AutoFlow",
    "AutoPlateFlow",
    "FitResult",
    "LogDensity",
    "Particles",
    "PosteriorDistribution",
    "PosteriorDraws",
    "Scores",
    "Start",
    "StepInfo",
    "fit",
    "independence_metropolis",
    "load",
    "neutra",
    "pareto_k",
    "psis",
    "save",
]
