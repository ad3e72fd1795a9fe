"""Guides and flows in files: saved whole, and refused where they are not what is expected.

A guide's file holds the tensors of its flow, the recipe's name and options, and the latents by
name, shape and support. Nothing in it is executed: a recipe is found among the registered ones, or
brought by the caller. A few draws with their densities tell whether what was built is what was
saved.
"""

from pyro_flows.infer.saving.read import load
from pyro_flows.infer.saving.write import save

__all__ = ["load", "save"]
