"""Log leaf weights of mesquite bushes by their log measures (Gelman & Hill 2007)."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import linear, log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors

MEASURES = ("diam1", "diam2", "canopy_height", "total_height", "density")


def model(log_weight, x):
    flat = dist.ImproperUniform(constraints.real_vector, (), x.shape[-1:])
    beta = pyro.sample("beta", flat)
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("bush", len(log_weight)):
        pyro.sample("log_weight", dist.Normal(linear(x, beta), sigma), obs=log_weight)


def data(raw):
    weight, group, *measures = tensors(raw, "weight", "group", *MEASURES)
    logs = [measure.log() for measure in measures]
    return weight.log(), torch.stack([torch.ones_like(group), *logs, group], -1)


def log_density(sites, raw):
    logs = [np.log(raw[name]) for name in MEASURES]
    return log_likelihood(np.log(raw["weight"]), [1, *logs, raw["group"]], sites)


POSTERIOR = Posterior("mesquite-logmesquite", model, data, log_density)
