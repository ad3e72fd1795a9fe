"""Models whose plates hold latents, for the tests; with closed forms where there are any."""

import pyro
import pyro.distributions as dist
import torch

NUM, PRIOR_SD, SPREAD, NOISE = 60, 3.0, 0.9, 0.5


def rows_data(num=NUM, dtype=torch.float32):
    noise = torch.randn(num, generator=torch.Generator().manual_seed(3))
    return (1.5 + (SPREAD**2 + NOISE**2) ** 0.5 * noise).to(dtype)


def rows_model(y, size=None, members=None):
    """y_n ~ N(theta_n, NOISE), theta_n ~ N(mu, SPREAD), mu ~ N(0, PRIOR_SD)."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), PRIOR_SD))
    with pyro.plate("rows", len(y), subsample_size=size, subsample=members) as rows:
        theta = pyro.sample("theta", dist.Normal(mu, SPREAD))
        pyro.sample("y", dist.Normal(theta, NOISE), obs=y[rows])


def rows_posterior(y):
    """Return means and sds of mu and theta, and the log evidence."""
    y = y.double()
    variance = SPREAD**2 + NOISE**2
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), variance * torch.eye(len(y)).double() + PRIOR_SD**2
    )
    of_mu = 1 / (1 / PRIOR_SD**2 + len(y) / variance)
    mean = of_mu * y.sum() / variance
    own = SPREAD**2 / variance
    of_theta = own * NOISE**2 + (1 - own) ** 2 * of_mu
    sds = torch.full_like(y, of_theta**0.5)
    means = {"mu": mean.reshape(1), "theta": own * y + (1 - own) * mean}
    return means, {"mu": torch.tensor([of_mu**0.5]), "theta": sds}, float(marginal.log_prob(y))


def funnel_model(y):
    """Rows with a scale of their prior that is not known."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, spread))
        pyro.sample("y", dist.Normal(theta, NOISE), obs=y)


def every_support(size=None):
    """Several latents of a member, of every kind that is to be unconstrained, beside data."""
    scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("rows", 6, subsample_size=size):
        level = pyro.sample("level", dist.Normal(0.0, scale))
        pyro.sample("shares", dist.Dirichlet(10 * weights))
        pyro.sample(
            "cuts",
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
            ),
        )
        pyro.sample("seen", dist.Normal(level, 1.0), obs=torch.tensor(0.5))


def nested_model(y):
    """Classes within schools; the inner plate is the left one."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("schools", y.shape[1], dim=-1):
        school = pyro.sample("school", dist.Normal(mean, 1.0))
        with pyro.plate("classes", y.shape[0], dim=-2):
            room = pyro.sample("room", dist.Normal(school, 0.5))
            pyro.sample("y", dist.Normal(room, 0.3), obs=y)


def crossed_model(y):
    """Users and items, and a latent in each cell."""
    users = pyro.plate("users", y.shape[0], dim=-2)
    items = pyro.plate("items", y.shape[1], dim=-1)
    with users:
        user = pyro.sample("user", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with items:
        item = pyro.sample("item", dist.Normal(0.0, 1.0))
    with users, items:
        cell = pyro.sample("cell", dist.Normal(user.sum(-1) + item, 0.5))
        pyro.sample("y", dist.Normal(cell, 0.5), obs=y)


def features_model(y):
    """Rows, of whose latents some stand in plates to the left and to the right besides."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), dim=-2):
        with pyro.plate("right", 3, dim=-1):
            inner = pyro.sample("inner", dist.Normal(shift, 1.0))
            pyro.sample("seen_inner", dist.Normal(inner, 1.0), obs=y[:, None])
        with pyro.plate("left", 2, dim=-3):
            outer = pyro.sample("outer", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("seen_outer", dist.Normal(outer.sum(-1), 1.0), obs=y[:, None])


class Encoder(torch.nn.Module):
    """Tells of each row its datum, and something of it that is learned."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )

    def forward(self, rows, y, *args, **kwargs):
        return torch.cat([y[rows, None], self.net(y[rows, None])], -1)
