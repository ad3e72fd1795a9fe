"""Continuous flows: points that move with a velocity, from one time to another."""

from pyro_flows.transforms.continuous.transform import Continuous

__all__ = ["Continuous"]
