"""Models whose plates hold latents, with their data and what is known of their posteriors."""

import pyro
import pyro.distributions as dist
import torch

NUM_ROWS = 100_000
PRIOR_SD, SPREAD, NOISE = 3.0, 0.9, 0.5


def rows_model(y, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    with pyro.plate("rows", len(y), subsample_size=size) as rows:
        theta = pyro.sample("theta", dist.Normal(mu, SPREAD))
        pyro.sample("y", dist.Normal(theta, NOISE), obs=y[rows])


def rows_posterior(y):
    """Return means, sds, and the log evidence."""
    y, variance = y.double(), SPREAD**2 + NOISE**2
    marginal = dist.MultivariateNormal(
        torch.zeros_like(y), variance * torch.eye(len(y)).double() + PRIOR_SD**2
    )
    of_mu = 1 / (1 / PRIOR_SD**2 + len(y) / variance)
    mean, own = of_mu * y.sum() / variance, SPREAD**2 / variance
    of_theta = own * NOISE**2 + (1 - own) ** 2 * of_mu
    means = {"mu": mean.reshape(1), "theta": own * y + (1 - own) * mean}
    sds = {"mu": torch.tensor([of_mu**0.5]), "theta": torch.full_like(y, of_theta**0.5)}
    return means, sds, float(marginal.log_prob(y))


SCHOOLS = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
)


def schools_model(y, noise):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, noise), obs=y)


def schools_given_spread(y, noise, log_tau):
    """Return the log-density of each log-spread, and what is known of the rest given it.

    That is the mean and the precision of the common mean, and the share of its datum in an effect.
    """
    tau = log_tau[:, None].exp()
    variance = tau**2 + noise**2
    precision = (1 / variance).sum(-1) + 1 / 25
    mean = (y / variance).sum(-1) / precision
    log_p = -0.5 * variance.log().sum(-1) - 0.5 * precision.log()
    log_p = log_p - 0.5 * ((y**2 / variance).sum(-1) - precision * mean**2)
    log_p = log_p + log_tau - torch.log1p((tau[:, 0] / 5) ** 2)
    return log_p, mean, precision, tau**2 / variance


def schools_posterior(y, noise, num=4001):
    """Return means and sds: effects and mean in closed form, the spread by quadrature."""
    y, noise = y.double(), noise.double()
    log_tau = torch.linspace(-14.0, 12.0, num).double()
    log_p, mean, precision, shrink = schools_given_spread(y, noise, log_tau)
    weights, log_tau = log_p.softmax(0), log_tau[:, None]
    theta = shrink * y + (1 - shrink) * mean[:, None]
    within = shrink * noise**2 + (1 - shrink) ** 2 / precision[:, None]

    def moments(first, second):
        expected = (weights[:, None] * first).sum(0)
        return expected, ((weights[:, None] * second).sum(0) - expected**2).sqrt()

    found = {
        "mu": moments(mean[:, None], (mean**2 + 1 / precision)[:, None]),
        "log tau": moments(log_tau, log_tau**2),
        "theta": moments(theta, within + theta**2),
    }
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}


def many_rows_model(y, rows):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("rows", NUM_ROWS, subsample=rows):
        z = pyro.sample("z", dist.Normal(mu, spread))
        pyro.sample("y", dist.Normal(z[..., None], 1.0).to_event(1), obs=y)


def radon_data():
    """Return the group, the predictor and the response of each row."""
    generator = torch.Generator().manual_seed(7)
    shares = torch.rand(85, generator=generator).log().neg() ** 1.5
    groups = torch.cat(
        [torch.arange(85), torch.multinomial(shares, 834, True, generator=generator)]
    )
    floor = (torch.rand(919, generator=generator) < 0.17).float()
    intercept = 1.4 + 0.35 * torch.randn(85, generator=generator)
    slope = -0.7 + 0.25 * torch.randn(85, generator=generator)
    mean = intercept[groups] + slope[groups] * floor
    return groups, floor, mean + 0.75 * torch.randn(919, generator=generator)


def radon_model(groups, floor, y):
    """Centred, as one writes it down."""
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    spreads = pyro.sample("spreads", dist.HalfNormal(torch.ones(2)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("groups", 85):
        effects = pyro.sample("effects", dist.Normal(means, spreads).to_event(1))
    effects = effects.expand(torch.broadcast_shapes(effects.shape, (85, 2)))[..., groups, :]
    mean = effects[..., 0] + effects[..., 1] * floor
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


def whitened_radon_model(groups, floor, y):
    """The same for NUTS, with independent effects."""
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    spreads = pyro.sample("spreads", dist.HalfNormal(torch.ones(2)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("groups", 85):
        white = pyro.sample("white", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    effects = means + spreads * white
    mean = effects[groups, 0] + effects[groups, 1] * floor
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)
