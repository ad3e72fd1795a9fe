"""Effects of coaching in eight schools, as they are (Rubin 1981)."""

import pyro
import pyro.distributions as dist
from scipy import stats

from benchmarks.posteriors.posterior import Posterior, tensors


def model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def data(raw):
    return tensors(raw, "y", "sigma")


def log_density(sites, raw):
    mu, tau, theta = sites["mu"], sites["tau"], sites["theta"]
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
    effects = stats.norm.logpdf(theta, mu[:, None], tau[:, None])
    return prior + (effects + stats.norm.logpdf(raw["y"], theta, raw["sigma"])).sum(-1)


POSTERIOR = Posterior("eight_schools-eight_schools_centered", model, data, log_density)
