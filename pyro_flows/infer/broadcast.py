"""Whether a guide and a model can run for many particles at once, found by trying.

A model that was written for one draw may fail under a particle plate, or broadcast wrongly without
a word. So every site's log-density is compared, entry by entry, with that of single particles.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows.errors import FlowError
from pyro_flows.infer.tracer import Site, Tracer, check_latents, sample_sites, subsample_sites

_NUM = 3
# Draws of a narrow guide are alike, and a model that mixes them would hardly show.
_SPREAD = 10.0


class Broadcast(NamedTuple):
    """What broadcasts over particles.

    Attributes:
        guide: Whether the guide does.
        model: Whether the model does.
        reason: Why not, in words; empty if both do.
    """

    guide: bool
    model: bool
    reason: str


@torch.no_grad()
def check_broadcast(tracer: Tracer) -> Broadcast:
    """Run guide and model for a few particles at once and one by one, and compare.

    Args:
        tracer: Runs both.

    Raises:
        DomainError: The model has latents in some draws that the guide lacks.
    """
    with pyro.validation_enabled(False):
        trouble = _trouble(_compare_guide, tracer)
        if trouble:
            return Broadcast(False, False, f"the guide {trouble}")
        trouble = _trouble(_compare_model, tracer)
        return Broadcast(True, not trouble, trouble and f"the model {trouble}")


def _trouble(compare: Callable[[Tracer], str | None], tracer: Tracer) -> str:
    try:
        differing = compare(tracer)
    except FlowError:
        raise
    except Exception as error:  # whatever a model may raise under a plate
        first_line = str(error).partition("\n")[0]
        return f"fails under a particle plate ({type(error).__name__}: {first_line})"
    return f"mixes its particles at the site {differing!r}" if differing else ""


def _compare_guide(tracer: Tracer) -> str | None:
    drawn = tracer.trace(tracer.over_particles(tracer.guide, _NUM))
    # Both sides score given values, so that rounding in a round trip is no difference.
    plated = tracer.replay(tracer.over_particles(tracer.guide, _NUM), drawn)
    looped = [tracer.replay(tracer.guide, one) for one in tracer.split(drawn, _NUM)]
    return _differing_site(tracer, plated, looped)


def _compare_model(tracer: Tracer) -> str | None:
    drawn = tracer.trace(tracer.over_particles(tracer.guide, _NUM))
    spread = _spread(tracer, drawn)
    plated = tracer.replay(tracer.over_particles(tracer.model, _NUM), spread)
    ones = tracer.split(spread, _NUM)
    for one in ones:
        # What the model subsamples by itself must be the same on both sides.
        one.nodes.update(subsample_sites(plated))
    looped = [tracer.replay(tracer.model, one) for one in ones]
    for one, trace in zip(ones, looped, strict=True):
        check_latents(one, trace)
    return _differing_site(tracer, plated, looped)


def _spread(tracer: Tracer, guide_trace: poutine.Trace) -> poutine.Trace:
    """Pull the particles apart, in the unconstrained space of each latent."""
    spread, model_sites = guide_trace.copy(), tracer.single[1].nodes
    for site in sample_sites(guide_trace):
        name = site["name"]
        if name not in model_sites or not tracer.has_particles(site):
            continue
        model_site: Site = model_sites[name]
        if model_site["fn"].support.is_discrete:
            continue
        transform = biject_to(model_site["fn"].support)
        unconstrained = transform.inv(site["value"])
        centre = unconstrained.mean(0)
        target: Site = site.copy()
        target["value"] = transform(centre + _SPREAD * (unconstrained - centre))
        spread.nodes[name] = target
    return spread


def _differing_site(
    tracer: Tracer, plated: poutine.Trace, looped: list[poutine.Trace]
) -> str | None:
    """Return the first site whose log-density is not that of single particles, or none."""
    for trace in (plated, *looped):
        trace.compute_log_prob()
    for site in sample_sites(looped[0]):
        name = site["name"]
        ours: Tensor = _log_prob(plated, name)
        for k, one in enumerate(looped):
            theirs = _log_prob(one, name)
            mine = ours[k if ours.shape[0] > 1 else 0] if ours.dim() > tracer.nesting else ours
            if mine.numel() != theirs.numel() or not _close(mine.reshape(theirs.shape), theirs):
                return str(name)
    return None


def _log_prob(trace: poutine.Trace, name: str) -> Tensor:
    site: Site = trace.nodes[name]
    return torch.as_tensor(site["log_prob"])


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Compare entries to the rounding of a long sum; infinities and NaN must agree."""
    tolerance = 1e4 * torch.finfo(ours.dtype).eps
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
