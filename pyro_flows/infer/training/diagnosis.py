"""Which sites or parameters of a step are not finite."""

import torch

from pyro_flows.infer.engine import Batch, StepFunction
from pyro_flows.infer.guides.log_density import describe_non_finite
from pyro_flows.infer.particles import Particles

# A NaN that enters a flow at its end is in every gradient.
_MOST_NAMES = 3


class Diagnosis:
    """Repeat a step as Python runs it, and name what is not finite.

    Args:
        scorer: Draws and scores the particles.
        step: The step.
        particles: Number of draws that it takes at once.
        chunks: How often it does.
    """

    def __init__(self, scorer: Particles, step: StepFunction, particles: int, chunks: int) -> None:
        self._scorer, self._step = scorer, step
        self._particles, self._chunks = particles, chunks

    def __call__(self, batch: Batch) -> str:
        """Return the names in words, for the random state that the step began with."""
        state = torch.get_rng_state()
        sites = self._sites(batch)
        if sites:
            return sites
        torch.set_rng_state(state)
        names = self._parameters(batch)
        if names:
            shown = ", ".join(map(repr, names[:_MOST_NAMES]))
            more = len(names) - _MOST_NAMES
            return f"a gradient that is not finite at {shown}" + f" and {more} more" * (more > 0)
        return "a loss or gradient that is not finite"

    @torch.no_grad()
    def _sites(self, batch: Batch) -> str:
        scorer = self._scorer
        scorer.args, scorer.kwargs = batch
        for _ in range(self._chunks):
            if scorer.broadcast.how == "plate":
                pairs = [scorer.traces(self._particles)]
            else:
                pairs = scorer.single_traces(self._particles)
            for trace in (trace for pair in pairs for trace in reversed(pair)):
                trace.compute_log_prob()
                words = describe_non_finite(trace)
                if words:
                    return words
        return ""

    def _parameters(self, batch: Batch) -> list[str]:
        names: dict[str, None] = {}
        for _ in range(self._chunks):
            _, _, *grads = self._step.unclipped()(batch)
            for named in self._step.flat.split(grads):
                names |= {n: None for n, grad in named.items() if not bool(grad.isfinite().all())}
        return list(names)
