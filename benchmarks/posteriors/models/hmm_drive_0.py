"""A basketball player's drives as a hidden Markov chain of two states, seen by two speeds."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import stats

from benchmarks.posteriors.models._hmm import forward, log_marginal
from benchmarks.posteriors.posterior import Posterior, tensors


def model(u, v, alpha):
    theta1 = pyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(alpha[1]))
    ordered = dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,))
    phi = pyro.sample("phi", ordered)
    lambda_ = pyro.sample("lambda", ordered)
    prior = dist.Normal(u.new_tensor([0.0, 3.0]), 1.0)
    pyro.factor("phi_prior", prior.log_prob(phi).sum(-1))
    pyro.factor("lambda_prior", prior.log_prob(lambda_).sum(-1))
    log_theta = torch.stack([theta1, theta2], -2).log()
    log_seen = dist.Exponential(phi.unsqueeze(-1)).log_prob(u)
    log_seen = log_seen + dist.Exponential(lambda_.unsqueeze(-1)).log_prob(v)
    pyro.factor("drives", log_marginal(log_theta, log_seen))


def data(raw):
    return tensors(raw, "u", "v", "alpha")


def log_density(sites, raw):
    rows, rates = (sites["theta1"], sites["theta2"]), (sites["phi"], sites["lambda"])
    total = sum(
        stats.dirichlet.logpdf((row / row.sum(-1, keepdims=True)).T, alpha)
        for row, alpha in zip(rows, raw["alpha"], strict=True)
    )
    total = total + sum(stats.norm.logpdf(rate, [0, 3], 1).sum(-1) for rate in rates)
    log_seen = sum(
        stats.expon.logpdf(raw[name], scale=1 / rate[:, :, None])
        for name, rate in zip(("u", "v"), rates, strict=True)
    )
    return total + forward(np.log(np.stack(rows, 1)), log_seen)


POSTERIOR = Posterior("bball_drive_event_0-hmm_drive_0", model, data, log_density)
