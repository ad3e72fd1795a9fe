"""Traces of a guide and a model, of one particle or of many."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.vmap import vmapped

PARTICLES = "_particles"

Fn = Callable[..., Any]
Traces = tuple[poutine.Trace, poutine.Trace]
# A message of Pyro's, typed there in part: a dictionary that scoring adds to.
Site = Any

_Read = TypeVar("_Read")


class Draws(NamedTuple):
    """What a guide drew for several particles.

    Attributes:
        num: Number of particles.
        values: The value of each site: particles first, then the shape that a single run has.
        subsamples: The sites that drew a subsample, one for all particles.
    """

    num: int
    values: dict[str, Tensor]
    subsamples: dict[str, Site]


class Tracer:
    """Run a guide and a model on some arguments: on a plate of particles, by vmap, or once.

    The particles' plate stands left of all others.

    Args:
        model: The model.
        guide: A guide for it, set up already if it is an autoguide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Attributes:
        args: Arguments of both; may be set anew, as for each mini-batch.
        kwargs: Keyword arguments of both; likewise.
        single: The traces of a first run.
        nesting: Number of axes of the plates, without that of the particles.
        mutes_vmap: Whether to hide that vmap meets an operator without a batching rule.

    Raises:
        DomainError: A latent of the model is not in the guide.
    """

    def __init__(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        with torch.no_grad():
            self.single = guide_trace, model_trace = self.run(guide, model)
            check_latents(guide_trace, model_trace)
            check_model_guide_match(model_trace, guide_trace)
            for trace in self.single:
                trace.compute_log_prob()
        self.nesting = _nesting(self.single)
        self.mutes_vmap = False

    @property
    def elements(self) -> int:
        """Number of entries of the largest log-density of one particle."""
        sites = [site for trace in self.single for site in sample_sites(trace)]
        return max((site["log_prob"].numel() for site in sites), default=1)

    @property
    def num_latents(self) -> int:
        """Number of entries of all latents."""
        latents = [site for site in sample_sites(self.single[1]) if not site["is_observed"]]
        return sum(site["value"].numel() for site in latents)

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
        return poutine.trace(fn).get_trace(*self.args, **self.kwargs)

    def over_particles(self, fn: Fn, num: int) -> Fn:
        """Return a function that runs for ``num`` particles at once."""
        return pyro.plate(PARTICLES, num, dim=-1 - self.nesting)(fn)

    def over_vmap(self, fn: Fn, draws: Draws, read: Callable[[poutine.Trace], _Read]) -> _Read:
        """Return what ``read`` makes of each particle's trace, stacked; all run in one vmap.

        What a function draws besides, such as a subsample or a dropout's mask, it draws once for
        all particles: their mean stays unbiased.

        Args:
            fn: The model, or the guide.
            draws: What to replay.
            read: Returns tensors, in any nesting of containers.
        """

        def one(values: dict[str, Tensor]) -> _Read:
            return read(self.replay(fn, self._holding(values, draws.subsamples)))

        return vmapped(one, draws.num, draws.values, shared=True, muted=self.mutes_vmap)

    def draw_by_vmap(
        self, num: int, read: Callable[[poutine.Trace], _Read]
    ) -> tuple[Draws, _Read]:
        """Draw from the guide by vmap, each particle by itself, subsamples included.

        Args:
            num: Number of particles.
            read: As for :meth:`over_vmap`.
        """

        def one() -> tuple[dict[str, Tensor], _Read]:
            trace = self.trace(self.guide)
            drawn = sample_sites(trace) + _partial(subsample_sites(trace))
            return {site["name"]: site["value"] for site in drawn}, read(trace)

        values, rest = vmapped(one, num, shared=False, muted=self.mutes_vmap)
        return Draws(num, values, {}), rest

    def draws(self, guide_trace: poutine.Trace, num: int) -> Draws:
        """Return what a guide's trace of ``num`` particles on a plate holds."""
        values, single = {}, self.single[0].nodes
        for site in sample_sites(guide_trace):
            value, name = site["value"], site["name"]
            its: Site = single[name]
            shape = its["value"].shape
            rows = value.shape[0] if self.has_particles(site) else 1
            values[name] = value.reshape(rows, *shape).expand(num, *shape)
        return Draws(num, values, subsample_sites(guide_trace))

    def singles(self, draws: Draws) -> list[poutine.Trace]:
        """Return a guide's trace for each particle."""
        # Unbound at once, since the gradient of one index after the other is quadratic work.
        rows = {name: value.unbind(0) for name, value in draws.values.items()}
        return [
            self._holding({name: row[k] for name, row in rows.items()}, draws.subsamples)
            for k in range(draws.num)
        ]

    def split(self, guide_trace: poutine.Trace, num: int) -> list[poutine.Trace]:
        """Split a guide's trace of ``num`` particles into one trace for each."""
        return self.singles(self.draws(guide_trace, num))

    def has_particles(self, site: Site) -> bool:
        """Whether the value of a site has an axis for particles; else it is the same for all."""
        return bool(site["value"].dim() - site["fn"].event_dim == self.nesting + 1)

    def _holding(self, values: dict[str, Tensor], subsamples: dict[str, Site]) -> poutine.Trace:
        """Return a guide's trace of one particle, for replaying."""
        one = self.single[0].copy()
        for name in subsample_sites(one):
            # What one run subsampled must not stay for all others.
            del one.nodes[name]
        one.nodes.update(subsamples)
        for name, value in values.items():
            target: Site = self.single[0].nodes[name].copy()
            target["value"] = value
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


def _partial(sites: dict[str, Site]) -> list[Site]:
    return [site for site in sites.values() if len(site["value"]) < site["fn"].size]


def _frames(trace: poutine.Trace) -> list[Any]:
    return [frame for site in sample_sites(trace) for frame in site["cond_indep_stack"]]


def _nesting(traces: Traces) -> int:
    frames = (frame for trace in traces for frame in _frames(trace))
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)
