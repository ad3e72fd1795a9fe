"""Inference: guides, start values, the engine, and the fit loop."""

from pyro_flows.infer.fit import fit
from pyro_flows.infer.guide import AutoFlow
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.log_density import LogDensity
from pyro_flows.infer.loop import StepInfo
from pyro_flows.infer.particles import Particles, Scores
from pyro_flows.infer.result import FitResult
from pyro_flows.infer.start import Start

__all__ = [
    "AutoFlow",
    "FitResult",
    "LogDensity",
    "Particles",
    "Scores",
    "Start",
    "StepInfo",
    "fit",
    "pareto_k",
]
