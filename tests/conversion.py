"""Conversions for the tests of to_arviz, and how to look at them under any ArviZ."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_flows.diagnostics import to_arviz


def draw_once(model, *args, **options):
    """Convert a few draws of a guide that nobody fitted."""
    return to_arviz(model, AutoNormal(model), *args, **{"num_draws": 4, "seed": 0, **options})


def group_names(idata):
    """Return the names of the groups."""
    names = idata.groups() if callable(idata.groups) else idata.groups
    return {name.strip("/") for name in names} - {""}


def dims_of(idata, group="posterior"):
    """Return the dims of each variable, but for chain and draw."""
    return {name: array.dims[2:] for name, array in idata[group].data_vars.items()}


def named_model(name):
    """Return a model of one vector of that name."""

    def model():
        pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return model
