"""The sites of a guide's latent vector."""

from typing import Any

from torch import Tensor
from torch.distributions import biject_to


def constrained_sites(guide: Any, latents: Tensor) -> dict[str, Tensor]:
    """Return the latent sites' values, by name, at points of a guide's unconstrained space.

    Args:
        guide: An ``AutoContinuous`` guide that is set up.
        latents: Points, of shape ``(N, D)``.

    Returns:
        For each site a tensor of shape ``(N,)`` + the site's shape.
    """
    values, position = {}, 0
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        shape = guide._unconstrained_shapes[name]
        chunk = latents[:, position : position + shape.numel()]
        values[name] = biject_to(site["fn"].support)(chunk.reshape(-1, *shape))
        position += shape.numel()
    return values
