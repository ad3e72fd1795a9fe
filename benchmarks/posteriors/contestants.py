"""Guides that are fitted to a posterior, each as its users would."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

import pyro_flows as pf
from pyro_flows.infer import LogDensity
from pyro_flows.infer.guides.auto_flow import or_origin
from pyro_flows.infer.guides.latents import constrained_sites
from pyro_flows.infer.importance import pareto_k

NUM_DRAWS = 10_000
RATES = (1e-2, 1e-3)
STEPS, PARTICLES = 5000, 16
# Pyro's default; but its own ways to begin want draws of each prior, which flat ones do not have.
INIT = or_origin(init_to_median)

Args = tuple[Tensor, ...]


class Fitted(NamedTuple):
    """A fitted guide's draws, and what they say.

    Attributes:
        draws: By site, of shape ``(S, *event)``.
        k_hat: Of their importance weights.
        ess: Effective share of the draws.
        elbo: Their mean log-weight.
        elbo_se: Its standard error.
        seconds: Of the fit, the guide's start and the compiling included.
        status: How the fit ended.
    """

    draws: dict[str, Tensor]
    k_hat: float
    ess: float
    elbo: float
    elbo_se: float
    seconds: float
    status: str


def fit_ours(model: Callable[..., Any], args: Args, seed: int, **choice: Any) -> Fitted:
    """Fit the default guide with the default options, or one whose choice is given."""
    began = time.perf_counter()
    guide = pf.AutoFlow(model, **choice)
    result = pf.fit(model, guide, *args, seed=seed, progress=False)
    return fitted(model, guide, args, time.perf_counter() - began, result.status)


def fit_pyros(
    model: Callable[..., Any], args: Args, seed: int, make: Callable[..., Any]
) -> Fitted:
    """Fit a guide of Pyro's at two step sizes, and return the one of the higher ELBO."""
    tries = [_fit_by_svi(model, args, seed, make, rate) for rate in RATES]
    best = max(tries, key=lambda one: -np.inf if np.isnan(one.elbo) else one.elbo)
    return best._replace(seconds=sum(one.seconds for one in tries))


def _fit_by_svi(
    model: Callable[..., Any], args: Args, seed: int, make: Callable[..., Any], rate: float
) -> Fitted:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    began = time.perf_counter()
    guide = make(model)
    loss = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), loss)
    try:
        for _ in range(STEPS):
            svi.step(*args)
    # Whatever comes up in a step ends a user's run.
    except Exception as error:
        return failed(error, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    return fitted(model, guide, args, seconds, f"lr {rate:g}")


def failed(error: Exception, seconds: float) -> Fitted:
    """Return what stands for a fit that ended with an error."""
    return Fitted({}, *[np.nan] * 4, seconds, f"crashed: {type(error).__name__}")


@torch.no_grad()
def fitted(
    model: Callable[..., Any], guide: Any, args: Args, seconds: float, status: str
) -> Fitted:
    """Draw from a fitted guide, and weigh its draws."""
    torch.manual_seed(1)
    if isinstance(guide, AutoNormal):
        # As a joint normal, which it is: by site, it has no density of its draws.
        guide = _joint(model, guide, args)
    posterior = guide.get_posterior()
    z = posterior.rsample((NUM_DRAWS,))
    log_q = posterior.log_prob(z)
    log_p = LogDensity(model, guide, args, {}).at_many(z)
    log_weights = (log_p - log_q).double().numpy()
    draws = constrained_sites(guide, z)
    if not np.isfinite(log_weights).all():
        return Fitted(draws, *[np.nan] * 4, seconds, f"{status}, not finite")
    weights = np.exp(log_weights - log_weights.max())
    ess = weights.sum() ** 2 / (weights**2).sum() / len(weights)
    error = log_weights.std() / len(weights) ** 0.5
    return Fitted(draws, pareto_k(log_weights), ess, log_weights.mean(), error, seconds, status)


def _joint(model: Callable[..., Any], guide: AutoNormal, args: Args) -> AutoContinuous:
    joint = AutoDiagonalNormal(model, init_loc_fn=INIT)
    joint(*args)
    names = [name for name, _ in joint.prototype_trace.iter_stochastic_nodes()]
    joint.loc.data = torch.cat([getattr(guide.locs, name).reshape(-1) for name in names])
    joint.scale = torch.cat([getattr(guide.scales, name).reshape(-1) for name in names])
    return joint


PYROS = {
    "AutoNormal": partial(AutoNormal, init_loc_fn=INIT),
    "AutoMultivariateNormal": partial(AutoMultivariateNormal, init_loc_fn=INIT),
    # Makes no use of an init_loc_fn, and so cannot begin where a prior is flat.
    "AutoIAFNormal": AutoIAFNormal,
}
