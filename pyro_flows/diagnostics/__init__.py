"""Diagnostics: what a fitted guide says, and whether to trust it."""

from pyro_flows.diagnostics.arviz import to_arviz
from pyro_flows.diagnostics.diagnose import diagnose, k_hat_threshold
from pyro_flows.diagnostics.report import Report, SiteCheck
from pyro_flows.diagnostics.resampling import resample

__all__ = ["Report", "SiteCheck", "diagnose", "k_hat_threshold", "resample", "to_arviz"]
