"""Normalizing flows for Bayesian inference in Pyro."""

from pyro_flows import diagnostics, distributions, errors, flows, infer, nn, transforms
from pyro_flows.diagnostics import diagnose, resample, to_arviz
from pyro_flows.distributions import Flow
from pyro_flows.errors import (
    CheckpointError,
    DomainError,
    FlowError,
    NonFiniteError,
    NotConvergedError,
    ShapeError,
)
from pyro_flows.infer import AutoFlow, FitResult, PosteriorDraws, fit

__all__ = [
    "AutoFlow",
    "CheckpointError",
    "DomainError",
    "FitResult",
    "Flow",
    "FlowError",
    "NonFiniteError",
    "NotConvergedError",
    "PosteriorDraws",
    "ShapeError",
    "diagnose",
    "diagnostics",
    "distributions",
    "errors",
    "fit",
    "flows",
    "infer",
    "nn",
    "resample",
    "to_arviz",
    "transforms",
]
