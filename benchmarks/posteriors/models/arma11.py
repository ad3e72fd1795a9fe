"""A time series with one autoregressive and one moving-average term."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.posteriors.posterior import Posterior, tensors


def model(y):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 10.0))
    phi = pyro.sample("phi", dist.Normal(y.new_zeros(()), 2.0))
    theta = pyro.sample("theta", dist.Normal(y.new_zeros(()), 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    with pyro.plate("time", len(y)):
        err = errors(y, mu, phi, theta)
        pyro.sample("y", dist.Normal(y - err, sigma), obs=y)


def errors(y, mu, phi, theta):
    """Solve ``err_t = y_t - mu - phi y_{t-1} - theta err_{t-1}``, where ``y_0 = mu``."""
    first = torch.eye(1, len(y)).to(y).squeeze(0)
    before = torch.nn.functional.pad(y[:-1], (1, 0))
    err = y - mu - phi * (before + first * mu)
    # 1 / (1 + theta B) = (1 - theta B) (1 + theta^2 B^2) (1 + theta^4 B^4) ..., B the lag.
    factor, lag = -theta, 1
    while lag < len(y):
        err = torch.cat([err[..., :lag], err[..., lag:] + factor * err[..., :-lag]], -1)
        factor, lag = factor.square(), 2 * lag
    return err


def data(raw):
    return tensors(raw, "y")


def log_density(sites, raw):
    mu, phi, theta, sigma = (sites[name] for name in ("mu", "phi", "theta", "sigma"))
    before, err, total = mu, np.zeros_like(mu), stats.norm.logpdf(mu, 0, 10)
    total = total + stats.norm.logpdf(phi, 0, 2) + stats.norm.logpdf(theta, 0, 2)
    total = total + stats.halfcauchy.logpdf(sigma, scale=2.5)
    for y in raw["y"]:
        err = y - (mu + phi * before + theta * err)
        before = y
        total = total + stats.norm.logpdf(err, 0, sigma)
    return total


POSTERIOR = Posterior("arma-arma11", model, data, log_density)
