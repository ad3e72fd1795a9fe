"""A Gaussian process over a line, seen with noise."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.posteriors.posterior import Posterior, tensors


def model(x, y):
    rho = pyro.sample("rho", dist.Gamma(x.new_tensor(25.0), x.new_tensor(4.0)))
    alpha = pyro.sample("alpha", dist.HalfNormal(x.new_tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_tensor(1.0)))
    rho, alpha, sigma = (value[..., None, None] for value in (rho, alpha, sigma))
    smooth = alpha.square() * torch.exp(-0.5 * ((x - x[:, None]) / rho).square())
    covariance = smooth + sigma * torch.eye(len(x)).to(x)
    prior = dist.MultivariateNormal(torch.zeros_like(x), covariance_matrix=covariance)
    pyro.sample("y", prior, obs=y)


def data(raw):
    return tensors(raw, "x", "y")


def log_density(sites, raw):
    rho, alpha, sigma = sites["rho"], sites["alpha"], sites["sigma"]
    prior = stats.gamma.logpdf(rho, 25, scale=1 / 4) + stats.halfnorm.logpdf(alpha, scale=2)
    distances = np.subtract.outer(raw["x"], raw["x"]) ** 2
    likelihood = [
        stats.multivariate_normal.logpdf(
            raw["y"], cov=a**2 * np.exp(-distances / (2 * r**2)) + s * np.eye(len(distances))
        )
        for r, a, s in zip(rho, alpha, sigma, strict=True)
    ]
    return prior + stats.halfnorm.logpdf(sigma) + np.array(likelihood)


POSTERIOR = Posterior("gp_pois_regr-gp_regr", model, data, log_density)
