"""Recipes of couplings: both directions take one pass of the networks."""

from collections.abc import Sequence
from typing import Any

import torch

from pyro_flows.distributions import Flow
from pyro_flows.flows._options import check_options, log_scale_bound, widths
from pyro_flows.flows.residual import in_one_dimension
from pyro_flows.transforms import AdditiveCoupling, AffineCoupling, ElementwiseAffine


def realnvp(
    input_dim: int,
    *,
    num_transforms: int = 8,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a flow of affine couplings (RealNVP); both directions cost the same.

    Each pair of couplings splits the coordinates into other random halves and moves one after the
    other.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of couplings.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*.

    Example:
        >>> realnvp(4, num_transforms=6).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("realnvp", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return in_one_dimension(num_transforms, hidden_dims, context_dim)
    hidden_dims = widths(hidden_dims, input_dim, context_dim)
    options: dict[str, Any] = {
        "hidden_dims": hidden_dims,
        "context_dim": context_dim,
        "activation": activation,
        "log_scale_bound": log_scale_bound(2.0, num_transforms),
    }
    masks = alternating_masks(input_dim, num_transforms)
    return Flow(AffineCoupling(input_dim, mask=mask, **options) for mask in masks)


def nice(
    input_dim: int,
    *,
    num_transforms: int = 8,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a flow of additive couplings and one final scaling (NICE).

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of couplings.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*.

    Example:
        >>> nice(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("nice", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return in_one_dimension(num_transforms, hidden_dims, context_dim)
    hidden_dims = widths(hidden_dims, input_dim, context_dim)
    options: dict[str, Any] = {
        "hidden_dims": hidden_dims,
        "context_dim": context_dim,
        "activation": activation,
    }
    masks = alternating_masks(input_dim, num_transforms)
    couplings = [AdditiveCoupling(input_dim, mask=mask, **options) for mask in masks]
    return Flow([*couplings, ElementwiseAffine(input_dim)])


def alternating_masks(input_dim: int, count: int) -> list[torch.Tensor]:
    """Return ``count`` masks: random halves, each followed by its complement.

    No mask is that of the transform before, which two couplings in a row would make one.
    """
    if input_dim == 1:
        # There is no half to keep.
        return [torch.tensor([False])] * count
    masks: list[torch.Tensor] = []
    for pair in range((count + 1) // 2):
        order = torch.randperm(
            input_dim, generator=torch.Generator().manual_seed(pair), device="cpu"
        )
        mask = order < input_dim // 2
        if masks and torch.equal(mask, masks[-1]):
            mask = ~mask
        masks += [mask, ~mask]
    return masks[:count]
