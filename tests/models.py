"""Models for the tests, with closed forms where there are any."""

import math

import pyro
import pyro.distributions as dist
import torch

import pyro_flows as pf
from pyro_flows.infer import LogDensity

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


def correlated_model():
    """Scales, a correlation, weights on a simplex, and a vector that all of them spread."""
    scales = pyro.sample("scales", dist.HalfCauchy(torch.ones(3)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    prior = dist.MultivariateNormal(torch.zeros(3), scale_tril=scales[..., None] * factor)
    z = pyro.sample("z", prior)
    pyro.sample("y", dist.StudentT(4.0, (weights * z).sum(-1), 1.0), obs=torch.tensor(0.5))


def hierarchical_model(y):
    """Eight schools, with as many schools and pupils as ``y`` has rows and columns."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(5.0))
    with pyro.plate("schools", y.shape[0], dim=-2):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        with pyro.plate("pupils", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def scaled_model(x, y):
    """The regression with a latent scale."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), PRIOR_SD).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), x.new_tensor(2.0)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), scale), obs=y)


def subsampled_model(y):
    """The normal model on a fifth of the data, drawn anew in each run."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), PRIOR_SD))
    with pyro.plate("data", len(y), subsample_size=len(y) // 5) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def hidden_markov_model(y):
    """Two hidden states, summed over by the forward recursion."""
    stay = pyro.sample("stay", dist.Beta(torch.tensor([8.0, 8.0]), 2.0).to_event(1))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    moves = torch.stack([stay, 1 - stay], -1).log()
    moves = torch.stack([moves[..., 0, :], moves[..., 1, :].flip(-1)], -2)
    seen = dist.Normal(means[..., None, :], 1.0).log_prob(y[:, None])
    alpha = seen[..., 0, :] - math.log(2)
    for t in range(1, len(y)):
        alpha = (alpha[..., None] + moves).logsumexp(-2) + seen[..., t, :]
    pyro.factor("y", alpha.logsumexp(-1))


def decoder_data(num=12):
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(4))


class Decoder(pyro.nn.PyroModule):
    """A variational autoencoder with a dropout, and its guide, under ``pyro.module``."""

    def __init__(self):
        super().__init__()
        linear, relu, dropout = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
        self.decoder = torch.nn.Sequential(linear(2, 6), relu(), dropout(0.3), linear(6, 5))
        self.encoder = torch.nn.Sequential(linear(5, 6), relu(), linear(6, 4))

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def ready(model, *args, **options):
    """Return a guide that is set up."""
    guide = pf.AutoFlow(model, **options)
    guide.initialise(*args)
    return guide


def draws_of(guide, num, *args, nesting):
    """Return ``num`` draws of each site, flattened to ``(num, -1)``."""
    with torch.no_grad(), pyro.plate("draws", num, dim=-1 - nesting):
        return {name: value.reshape(num, -1) for name, value in guide(*args).items()}


def density_of(model, *args):
    """Return a log-density over the unconstrained latents of a model."""
    guide = pf.AutoFlow(model, start="prior")
    guide.initialise(*args)
    return LogDensity(model, guide, args, {})
