"""Draws of a guide, and what the model makes of each: traces, in batches."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.tracer import PARTICLES

Fn = Callable[..., Any]
# A message of Pyro's, typed there in part: a dictionary that scoring adds to.
Site = Any


class Batch(NamedTuple):
    """Some draws of the guide.

    Attributes:
        num: Number of draws.
        log_p: The model's joint log-density, of shape ``(num,)``.
        log_q: The guide's log-density, of shape ``(num,)``.
        sites: The model's sites.
        predicted: The observed sites, drawn afresh; none unless asked for.
    """

    num: int
    log_p: Tensor
    log_q: Tensor
    sites: dict[str, Site]
    predicted: dict[str, Site]


class Draws:
    """Run a guide and a model for any number of draws, all on one subsample.

    Args:
        model: The model.
        guide: A guide for it.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Attributes:
        sites: The model's sites in one draw.
        event_dims: What ``infer={"event_dims": ...}`` of a site says, by site.
        members: The indices of the members of each plate.
        vectorized: Whether a batch holds many draws; otherwise the model runs once for each.

    Raises:
        DomainError: A latent of the model is not in the guide.
    """

    def __init__(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._args, self._kwargs = args, kwargs
        infer = _EventDims()
        guide_trace = self._trace(guide)
        model_trace = self._trace(poutine.replay(infer(model), trace=guide_trace))
        self.sites, self.event_dims = _modelled(model_trace), infer.names
        _check_latents(self.sites, guide_trace)
        subsamples = _subsamples(guide_trace, model_trace)
        self.members = {
            name: torch.as_tensor(site["value"]) for name, site in subsamples.nodes.items()
        }
        self._model = poutine.replay(model, trace=subsamples)
        self._guide = poutine.replay(guide, trace=subsamples)
        self._particles = Particles(self._model, self._guide, args, kwargs)
        self.vectorized = self._particles.broadcast.how == "plate"

    def batches(self, num: int, *, predictive: bool) -> Iterator[Batch]:
        """Yield ``num`` draws: in one batch where model and guide broadcast, else one by one.

        Args:
            num: Number of draws.
            predictive: Whether to draw the observed sites afresh.
        """
        if self.vectorized:
            yield self._plated(self._guide_trace(num), num, predictive)
        elif self._particles.broadcast.guide:
            yield from self._looped(self._guide_trace(num), num, predictive)
        else:
            for guide_trace, model_trace in self._particles.single_traces(num):
                log_q = torch.as_tensor(guide_trace.log_prob_sum())
                yield self._one(model_trace, guide_trace, log_q, predictive)

    def both_ways(self, num: int, *, predictive: bool) -> tuple[Batch, list[Batch]]:
        """Return the same draws in one batch, and one by one.

        Args:
            num: Number of draws.
            predictive: Whether to draw the observed sites afresh.
        """
        guide_trace = self._guide_trace(num)
        plated = self._plated(guide_trace, num, predictive)
        return plated, list(self._looped(guide_trace, num, predictive))

    def _guide_trace(self, num: int) -> poutine.Trace:
        return self._trace(self._over_draws(self._guide, num))

    def _plated(self, guide_trace: poutine.Trace, num: int, predictive: bool) -> Batch:
        model = self._over_draws(self._model, num)
        model_trace = self._replay(model, guide_trace)
        log_p = self._particles.log_density(model_trace, num)
        log_q = self._particles.log_density(guide_trace, num)
        predicted = self._predict(model, guide_trace) if predictive else {}
        return Batch(num, log_p, log_q, _modelled(model_trace), predicted)

    def _looped(self, guide_trace: poutine.Trace, num: int, predictive: bool) -> Iterator[Batch]:
        log_q = self._particles.log_density(guide_trace, num)
        for one, its_log_q in zip(self._particles.split(guide_trace, num), log_q, strict=True):
            yield self._one(self._replay(self._model, one), one, its_log_q, predictive)

    def _one(
        self, model_trace: poutine.Trace, one: poutine.Trace, log_q: Tensor, predictive: bool
    ) -> Batch:
        model_trace.compute_log_prob()
        log_p = torch.as_tensor(model_trace.log_prob_sum())
        predicted = self._predict(self._model, one) if predictive else {}
        return Batch(1, log_p.reshape(1), log_q.reshape(1), _modelled(model_trace), predicted)

    def _predict(self, model: Fn, guide_trace: poutine.Trace) -> dict[str, Site]:
        sites = _modelled(self._replay(_Forget()(model), guide_trace))
        return {name: site for name, site in sites.items() if is_data(self.sites[name])}

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
        batch_shape = data_shape(msg)[0]
        if batch_shape != msg["fn"].batch_shape:
            msg["fn"] = msg["fn"].expand(batch_shape)
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


def is_deterministic(site: Site) -> bool:
    """Whether a site is a ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def is_data(site: Site) -> bool:
    """Whether a site holds data: observed, and no other statement in that guise."""
    return site["is_observed"] and not (is_deterministic(site) or site_is_factor(site))


def data_shape(site: Site) -> tuple[torch.Size, torch.Size]:
    """Return the batch and the event shape of the value of a site, which its plates may widen."""
    shape, event_dim = torch.as_tensor(site["value"]).shape, site["fn"].event_dim
    batch_shape = torch.broadcast_shapes(
        site["fn"].batch_shape, shape[: max(len(shape) - event_dim, 0)]
    )
    return batch_shape, site["fn"].event_shape


def _modelled(trace: poutine.Trace) -> dict[str, Site]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not (site_is_subsample(site) or site_is_factor(site))
    }


def _subsamples(*traces: poutine.Trace) -> poutine.Trace:
    found = poutine.Trace()
    found.nodes.update(
        (name, site)
        for trace in traces
        for name, site in trace.nodes.items()
        if site_is_subsample(site)
    )
    return found


def _check_latents(sites: dict[str, Site], guide_trace: poutine.Trace) -> None:
    missing = [
        name for name, site in sites.items() if not site["is_observed"] and name not in guide_trace
    ]
    if missing:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="a guide that draws every latent of the model",
            got=f"none at {', '.join(map(repr, missing))}",
            advice="Sample them in the guide as well; latents that were enumerated in the fit "
            "cannot be converted.",
        )
