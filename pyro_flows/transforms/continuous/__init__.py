"""Continuous flows: points that move with a velocity, from one time to another."""

from pyro_flows.transforms.continuous.cost import TransportCost, billed, check_penalty
from pyro_flows.transforms.continuous.exactness import exact_traces
from pyro_flows.transforms.continuous.transform import BASE_TIME, DATA_TIME, Continuous

__all__ = [
    "BASE_TIME",
    "DATA_TIME",
    "Continuous",
    "TransportCost",
    "billed",
    "check_penalty",
    "exact_traces",
]
