"""Draws of a flow in its file, by which another flow of the same sizes is told apart."""

import torch
from torch import Tensor

from pyro_flows.distributions import Flow
from pyro_flows.infer.random import seeded

_NUM = 8
# The numbers of another device differ by rounding; those of another activation by far more.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_LEAST_TOLERANCE = 0.05


@torch.no_grad()
def probe(flow: Flow) -> dict[str, Tensor]:
    """Return a few draws of the base, their images and the density there.

    Args:
        flow: The flow.
    """
    given = {}
    with seeded("save", 0):
        eps = flow.base_dist.sample((_NUM,))
        if flow.context_dim:
            given = {"context": torch.randn(_NUM, flow.context_dim).to(eps)}
    return {"eps": eps, **given, **_images(flow, eps, given.get("context"))}


@torch.no_grad()
def differs(flow: Flow, saved: dict[str, Tensor]) -> str:
    """Say in words how far a flow's draws are from saved ones; nothing where they are the same.

    Args:
        flow: The flow.
        saved: What :func:`probe` returned for the flow that was saved.
    """
    tolerance = _TOLERANCES.get(saved["eps"].dtype, _LEAST_TOLERANCE)
    rounding = 100 * torch.finfo(saved["eps"].dtype).eps
    for name, ours in _images(flow, saved["eps"], saved.get("context")).items():
        theirs = saved[name].double()
        spread = theirs.std(0) if name == "draws" else 10.0
        allowed = tolerance * spread + rounding * theirs.abs()
        error = (ours.double() - theirs).abs()
        same = (ours == theirs) | (ours.isnan() & theirs.isnan()) | (error <= allowed)
        if not bool(same.all()):
            return f"{name} that differ by up to {float(error.max()):.3g}"
    return ""


def _images(flow: Flow, eps: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    draws, ladj = flow.transform.forward_and_ladj(eps, context)
    return {"draws": draws, "log-densities": flow.base_dist.log_prob(eps) - ladj}
