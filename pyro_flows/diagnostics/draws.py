"""Draws of a guide, and what the model makes of each: traces, in batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows.diagnostics import sites
from pyro_flows.diagnostics.recorded import Recorded
from pyro_flows.diagnostics.sites import is_data, is_deterministic
from pyro_flows.infer.discrete import Marginal, WithDiscrete, enumerated_names
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.tracer import PARTICLES, Fn, Site, Traces

__all__ = ["Batch", "Draws", "Site", "is_data", "is_deterministic"]


class Batch(NamedTuple):
    """Some draws of the guide.

    Attributes:
        num: Number of draws.
        log_p: The model's joint log-density, of shape ``(num,)``, discrete latents that the guide
            leaves out summed over.
        log_q: The guide's log-density, of shape ``(num,)``; none for draws that are recorded.
        sites: The model's sites.
        predicted: The observed sites, drawn afresh; none unless asked for.
        marginal: Sums over discrete latents; none without such.
    """

    num: int
    log_p: Tensor
    log_q: Tensor | None
    sites: dict[str, Site]
    predicted: dict[str, Site]
    marginal: Marginal | None


class Draws:
    """Run a guide and a model for any number of draws, all on one subsample.

    Args:
        model: The model.
        guide: A guide for it.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        subsamples: Subsamples to take; none draws them.

    Attributes:
        sites: The model's sites in one draw.
        event_dims: What ``infer={"event_dims": ...}`` of a site says, by site.
        subsamples: The subsample of each plate, as a trace.
        discrete: The latents that the guide leaves out, summed over.
        vectorized: Whether a batch holds many draws; otherwise the model runs once for each.

    Raises:
        DomainError: The latents of model and guide differ.
        ShapeError: The latents' shapes do.
    """

    def __init__(
        self,
        model: Fn,
        guide: Fn,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        subsamples: poutine.Trace | None = None,
    ) -> None:
        self._args, self._kwargs = args, kwargs
        self._recorded = guide if isinstance(guide, Recorded) else None
        given = subsamples or poutine.Trace()
        infer = _EventDims()
        guide_trace = self._trace(poutine.replay(guide, trace=given))
        fitting = poutine.replay(sites.Fits(guide_trace)(infer(model)), trace=given)
        model_trace = self._trace(poutine.replay(fitting, trace=guide_trace))
        self.sites, self.event_dims = sites.modelled(model_trace), infer.names
        missing = sites.missing_latents(self.sites, guide_trace)
        self.discrete = enumerated_names(self.sites[name] for name in missing)
        sites.check_latents(self.sites, guide_trace, set(missing) - set(self.discrete))
        self.subsamples = subsamples or _subsamples(guide_trace, model_trace)
        self._model = poutine.replay(model, trace=self.subsamples)
        self._guide = poutine.replay(guide, trace=self.subsamples)
        if self.discrete:
            nesting = sites.nesting(guide_trace, model_trace)
            self._guide = WithDiscrete(self._model, self._guide, self.discrete, nesting)
        self._particles = Particles(self._model, self._guide, args, kwargs)
        self.vectorized = self._particles.broadcast.how == "plate"

    @property
    def members(self) -> dict[str, Tensor]:
        """The indices of the members of each plate."""
        plates = self.subsamples.nodes.items()
        return {name: torch.as_tensor(site["value"]) for name, site in plates}

    @property
    def plate_sizes(self) -> dict[str, int]:
        """The full size of each plate."""
        plates: dict[str, Site] = dict(self.subsamples.nodes)
        return {name: int(site["fn"].size) for name, site in plates.items()}

    @property
    def is_subsampled(self) -> bool:
        """Whether some plate has members that are left out."""
        sizes = self.plate_sizes
        return any(len(index) < sizes[name] for name, index in self.members.items())

    def batches(self, start: int, num: int, *, predictive: bool) -> Iterator[Batch]:
        """Yield ``num`` draws: in one batch where model and guide broadcast, else one by one.

        Args:
            start: Number of draws before these.
            num: Number of draws.
            predictive: Whether to draw the observed sites afresh.
        """
        self._move(start)
        if self.vectorized:
            yield self._plated(self._guide_trace(num), num, predictive)
        elif self._particles.broadcast.guide:
            yield from self._looped(self._guide_trace(num), num, predictive)
        else:
            for position in range(start, start + num):
                self._move(position)
                [(guide_trace, model_trace)] = self._particles.single_traces(1)
                log_q = torch.as_tensor(guide_trace.log_prob_sum())
                yield self._one((guide_trace, model_trace), log_q, predictive)

    def both_ways(self, num: int, *, predictive: bool) -> tuple[Batch, list[Batch]]:
        """Return the first draws in one batch, and one by one.

        Args:
            num: Number of draws.
            predictive: Whether to draw the observed sites afresh.
        """
        self._move(0)
        guide_trace = self._guide_trace(num)
        plated = self._plated(guide_trace, num, predictive)
        return plated, list(self._looped(guide_trace, num, predictive))

    def forward(self, num: int) -> Iterator[tuple[int, dict[str, Site]]]:
        """Run the model forward, and yield numbers of draws with all sites, data included.

        Args:
            num: Number of draws.
        """
        model = _Forget()(self._model)
        if self.vectorized:
            yield num, sites.modelled(self._trace(self._over_draws(model, num)))
        else:
            yield from ((1, sites.modelled(self._trace(model))) for _ in range(num))

    def _move(self, position: int) -> None:
        if self._recorded is not None:
            self._recorded.position = position

    def _guide_trace(self, num: int) -> poutine.Trace:
        return self._trace(self._over_draws(self._guide, num))

    def _plated(self, guide_trace: poutine.Trace, num: int, predictive: bool) -> Batch:
        model = self._over_draws(self._model, num)
        model_trace = self._replay(model, guide_trace)
        log_p = self._particles.log_density(model_trace, num)
        log_q = self._particles.log_density(guide_trace, num)
        return self._batch(model, (guide_trace, model_trace), (log_p, log_q), predictive)

    def _looped(self, guide_trace: poutine.Trace, num: int, predictive: bool) -> Iterator[Batch]:
        log_q = self._particles.log_density(guide_trace, num)
        for one, its_log_q in zip(self._particles.split(guide_trace, num), log_q, strict=True):
            yield self._one((one, self._replay(self._model, one)), its_log_q, predictive)

    def _one(self, traces: Traces, log_q: Tensor, predictive: bool) -> Batch:
        model_trace = traces[1]
        model_trace.compute_log_prob()
        log_p = torch.as_tensor(model_trace.log_prob_sum())
        return self._batch(self._model, traces, (log_p.reshape(1), log_q.reshape(1)), predictive)

    def _batch(
        self, model: Fn, traces: Traces, densities: tuple[Tensor, Tensor], predictive: bool
    ) -> Batch:
        guide_trace, model_trace = traces
        log_p, log_q = densities
        marginal = None
        if self.discrete:
            guide_trace = guide_trace.copy()
            for name in self.discrete:
                del guide_trace.nodes[name]
            replayed = poutine.replay(model, trace=guide_trace)
            nesting, num = self._particles.nesting, len(log_p)
            marginal = Marginal(replayed, nesting, num, self._args, self._kwargs)
            log_p = marginal.log_p
        return Batch(
            len(log_p),
            log_p,
            None if self._recorded else log_q,
            sites.modelled(model_trace),
            self._predict(model, guide_trace) if predictive else {},
            marginal,
        )

    def _predict(self, model: Fn, guide_trace: poutine.Trace) -> dict[str, Site]:
        found = sites.modelled(self._replay(_Forget()(model), guide_trace))
        return {name: site for name, site in found.items() if is_data(self.sites[name])}

    def _replay(self, model: Fn, guide_trace: poutine.Trace) -> poutine.Trace:
        return self._trace(poutine.replay(model, trace=guide_trace))

    def _trace(self, fn: Fn) -> poutine.Trace:
        return poutine.trace(fn).get_trace(*self._args, **self._kwargs)

    def _over_draws(self, fn: Fn, num: int) -> Fn:
        return pyro.plate(PARTICLES, num, dim=-1 - self._particles.nesting)(fn)


class _EventDims(Messenger):
    """Note the names of event dims, which a replay would hide under those of the guide's sites."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Any] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if "event_dims" in msg["infer"]:
            self.names[msg["name"]] = msg["infer"]["event_dims"]


class _Forget(Messenger):
    """Draw what was observed; as many values as there were, where no plate says so."""

    def _pyro_sample(self, msg: Site) -> None:
        if not is_data(msg):
            return
        batch_shape = sites.data_shape(msg)[0]
        if batch_shape != msg["fn"].batch_shape:
            msg["fn"] = msg["fn"].expand(batch_shape)
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _subsamples(*traces: poutine.Trace) -> poutine.Trace:
    found = poutine.Trace()
    found.nodes.update(
        (name, site)
        for trace in traces
        for name, site in trace.nodes.items()
        if site_is_subsample(site)
    )
    return found
