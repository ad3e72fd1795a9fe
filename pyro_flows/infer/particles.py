"""Draws of a guide, scored under guide and model: what fitting and reporting share."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.infer.broadcast import check_broadcast
from pyro_flows.infer.tracer import Draws, Fn, Tracer, Traces, sample_sites

# Of the order of a processor's cache.
_NUMBERS_AT_ONCE, _LEAST_AT_ONCE = 2**18, 64


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


class ScoredDraws(NamedTuple):
    """Draws of a guide, with what they are.

    Attributes:
        sites: The values of each latent, of shape ``(N,)`` + the site's shape.
        log_p: The model's joint log-density, of shape ``(N,)``.
        log_q: The guide's, of shape ``(N,)``.
    """

    sites: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor


class _Parts(NamedTuple):
    """What a guide's draws contribute to an ELBO and to its gradient, each of shape ``(P,)``."""

    log_q: Tensor
    score_function: Tensor
    entropy_term: Tensor


class Particles(Tracer):
    """Run a guide and a model for many particles: on a plate, else by vmap, else in a loop.

    Each way gives the same densities, which is checked. What the model draws besides its latents,
    such as a subsample or a dropout's mask, is drawn once for all particles by vmap, and on a
    plate unless the particles' axis reaches it; in a loop, once for each.

    Args:
        model: The model.
        guide: A guide for it, set up already if it is an autoguide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Attributes:
        broadcast: How they run, and why so.

    Raises:
        DomainError: A latent of the model is not in the guide.
    """

    def __init__(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(model, guide, args, kwargs)
        self.broadcast = check_broadcast(self)

    @property
    def vectorized(self) -> bool:
        """Whether all particles run at once, on a plate or by vmap."""
        return self.broadcast.how != "loop"

    def single_traces(self, num: int) -> list[Traces]:
        """Return ``num`` pairs of traces of one particle each."""
        if not self.broadcast.guide:
            return [self.run(self.guide, self.model) for _ in range(num)]
        guide_trace = self.trace(self.over_particles(self.guide, num))
        return [(one, self.replay(self.model, one)) for one in self.split(guide_trace, num)]

    def log_density(self, trace: poutine.Trace, num: int) -> Tensor:
        """Return the log-density of each particle of a trace of ``num``, of shape ``(num,)``."""
        trace.compute_log_prob()
        return self._total((site["log_prob"] for site in sample_sites(trace)), num)

    def score(self, num: int) -> Scores:
        """Draw ``num`` particles and score them.

        Args:
            num: Number of particles.
        """
        return self._score(num)[0]

    @torch.no_grad()
    def draw(self, num: int, chunk_size: int | None = None) -> ScoredDraws:
        """Draw many particles, score them, and keep the values of the model's latents.

        Args:
            num: Number of particles.
            chunk_size: Largest number to run at once; by default as many as make a quarter of a
                million numbers.
        """
        chunk = chunk_size or max(_LEAST_AT_ONCE, _NUMBERS_AT_ONCE // self.elements)
        parts = [self._score(min(chunk, num - start)) for start in range(0, num, chunk)]
        scores, values = [scores for scores, _ in parts], [values() for _, values in parts]
        latents = [s["name"] for s in sample_sites(self.single[1]) if not s["is_observed"]]
        return ScoredDraws(
            {name: torch.cat([drawn[name] for drawn in values]) for name in latents},
            torch.cat([score.log_p for score in scores]),
            torch.cat([score.log_q for score in scores]),
        )

    def _score(self, num: int) -> tuple[Scores, Callable[[], dict[str, Tensor]]]:
        """Return the scores, and what returns the drawn values: a step has no use for them."""
        if self.broadcast.how == "plate":
            guide_trace, model_trace = self.traces(num)
            scores = _scores(self.log_density(model_trace, num), self._parts(guide_trace, num))
            return scores, lambda: self.draws(guide_trace, num).values
        if self.broadcast.guide:
            guide_trace = self.trace(self.over_particles(self.guide, num))
            parts, draws = self._parts(guide_trace, num), self.draws(guide_trace, num)
            return _scores(self._log_p(draws), parts), lambda: draws.values
        if self.broadcast.vmap:
            draws, parts = self.draw_by_vmap(num, lambda trace: self._parts(trace, 1))
            parts = _Parts(*(part[:, 0] for part in parts))
            return _scores(self._log_p(draws), parts), lambda: draws.values
        pairs = [self.run(self.guide, self.model) for _ in range(num)]
        rows = [
            _scores(self.log_density(model, 1), self._parts(guide, 1)) for guide, model in pairs
        ]
        scores = Scores(*(torch.cat(column) for column in zip(*rows, strict=True)))
        return scores, lambda: _stacked([guide for guide, _ in pairs])

    def _log_p(self, draws: Draws) -> Tensor:
        """Score the model for draws, by vmap where that is right."""
        if self.broadcast.vmap:
            return self.over_vmap(self.model, draws, lambda trace: self.log_density(trace, 1))[
                :, 0
            ]
        models = [self.replay(self.model, one) for one in self.singles(draws)]
        return torch.cat([self.log_density(model, 1) for model in models])

    def _parts(self, guide_trace: poutine.Trace, num: int) -> _Parts:
        guide_trace.compute_score_parts()
        sites = sample_sites(guide_trace)
        return _Parts(
            self._total((site["log_prob"] for site in sites), num),
            self._total((site["score_parts"].score_function for site in sites), num),
            self._total((site["score_parts"].entropy_term for site in sites), num),
        )

    def _total(self, terms: Iterable[Tensor | float], num: int) -> Tensor:
        """Sum terms over everything but the particles' axis."""
        total: Tensor | float = 0.0
        for term in terms:
            if not isinstance(term, Tensor):
                total = total + term
            elif term.dim() > self.nesting and term.shape[0] == num:
                total = total + term.reshape(num, -1).sum(-1)
            else:
                # The same for all particles.
                total = total + term.sum()
        return torch.as_tensor(total).expand(num)


def _stacked(traces: list[poutine.Trace]) -> dict[str, Tensor]:
    rows = [{site["name"]: site["value"] for site in sample_sites(trace)} for trace in traces]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _scores(log_p: Tensor, parts: _Parts) -> Scores:
    surrogate = log_p - parts.entropy_term + (log_p - parts.log_q).detach() * parts.score_function
    return Scores(log_p, parts.log_q, surrogate)
