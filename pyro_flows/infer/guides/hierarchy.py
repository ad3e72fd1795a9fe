"""Latents that the priors of other latents depend on, and transforms that follow them."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows.infer.random import aside
from pyro_flows.transforms import AffineCoupling

logger = logging.getLogger("pyro_flows")

# Far above what a scale in a hierarchy needs: it varies by a factor of exp(5) or so.
LOG_SCALE_BOUND = 10.0

Parents = Mapping[str, frozenset[str]]


def prior_parents(
    model: Callable[..., Any],
    trace: poutine.Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Parents:
    """Return for each latent the latents whose values its prior is given.

    None have any where the model does not run on tensors that note where they come from.

    Args:
        model: The model.
        trace: Holds a value for each latent, as not every prior has draws.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
    """
    try:
        with aside(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
            with TrackProvenance():
                replayed = poutine.trace(poutine.replay(model, trace=trace))
                sites = replayed.get_trace(*args, **kwargs).nodes.items()
            return {name: _parents(site) for name, site in sites if _latent(site)}
    except Exception as error:  # whatever a model may say to them
        logger.info("AutoFlow: does not see which latents depend on which, since %s", error)
        return {}


def _latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _parents(site: Any) -> frozenset[str]:
    log_prob = site["fn"].log_prob(detach_provenance(site["value"]))
    return frozenset(get_provenance(log_prob)) - {site["name"]}


def hierarchical_couplings(parents: Parents, sizes: Mapping[str, int]) -> list[AffineCoupling]:
    r"""Return couplings whose log-scales and shifts are linear in the latents that others follow.

    .. math:: y_A = x_A, \qquad y_B = x_B \exp(W x_A) + V x_A

    Of a scale and the effects under it, say, the posterior is a funnel, whose effects have a
    log-scale linear in that of their prior. The first coupling keeps all parents, the second those
    without parents; one of them where these are the same, none where no latent has parents.

    Args:
        parents: For each latent the latents whose values its prior is given.
        sizes: The number of unconstrained coordinates of each latent, in their order.

    Reference:
        Betancourt & Girolami (2015), *Hamiltonian Monte Carlo for hierarchical models*, section
        3; Ko & Domke (2025), *Model-informed flows for Bayesian inference*.
    """
    followed: frozenset[str] = frozenset().union(*parents.values()) & set(sizes)
    roots = frozenset(name for name in followed if not parents[name])
    masks = [_mask(names, sizes) for names in dict.fromkeys([followed, roots])]
    return [
        AffineCoupling(len(mask), mask=mask, hidden_dims=(), log_scale_bound=LOG_SCALE_BOUND)
        for mask in masks
        if bool(mask.any()) and not bool(mask.all())
    ]


def _mask(names: frozenset[str], sizes: Mapping[str, int]) -> Tensor:
    return torch.cat([torch.full((size,), name in names) for name, size in sizes.items()])
