"""A flow that is given contexts as they are, and standardises them."""

import logging
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.density.preparation import location_and_scale
from pyro_flows.distributions import Flow

logger = logging.getLogger("pyro_flows")


class StandardisedContext(Flow):
    r"""Condition a flow on :math:`(c - \mu) / \sigma`, given :math:`c`.

    Args:
        flow: A flow that takes a context; its transform and base are shared.
        loc: :math:`\mu`, of shape ``(context_dim,)``.
        scale: :math:`\sigma`, of the same shape.

    Example:
        >>> from pyro_flows import flows
        >>> flow = flows.realnvp(2, num_transforms=1, context_dim=1)
        >>> outer = StandardisedContext(flow, torch.tensor([100.0]), torch.tensor([20.0]))
        >>> x, c = torch.randn(3, 2), torch.full((3, 1), 120.0)
        >>> bool((outer.condition(c).log_prob(x) == flow.condition(c / c).log_prob(x)).all())
        True
    """

    context_loc: Tensor
    context_scale: Tensor

    def __init__(self, flow: Flow, loc: Tensor, scale: Tensor) -> None:
        super().__init__(flow.transform, base=flow.base_dist)
        self.register_buffer("context_loc", loc)
        self.register_buffer("context_scale", scale)

    def condition(self, context: Tensor) -> Flow:
        """Return the distribution given a context, as it is; it shares the parameters.

        Args:
            context: Of shape ``(*, context_dim)``.

        Raises:
            ShapeError: The context has the wrong size.
        """
        _checks.check_context("Flow", context, self.context_dim)
        return super().condition(self.standardised(context))

    def standardised(self, context: Tensor) -> Tensor:
        """Return a context as the transform takes it."""
        return (context - self.context_loc) / self.context_scale


def context_scaling(who: str, way: str, contexts: Tensor) -> dict[str, Any]:
    """Return ``loc`` and ``scale`` of contexts; of a constant column, one as the scale.

    Args:
        who: The caller, for the log.
        way: As in :func:`~pyro_flows.density.preparation.scaling`; ``"whiten"`` is ``"sd"``.
        contexts: Those to train with, of shape ``(N, C)``.
    """
    if way == "none":
        ones = torch.ones_like(contexts[0])
        return {"loc": torch.zeros_like(ones), "scale": ones}
    loc, scale = location_and_scale(way, contexts)
    scale = scale.to(contexts.dtype)
    constant = [k for k, column in enumerate(contexts.T) if bool((column == column[0]).all())]
    if constant:
        named = ", ".join(map(str, constant[:10]))
        logger.warning("%s: columns %s of the context are constant, and tell nothing", who, named)
    # A width may also be too small for the dtype.
    scale[scale == 0] = 1.0
    scale[constant] = 1.0
    return {"loc": loc.to(contexts.dtype), "scale": scale}
