"""Diagnostics: what a fitted guide says, in the form that other tools read."""

from pyro_flows.diagnostics.arviz import to_arviz

__all__ = ["to_arviz"]
