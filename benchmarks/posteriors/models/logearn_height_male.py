"""Log earnings by height and sex (Gelman & Hill 2007)."""

import numpy as np
import pyro
import pyro.distributions as dist
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(log_earn, height, male):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    b1, b2, b3 = beta.unbind(-1)
    with pyro.plate("person", len(log_earn)):
        mean = b1 + b2 * height + b3 * male
        pyro.sample("log_earn", dist.Normal(mean, sigma), obs=log_earn)


def data(raw):
    earn, height, male = tensors(raw, "earn", "height", "male")
    return earn.log(), height, male


def log_density(sites, raw):
    return log_likelihood(np.log(raw["earn"]), (1, raw["height"], raw["male"]), sites)


POSTERIOR = Posterior("earnings-logearn_height_male", model, data, log_density)
