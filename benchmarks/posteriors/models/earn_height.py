"""Earnings by height (Gelman & Hill 2007)."""

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(earn, height):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    b1, b2 = beta.unbind(-1)
    with pyro.plate("person", len(earn)):
        pyro.sample("earn", dist.Normal(b1 + b2 * height, sigma), obs=earn)


def data(raw):
    return tensors(raw, "earn", "height")


def log_density(sites, raw):
    return log_likelihood(raw["earn"], (1, raw["height"]), sites)


POSTERIOR = Posterior("earnings-earn_height", model, data, log_density)
