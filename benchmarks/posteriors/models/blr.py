"""A linear regression on five columns that are nearly collinear."""

import numpy as np
import pyro
import pyro.distributions as dist
from scipy import stats

from benchmarks.posteriors.models._regression import linear, log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(x, y):
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_tensor(10.0)))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(linear(x, beta), sigma), obs=y)


def data(raw):
    return tensors(raw, "X", "y")


def log_density(sites, raw):
    prior = stats.norm.logpdf(sites["beta"], 0, 10).sum(-1)
    prior = prior + stats.halfnorm.logpdf(sites["sigma"], scale=10)
    return prior + log_likelihood(raw["y"], np.array(raw["X"]).T, sites)


POSTERIOR = Posterior("sblrc-blr", model, data, log_density)
