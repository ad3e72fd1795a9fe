"""Diagnostics: what a fitted guide says, and whether to trust it."""

from pyro_flows.diagnostics import plots
from pyro_flows.diagnostics.arviz import to_arviz
from pyro_flows.diagnostics.calibration.calibrate import calibrate
from pyro_flows.diagnostics.calibration.result import Calibration
from pyro_flows.diagnostics.diagnose import diagnose, k_hat_threshold
from pyro_flows.diagnostics.report import Report, SiteCheck
from pyro_flows.diagnostics.resampling import resample

__all__ = [
    "Calibration",
    "Report",
    "SiteCheck",
    "calibrate",
    "diagnose",
    "k_hat_threshold",
    "plots",
    "resample",
    "to_arviz",
]
