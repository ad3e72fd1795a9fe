"""Draws of a guide, scored under guide and model: what fitting and reporting share."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.infer.broadcast import check_broadcast
from pyro_flows.infer.tracer import Fn, Tracer, Traces, sample_sites


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


class Particles(Tracer):
    """Run a guide and a model for many particles: at once where they broadcast, else in a loop.

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
        super().__init__(model, guide, args, kwargs)
        self.broadcast = check_broadcast(self)

    @property
    def vectorized(self) -> bool:
        """Whether all particles run at once."""
        return self.broadcast.guide and self.broadcast.model

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
        if self.vectorized:
            guide_trace, model_trace = self.traces(num)
            return self._scores(guide_trace, self.log_density(model_trace, num), num)
        if self.broadcast.guide:
            guide_trace = self.trace(self.over_particles(self.guide, num))
            models = [self.replay(self.model, one) for one in self.split(guide_trace, num)]
            log_p = torch.cat([self.log_density(model, 1) for model in models])
            return self._scores(guide_trace, log_p, num)
        pairs = [self.run(self.guide, self.model) for _ in range(num)]
        rows = [self._scores(guide, self.log_density(model, 1), 1) for guide, model in pairs]
        return Scores(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def _scores(self, guide_trace: poutine.Trace, log_p: Tensor, num: int) -> Scores:
        guide_trace.compute_score_parts()
        sites = sample_sites(guide_trace)
        log_q = self._total((site["log_prob"] for site in sites), num)
        score = self._total((site["score_parts"].score_function for site in sites), num)
        entropy = self._total((site["score_parts"].entropy_term for site in sites), num)
        return Scores(log_p, log_q, log_p - entropy + (log_p - log_q).detach() * score)

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
