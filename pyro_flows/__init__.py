"""Normalizing flows for Bayesian inference in Pyro."""

from pyro_flows import (
    density,
    diagnostics,
    distributions,
    errors,
    flows,
    infer,
    nn,
    transforms,
)
from pyro_flows.diagnostics import calibrate, diagnose, plots, resample, to_arviz
from pyro_flows.distributions import Flow
from pyro_flows.errors import (
    CheckpointError,
    DomainError,
    FlowError,
    NonFiniteError,
    NotConvergedError,
    ShapeError,
)
from pyro_flows.infer import (
    AutoFlow,
    AutoPlateFlow,
    FitResult,
    PosteriorDraws,
    fit,
    independence_metropolis,
    load,
    neutra,
    save,
)

__all__ = [
    "AutoFlow",
    "AutoPlateFlow",
    "CheckpointError",
    "DomainError",
    "FitResult",
    "Flow",
    "FlowError",
    "NonFiniteError",
    "NotConvergedError",
    "PosteriorDraws",
    "ShapeError",
    "calibrate",
    "density",
    "diagnose",
    "diagnostics",
    "distributions",
    "errors",
    "fit",
    "flows",
    "independence_metropolis",
    "infer",
    "load",
    "neutra",
    "nn",
    "plots",
    "resample",
    "save",
    "to_arviz",
    "transforms",
]
