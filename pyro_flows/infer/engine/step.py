"""One step's loss and gradient, as a function of a batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_flows.infer.engine.flat import FlatParameters

# What a model is called with: positional and keyword arguments.
Batch = tuple[tuple[Any, ...], dict[str, Any]]


class Loss(NamedTuple):
    """A loss, and what to differentiate for its gradient.

    Attributes:
        value: The loss, a scalar without a gradient.
        surrogates: Scalars whose gradients estimate the loss's: one for all parameters, or one for
            each group of them.
    """

    value: Tensor
    surrogates: tuple[Tensor, ...]


Objective = Callable[[Batch], Loss]


class StepFunction:
    """The loss and its gradient, as a function that can be recorded as a graph.

    Called with a batch it returns the loss, the gradient's norm, and the gradient, one tensor for
    each flat one. It touches nothing else.

    Args:
        objective: The loss of a batch.
        flat: The parameters.
        groups: Names of parameters, one group for each of the objective's surrogates.
        clip_norm: Largest norm of the gradient, which is scaled down to it; or none.
    """

    def __init__(
        self,
        objective: Objective,
        flat: FlatParameters,
        groups: Sequence[Sequence[str]],
        clip_norm: float | None,
    ) -> None:
        self.objective, self.flat, self.clip_norm = objective, flat, clip_norm
        self.groups = [list(group) for group in groups]

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the loss, the norm of its gradient, and the gradient."""
        with torch.enable_grad():
            loss = self.objective(batch)
            named: dict[str, Tensor] = {}
            pairs = self._pairs(loss)
            for position, (names, surrogate) in enumerate(pairs):
                parameters = [self.flat.parameters[name] for name in names]
                grads = torch.autograd.grad(
                    surrogate,
                    parameters,
                    retain_graph=position + 1 < len(pairs),
                    allow_unused=True,
                    materialize_grads=True,
                )
                named.update(zip(names, grads, strict=True))
        with torch.no_grad():
            return loss.value.detach(), *clipped(self.flat.flatten(named), self.clip_norm)

    def _pairs(self, loss: Loss) -> list[tuple[list[str], Tensor]]:
        """Return each group's names with its surrogate; one pair for all where there is one."""
        if len(loss.surrogates) == 1:
            return [([name for group in self.groups for name in group], loss.surrogates[0])]
        pairs = zip(self.groups, loss.surrogates, strict=True)
        return [(names, surrogate) for names, surrogate in pairs if names]

    def unclipped(self) -> "StepFunction":
        """Return the step without clipping."""
        return StepFunction(self.objective, self.flat, self.groups, None)


def clipped(grads: list[Tensor], clip_norm: float | None) -> tuple[Tensor, ...]:
    """Return the norm over all of some tensors, and these scaled down to at most ``clip_norm``."""
    # In float64, since the squares of float32 run over from 1e19 on.
    wide = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    norm = torch.linalg.vector_norm(torch.stack(wide)) if len(wide) > 1 else wide[0]
    if clip_norm is None:
        return norm, *grads
    factor = (clip_norm / norm).clamp(max=1.0)
    return norm, *(grad * factor.to(grad.dtype) for grad in grads)
