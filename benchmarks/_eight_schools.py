"""The eight-schools model in its two forms (Rubin 1981)."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyro_flows as pf

REFERENCE = "eight_schools-eight_schools_noncentered"
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def noncentered(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def centered(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def posterior_draws(model, guide, num_draws):
    """Return draws by the names of posteriordb."""
    idata = pf.to_arviz(
        model, guide, Y, SIGMA, num_draws=num_draws, predictive=False, log_likelihood=False, seed=1
    )
    posterior = idata["posterior"]
    theta = np.asarray(posterior["theta"]).reshape(-1, len(Y))
    draws = {f"theta[{j + 1}]": theta[:, j] for j in range(len(Y))}
    return {**draws, **{name: np.asarray(posterior[name]).ravel() for name in ("mu", "tau")}}
