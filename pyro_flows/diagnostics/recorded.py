"""Draws that are kept, in the form of a guide."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.diagnostics import sites
from pyro_flows.infer.given import Given
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.tracer import Fn, Site


class Recorded:
    """A guide that draws what was drawn before, one draw after the other.

    Args:
        draws: The draws.
        model: The model.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.

    Attributes:
        position: Which draw comes next, counted over all chains, one chain first.

    Raises:
        DomainError: A site of the draws is no latent of the model.
        ShapeError: A site has another shape in the model.
    """

    def __init__(
        self, draws: PosteriorDraws, model: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.position = 0
        rows = {name: value.detach() for name, value in draws.flat().items()}
        trace = _as_trace(rows)
        model = poutine.replay(sites.Fits(trace)(model), trace=trace)
        found = sites.modelled(poutine.trace(model).get_trace(*args, **kwargs))
        # What follows from the latents follows from them anew.
        latents = [n for n in rows if n not in found or not sites.is_deterministic(found[n])]
        sites.check_known(found, latents)
        self._rows = {name: (rows[name], int(found[name]["fn"].event_dim)) for name in latents}

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample every latent.

        Args:
            *args: Not used.
            **kwargs: Not used.
        """
        for name, (rows, event_dim) in self._rows.items():
            pyro.sample(name, _Rows(rows, self.position, event_dim))


class _Rows(Given):
    """Some rows of a table: one, or as many as the plate of particles around it has.

    Args:
        rows: The table, of shape ``(S,)`` + a site's shape.
        start: The first row; after the last one comes the first again.
        event_dim: Number of axes of an event.
    """

    def __init__(self, rows: Tensor, start: int, event_dim: int) -> None:
        self._rows, self._start = rows, start
        super().__init__(rows[start % len(rows)], event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Given:
        """Return as many rows as the first axis says.

        Args:
            batch_shape: The shape with the plate of particles.
            _instance: Not used.
        """
        shape = torch.Size(batch_shape) + self.event_shape
        if len(batch_shape) == len(self.batch_shape):
            return super().expand(batch_shape)
        index = torch.arange(self._start, self._start + shape[0]) % len(self._rows)
        return Given(self._rows[index.to(self._rows.device)].reshape(shape), self.event_dim)


def _as_trace(rows: dict[str, Tensor]) -> poutine.Trace:
    """Return the first draw, for a model to be replayed by."""
    trace = poutine.Trace()
    for name, value in rows.items():
        site: Site = {
            "type": "sample",
            "name": name,
            "value": value[0],
            "is_observed": False,
            "infer": {},
        }
        trace.nodes[name] = site
    return trace
