"""Chains against what is known of a posterior, and what a run must leave alone."""

import contextlib
import functools

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from models import constrained_model, ready
from pyro import poutine

LARGEST_Z = 4.0


def largest_z(values, mean, sd):
    """Return the largest error of means and sds, in standard errors by the effective sample size.

    Args:
        values: Of shape ``(chains, draws, *)``.
        mean: The posterior's, of the shape of one draw.
        sd: Likewise.
    """
    data = az.convert_to_dataset({"x": values.double().numpy()})
    found = data["x"].mean(("chain", "draw")), data["x"].std(("chain", "draw"))
    errors = (
        (found[0].values - np.asarray(mean)) / az.mcse(data, method="mean")["x"].values,
        (found[1].values - np.asarray(sd)) / az.mcse(data, method="sd")["x"].values,
    )
    return float(np.max(np.abs(errors)))


def log_p_of(model, draws, chain, draw, *args):
    """Return the log-density of a model at one draw, by Pyro alone."""
    values = {name: value[chain, draw] for name, value in draws.sites.items()}
    return poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum()


@functools.cache
def constrained_guide():
    return ready(constrained_model, flow="planar", start="prior")


def in_support(draws):
    """Whether every draw of ``constrained_model`` is where its prior lives."""
    supports = {
        "interval": dist.constraints.unit_interval,
        "simplex": dist.constraints.simplex,
        "positive": dist.constraints.positive,
        "real": dist.constraints.real,
        "correlation": dist.constraints.corr_cholesky,
    }
    assert set(supports) == set(draws.sites)
    return all(bool(supports[name].check(value).all()) for name, value in draws.sites.items())


@contextlib.contextmanager
def left_alone(guide):
    """Check that a run with a seed puts everything back that it changes."""

    def state():
        return (
            torch.get_rng_state().tolist(),
            [parameter.requires_grad for parameter in guide.parameters()],
            [part.training for part in guide.modules()],
            [parameter.tolist() for parameter in guide.parameters()],
            list(pyro.get_param_store()),
            torch.distributions.Distribution._validate_args,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        )

    before = state()
    yield
    assert state() == before


def hidden_latent(y):
    """A latent that no guide of ``normal_model`` draws."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + shift, 1.0), obs=y)


def with_dropout(y):
    """The normal model with a likelihood that changes from run to run."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    kept = torch.nn.functional.dropout(torch.ones(len(y)), 0.5)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu * kept, 1.0), obs=y)


def above(limit):
    """Return a model of a standard normal, cut off below a limit."""

    def model():
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("cut", torch.where(a > limit, 0.0, -torch.inf))

    return model


def standard_normal():
    pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
