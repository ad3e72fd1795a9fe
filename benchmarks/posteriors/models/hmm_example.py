"""A hidden Markov chain of two states that are seen with normal noise."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import stats

from benchmarks.posteriors.models._hmm import forward, log_marginal
from benchmarks.posteriors.posterior import Posterior, tensors


def model(y):
    theta1 = pyro.sample("theta1", dist.Dirichlet(y.new_ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(y.new_ones(2)))
    ordered = dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,))
    mu = pyro.sample("mu", ordered)
    prior = dist.Normal(y.new_tensor([3.0, 10.0]), 1.0)
    pyro.factor("mu_prior", prior.log_prob(mu).sum(-1))
    log_theta = torch.stack([theta1, theta2], -2).log()
    log_seen = dist.Normal(mu.unsqueeze(-1), 1.0).log_prob(y)
    pyro.factor("y", log_marginal(log_theta, log_seen))


def data(raw):
    return tensors(raw, "y")


def log_density(sites, raw):
    mu = sites["mu"]
    prior = stats.norm.logpdf(mu, [3, 10], 1).sum(-1)
    log_theta = np.log(np.stack([sites["theta1"], sites["theta2"]], 1))
    return prior + forward(log_theta, stats.norm.logpdf(raw["y"], mu[:, :, None], 1))


POSTERIOR = Posterior("hmm_example-hmm_example", model, data, log_density)
