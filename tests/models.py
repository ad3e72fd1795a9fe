"""Models for the tests, with closed forms where there are any."""

import math

import pyro
import pyro.distributions as dist
import torch

import pyro_flows as pf

PRIOR_SD = 3.0


def normal_data(num=20, mean=2.0, dtype=torch.float32):
    return mean + torch.randn(num, generator=torch.Generator().manual_seed(1)).to(dtype)


def normal_model(y):
    """y_i ~ N(mu, 1), mu ~ N(0, 3)."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), PRIOR_SD))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal_posterior(y):
    """Return the posterior's mean and sd, and the log evidence."""
    y = y.double()
    variance = 1 / (1 / PRIOR_SD**2 + len(y))
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), torch.eye(len(y)).double() + PRIOR_SD**2
    )
    return float(variance * y.sum()), math.sqrt(variance), float(marginal.log_prob(y))


def regression_data(num=40, dim=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, dim, generator=generator)
    # Nearly collinear, and of different sizes, as real columns are.
    x = (x @ torch.tril(torch.ones(dim, dim))) * torch.logspace(-1, 1, dim)
    y = x @ torch.linspace(-1, 1, dim) + torch.randn(num, generator=generator)
    return x.to(dtype), y.to(dtype)


def regression_model(x, y):
    """y ~ N(x beta, 1), beta ~ N(0, 3)."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), PRIOR_SD).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), 1.0), obs=y)


def single_draw_regression_model(x, y):
    """The same, written for one draw: it fails under a particle plate."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), PRIOR_SD).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def regression_posterior(x, y):
    """Return the posterior's mean and covariance, and the log evidence."""
    x, y = x.double(), y.double()
    dim = x.shape[-1]
    covariance = torch.linalg.inv(x.T @ x + torch.eye(dim).double() / PRIOR_SD**2)
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), torch.eye(len(y)).double() + PRIOR_SD**2 * x @ x.T
    )
    return covariance @ x.T @ y, covariance, float(marginal.log_prob(y))


def constrained_model():
    """Every kind of support that a guide must unconstrain, with plates and no data."""
    pyro.sample("interval", dist.Beta(2.0, 5.0))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("outer", 2, dim=-2):
        positive = pyro.sample("positive", dist.Gamma(3.0, 2.0))
        with pyro.plate("inner", 3, dim=-1):
            pyro.sample("real", dist.Normal(positive, 1.0))
    pyro.sample("correlation", dist.LKJCholesky(3, torch.tensor(2.0)))


def ready(model, *args, **options):
    """Return a guide that is set up."""
    guide = pf.AutoFlow(model, **options)
    guide.initialise(*args)
    return guide


def draws_of(guide, num, *args, nesting):
    """Return ``num`` draws of each site, flattened to ``(num, -1)``."""
    with torch.no_grad(), pyro.plate("draws", num, dim=-1 - nesting):
        return {name: value.reshape(num, -1) for name, value in guide(*args).items()}
