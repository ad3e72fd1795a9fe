"""Effects of coaching in eight schools, as offsets from their mean (Rubin 1981)."""

import pyro
import pyro.distributions as dist
from scipy import stats

from benchmarks.posteriors.posterior import Posterior, gather, spread, tensors


def model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(y.new_zeros(()), 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def data(raw):
    return tensors(raw, "y", "sigma")


def log_density(sites, raw):
    mu, tau, theta_trans = sites["mu"], sites["tau"], sites["theta_trans"]
    theta = mu[:, None] + tau[:, None] * theta_trans
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
    effects = stats.norm.logpdf(theta_trans) + stats.norm.logpdf(raw["y"], theta, raw["sigma"])
    return prior + effects.sum(-1)


def sites(columns, raw):
    found = gather(columns, raw)
    mu, tau, theta = found["mu"], found["tau"], found["theta"]
    return {"mu": mu, "tau": tau, "theta_trans": (theta - mu[:, None]) / tau[:, None]}


def columns(sites):
    mu, tau = sites["mu"], sites["tau"]
    theta = mu[:, None] + tau[:, None] * sites["theta_trans"]
    return spread({"theta": theta, "mu": mu, "tau": tau})


POSTERIOR = Posterior(
    "eight_schools-eight_schools_noncentered", model, data, log_density, sites, columns
)
