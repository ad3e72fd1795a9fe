"""Leaf weights of mesquite bushes by their measures (Gelman & Hill 2007)."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import linear, log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors

MEASURES = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")


def model(weight, x):
    flat = dist.ImproperUniform(constraints.real_vector, (), x.shape[-1:])
    beta = pyro.sample("beta", flat)
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("bush", len(weight)):
        pyro.sample("weight", dist.Normal(linear(x, beta), sigma), obs=weight)


def data(raw):
    weight, *measures = tensors(raw, "weight", *MEASURES)
    return weight, torch.stack([torch.ones_like(weight), *measures], -1)


def log_density(sites, raw):
    return log_likelihood(raw["weight"], [1, *(raw[name] for name in MEASURES)], sites)


POSTERIOR = Posterior("mesquite-mesquite", model, data, log_density)
