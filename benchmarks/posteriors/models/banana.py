"""A banana: ``x1 ~ N(0, 2)`` and ``x2 ~ N((x1^2 - 4) / 2, 1)``."""

import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.posteriors.posterior import Posterior

SCALE = 2.0


def model(scale):
    x1 = pyro.sample("x1", dist.Normal(scale.new_zeros(()), scale))
    pyro.sample("x2", dist.Normal((x1.square() - scale.square()) / 2, 1.0))


def data(raw):
    return (torch.tensor(SCALE, dtype=torch.float64),)


def log_density(sites, raw):
    x1, x2 = sites["x1"], sites["x2"]
    return stats.norm.logpdf(x1, 0, 2) + stats.norm.logpdf(x2, 0.5 * (x1**2 - 4), 1)


def exact(num, rng):
    x1, noise = rng.standard_normal((2, num)) * [[SCALE], [1.0]]
    return {"x1": x1, "x2": (x1**2 - SCALE**2) / 2 + noise}


POSTERIOR = Posterior("banana", model, data, log_density, exact=exact)
