"""The sites of a guide's latent vector."""

from collections.abc import Mapping
from typing import Any

import torch
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


def places_of(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return for each latent the places of its coordinates in the vector of all.

    Args:
        shapes: The latents' unconstrained shapes, in their order.
    """
    places, start = {}, 0
    for name, shape in shapes.items():
        places[name] = torch.arange(start, start + shape.numel()).reshape(shape)
        start += shape.numel()
    return places


def event_dim_of(site: Any, shape: torch.Size) -> int:
    """Return how many axes of a latent's unconstrained shape are not of its batch.

    Args:
        site: Its site in a trace.
        shape: Its unconstrained shape.
    """
    event_dim: int = site["fn"].event_dim + len(shape) - site["value"].dim()
    return event_dim
