"""Neal's funnel in ten dimensions: ``v ~ N(0, 3)`` and nine ``x ~ N(0, exp(v / 2))``."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.posteriors.posterior import Posterior, spread

SCALE, NUM = 3.0, 9


def model(scale):
    v = pyro.sample("v", dist.Normal(scale.new_zeros(()), scale))
    with pyro.plate("coordinate", NUM):
        pyro.sample("x", dist.Normal(scale.new_zeros(()), (v / 2).exp()))


def data(raw):
    return (torch.tensor(SCALE, dtype=torch.float64),)


def log_density(sites, raw):
    v, x = sites["v"], sites["x"]
    coordinates = stats.norm.logpdf(x, 0, np.exp(v / 2)[:, None])
    return stats.norm.logpdf(v, 0, SCALE) + coordinates.sum(-1)


def exact(num, rng):
    v = SCALE * rng.standard_normal(num)
    return spread({"v": v, "x": np.exp(v / 2)[:, None] * rng.standard_normal((num, NUM))})


POSTERIOR = Posterior("funnel", model, data, log_density, exact=exact)
