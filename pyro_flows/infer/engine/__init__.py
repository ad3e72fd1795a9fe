"""The engine: one step of a fit, as Python runs it, as a graph, or as native code."""

from pyro_flows.infer.engine.flat import FlatParameters
from pyro_flows.infer.engine.ladder import RUNGS, Engine, Rung
from pyro_flows.infer.engine.step import Batch, Loss, Objective, StepFunction, clipped

__all__ = [
    "RUNGS",
    "Batch",
    "Engine",
    "FlatParameters",
    "Loss",
    "Objective",
    "Rung",
    "StepFunction",
    "clipped",
]
