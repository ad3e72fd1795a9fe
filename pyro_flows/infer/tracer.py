"""Traces of a guide and a model, of one particle or of many."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match

from pyro_flows import _checks
from pyro_flows.errors import DomainError

PARTICLES = "_particles"

Fn = Callable[..., Any]
Traces = tuple[poutine.Trace, poutine.Trace]
# A message of Pyro's, typed there in part: a dictionary that scoring adds to.
Site = Any


class Tracer:
    """Run a guide and a model on some arguments, with particles on a plate left of all others.

    Args:
        model: The model.
        guide: A guide for it, set up already if it is an autoguide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Raises:
        DomainError: A latent of the model is not in the guide.
    """

    def __init__(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model, self.guide, self._args, self._kwargs = model, guide, args, kwargs
        with torch.no_grad():
            self.single = guide_trace, model_trace = self.run(guide, model)
            check_latents(guide_trace, model_trace)
            check_model_guide_match(model_trace, guide_trace)
            for trace in self.single:
                trace.compute_log_prob()
        self.nesting = _nesting(self.single)

    @property
    def elements(self) -> int:
        """Number of entries of the largest log-density of one particle."""
        sites = [site for trace in self.single for site in sample_sites(trace)]
        return max((site["log_prob"].numel() for site in sites), default=1)

    @property
    def subsamples(self) -> bool:
        """Whether a plate draws some of its members at each run."""
        frames = (frame for trace in self.single for frame in _frames(trace))
        return any(frame.full_size not in (None, frame.size) for frame in frames)

    def traces(self, num: int) -> Traces:
        """Return the traces of guide and model with ``num`` particles on axis ``-1 - nesting``."""
        return self.run(self.over_particles(self.guide, num), self.over_particles(self.model, num))

    def run(self, guide: Fn, model: Fn) -> Traces:
        """Return the trace of a guide, and that of a model replayed by it."""
        guide_trace = self.trace(guide)
        return guide_trace, self.replay(model, guide_trace)

    def replay(self, fn: Fn, trace: poutine.Trace) -> poutine.Trace:
        """Return the trace of a function with the values of another trace."""
        return self.trace(poutine.replay(fn, trace=trace))

    def trace(self, fn: Fn) -> poutine.Trace:
        """Return the trace of a function on the arguments."""
        return poutine.trace(fn).get_trace(*self._args, **self._kwargs)

    def over_particles(self, fn: Fn, num: int) -> Fn:
        """Return a function that runs for ``num`` particles at once."""
        return pyro.plate(PARTICLES, num, dim=-1 - self.nesting)(fn)

    def split(self, guide_trace: poutine.Trace, num: int) -> list[poutine.Trace]:
        """Split a guide's trace of ``num`` particles into one trace for each."""
        return [self._slice(guide_trace, k) for k in range(num)]

    def has_particles(self, site: Site) -> bool:
        """Whether the value of a site has an axis for particles; else it is the same for all."""
        return bool(site["value"].dim() - site["fn"].event_dim == self.nesting + 1)

    def _slice(self, guide_trace: poutine.Trace, index: int) -> poutine.Trace:
        one = self.single[0].copy()
        for site in sample_sites(guide_trace):
            value, name = site["value"], site["name"]
            if self.has_particles(site):
                value = value[index if value.shape[0] > 1 else 0]
            target: Site = one.nodes[name].copy()
            target["value"] = value.reshape(target["value"].shape)
            one.nodes[name] = target
        return one


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Return the sample sites of a trace, without those that draw subsamples."""
    pruned = prune_subsample_sites(trace).nodes.values()
    return [site for site in pruned if site["type"] == "sample"]


def subsample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sites that draw subsamples, without the particles' plate."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if name != PARTICLES and site_is_subsample(site)
    }


def check_latents(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a model with latents that the guide lacks: they would be drawn from their priors."""
    hidden = [
        site["name"]
        for site in sample_sites(model_trace)
        if not site["is_observed"] and site["name"] not in guide_trace.nodes
    ]
    if hidden:
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a guide that draws every latent of the model, in every run",
            got=f"none at {', '.join(map(repr, hidden))}",
            advice="To sum over a discrete latent, train with Pyro's SVI and TraceEnum_ELBO; "
            "other latents belong in the guide.",
        )


def _frames(trace: poutine.Trace) -> list[Any]:
    return [frame for site in sample_sites(trace) for frame in site["cond_indep_stack"]]


def _nesting(traces: Traces) -> int:
    frames = (frame for trace in traces for frame in _frames(trace))
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)
