"""Draws of a guide, scored under guide and model: what fitting and reporting share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor

from pyro_flows.errors import FlowError

PARTICLES = "_particles"
_CHECKED_PARTICLES = 3

Fn = Callable[..., Any]
Traces = tuple[poutine.Trace, poutine.Trace]


class Scores(NamedTuple):
    """Per-particle log-densities, each of shape ``(P,)``.

    Attributes:
        log_p: The model's joint log-density of latents and data.
        log_q: The guide's log-density.
        surrogate: ``log_p - log_q``, in a form whose gradient estimates that of the ELBO.
    """

    log_p: Tensor
    log_q: Tensor
    surrogate: Tensor


class Particles:
    """Run a guide and a model for many particles: at once where they broadcast, else in a loop.

    Pyro lays particles along a plate to the left of all others. A model that was written for one
    draw may fail there, or broadcast wrongly without a word; so the log-densities of a few
    particles are compared once with those of a loop.

    Args:
        model: The model.
        guide: A guide for it, set up already if it is an autoguide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
    """

    def __init__(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model, self.guide, self._args, self._kwargs = model, guide, args, kwargs
        with torch.no_grad():
            self._single = guide_trace, model_trace = self._run(guide, model)
            check_model_guide_match(model_trace, guide_trace)
            for trace in self._single:
                trace.compute_log_prob()
            self.nesting = _nesting(self._single)
            self.guide_broadcasts, self.model_broadcasts = self._check_broadcast()

    @property
    def elements(self) -> int:
        """Number of entries of the largest log-density of one particle."""
        sites = [site for trace in self._single for site in _sample_sites(trace)]
        return max((site["log_prob"].numel() for site in sites), default=1)

    @property
    def vectorized(self) -> bool:
        """Whether all particles run at once."""
        return self.guide_broadcasts and self.model_broadcasts

    def traces(self, num: int) -> Traces:
        """Return the traces of guide and model with ``num`` particles on axis ``-1 - nesting``."""
        return self._run(
            self._over_particles(self.guide, num), self._over_particles(self.model, num)
        )

    def single_traces(self, num: int) -> list[Traces]:
        """Return ``num`` pairs of traces of one particle each."""
        if not self.guide_broadcasts:
            return [self._run(self.guide, self.model) for _ in range(num)]
        guide_trace = self._trace(self._over_particles(self.guide, num))
        slices = self.split(guide_trace, num)
        return [(one, self._trace(poutine.replay(self.model, trace=one))) for one in slices]

    def split(self, guide_trace: poutine.Trace, num: int) -> list[poutine.Trace]:
        """Split a guide's trace of ``num`` particles into one trace for each."""
        return [self._slice(guide_trace, self._single[0], k) for k in range(num)]

    def log_density(self, trace: poutine.Trace, num: int) -> Tensor:
        """Return the log-density of each particle of a trace of ``num``, of shape ``(num,)``."""
        trace.compute_log_prob()
        return self._total(trace, "log_prob", num)

    def score(self, num: int) -> Scores:
        """Draw ``num`` particles and score them.

        Args:
            num: Number of particles.
        """
        if self.vectorized:
            guide_trace, model_trace = self.traces(num)
            return self._scores(guide_trace, self.log_density(model_trace, num), num)
        if self.guide_broadcasts:
            guide_trace = self._trace(self._over_particles(self.guide, num))
            ones = self.split(guide_trace, num)
            models = [self._trace(poutine.replay(self.model, trace=one)) for one in ones]
            log_p = torch.cat([self.log_density(model, 1) for model in models])
            return self._scores(guide_trace, log_p, num)
        pairs = [self._run(self.guide, self.model) for _ in range(num)]
        rows = [self._scores(guide, self.log_density(model, 1), 1) for guide, model in pairs]
        return Scores(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def _scores(self, guide_trace: poutine.Trace, log_p: Tensor, num: int) -> Scores:
        guide_trace.compute_score_parts()
        log_q = self._total(guide_trace, "log_prob", num)
        parts = [site["score_parts"] for site in _sample_sites(guide_trace)]
        score = _sum_sites((part.score_function for part in parts), self.nesting, num)
        entropy = _sum_sites((part.entropy_term for part in parts), self.nesting, num)
        return Scores(log_p, log_q, log_p - entropy + (log_p - log_q).detach() * score)

    def _run(self, guide: Fn, model: Fn) -> Traces:
        guide_trace = self._trace(guide)
        return guide_trace, self._trace(poutine.replay(model, trace=guide_trace))

    def _trace(self, fn: Fn) -> poutine.Trace:
        return poutine.trace(fn).get_trace(*self._args, **self._kwargs)

    def _over_particles(self, fn: Fn, num: int) -> Fn:
        return pyro.plate(PARTICLES, num, dim=-1 - self.nesting)(fn)

    def _check_broadcast(self) -> tuple[bool, bool]:
        num = _CHECKED_PARTICLES
        try:
            guide_trace = self._trace(self._over_particles(self.guide, num))
            ones = self.split(guide_trace, num)
            looped = [self._trace(poutine.replay(self.guide, trace=one)) for one in ones]
            guide_fits = self._agree(guide_trace, looped, num)
        except FlowError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False, False
        return guide_fits, guide_fits and self._model_broadcasts(guide_trace, ones, num)

    def _model_broadcasts(
        self, guide_trace: poutine.Trace, ones: list[poutine.Trace], num: int
    ) -> bool:
        try:
            model = self._over_particles(self.model, num)
            model_trace = self._trace(poutine.replay(model, trace=guide_trace))
            # What the model subsamples by itself must be the same on both sides.
            for name, site in model_trace.nodes.items():
                if site["type"] == "sample" and site_is_subsample(site) and name != PARTICLES:
                    for one in ones:
                        one.nodes[name] = site
            looped = [self._trace(poutine.replay(self.model, trace=one)) for one in ones]
            return self._agree(model_trace, looped, num)
        except FlowError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False

    def _agree(self, plated: poutine.Trace, looped: list[poutine.Trace], num: int) -> bool:
        ours = self.log_density(plated, num)
        theirs = torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in looped])
        tolerance = 1e3 * torch.finfo(ours.dtype).eps
        return torch.allclose(
            ours, theirs.to(ours), rtol=tolerance, atol=tolerance, equal_nan=True
        )

    def _slice(self, plated: poutine.Trace, single: poutine.Trace, index: int) -> poutine.Trace:
        """Return a copy of ``single`` that holds the values of one particle of ``plated``."""
        one = single.copy()
        for site in _sample_sites(plated):
            value, name = site["value"], site["name"]
            # A value that does not depend on the particle has no axis for it.
            if value.dim() - site["fn"].event_dim == self.nesting + 1:
                value = value[index if value.shape[0] > 1 else 0]
            target: Any = one.nodes[name].copy()
            target["value"] = value.reshape(target["value"].shape)
            one.nodes[name] = target
        return one

    def _total(self, trace: poutine.Trace, key: str, num: int) -> Tensor:
        return _sum_sites((site[key] for site in _sample_sites(trace)), self.nesting, num)


def _sample_sites(trace: poutine.Trace) -> list[Any]:
    pruned = prune_subsample_sites(trace).nodes.values()
    return [site for site in pruned if site["type"] == "sample"]


def _nesting(traces: Traces) -> int:
    frames = (
        f for trace in traces for site in _sample_sites(trace) for f in site["cond_indep_stack"]
    )
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def _sum_sites(terms: Any, nesting: int, num: int) -> Tensor:
    """Sum terms over everything but the particles' axis."""
    total: Tensor | float = 0.0
    for term in terms:
        if not isinstance(term, Tensor):
            total = total + term
        elif term.dim() > nesting and term.shape[0] == num:
            total = total + term.reshape(num, -1).sum(-1)
        else:
            total = total + term.sum()
    return torch.as_tensor(total).expand(num)
