"""Normalizing flows for Bayesian inference in Pyro."""

from pyro_flows import distributions, errors, flows, nn, transforms
from pyro_flows.distributions import Flow
from pyro_flows.errors import (
    CheckpointError,
    DomainError,
    FlowError,
    NonFiniteError,
    NotConvergedError,
    ShapeError,
)

__all__ = [
    "CheckpointError",
    "DomainError",
    "Flow",
    "FlowError",
    "NonFiniteError",
    "NotConvergedError",
    "ShapeError",
    "distributions",
    "errors",
    "flows",
    "nn",
    "transforms",
]
