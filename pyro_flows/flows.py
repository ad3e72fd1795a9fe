"""Recipes: functions that build a flow from its number of coordinates.

Every recipe starts at (or next to) the identity, takes a context by ``context_dim``, and works in one
dimension, where couplings and autoregressive transforms have nothing to condition on: it then stacks
planar transforms, which bend a single coordinate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.transforms import (
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    ElementwiseAffine,
    FlowTransform,
    Inverse,
    Permute,
    Planar,
)

Recipe = Callable[[int], Flow]


def realnvp(
    input_dim: int,
    *,
    num_transforms: int = 8,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a flow of affine couplings (RealNVP); both directions cost the same.

    Each pair of couplings splits the coordinates into other random halves and moves one after the other.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of couplings.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not given.
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
    num_transforms = _checks.check_count("realnvp", "num_transforms", num_transforms)
    if input_dim == 1:
        return planar(1, num_transforms=num_transforms, context_dim=context_dim)
    return Flow(
        AffineCoupling(
            input_dim,
            mask=mask,
            hidden_dims=hidden_dims or _widths(input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
        )
        for mask in _alternating_masks(input_dim, num_transforms)
    )


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
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not given.
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
    num_transforms = _checks.check_count("nice", "num_transforms", num_transforms)
    if input_dim == 1:
        return planar(1, num_transforms=num_transforms, context_dim=context_dim)
    couplings: list[FlowTransform] = [
        AdditiveCoupling(
            input_dim,
            mask=mask,
            hidden_dims=hidden_dims or _widths(input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
        )
        for mask in _alternating_masks(input_dim, num_transforms)
    ]
    return Flow([*couplings, ElementwiseAffine(input_dim)])


def iaf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build an inverse autoregressive flow; one network pass a transform to sample, and about one to score.

    The order of the coordinates is reversed between transforms.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), *Improving variational inference
        with inverse autoregressive flow*.

    Example:
        >>> iaf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    num_transforms = _checks.check_count("iaf", "num_transforms", num_transforms)
    if input_dim == 1:
        return planar(1, num_transforms=num_transforms, context_dim=context_dim)
    parts = _reversing(
        AffineAutoregressive(
            input_dim,
            hidden_dims=hidden_dims or _widths(input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
        )
        for _ in range(num_transforms)
    )
    return Flow(parts)


def maf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a masked autoregressive flow; one network pass a transform to score, and about one to sample.

    The order of the coordinates is reversed between transforms.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Papamakarios, Pavlakou & Murray (2017), *Masked autoregressive flow for density estimation*.

    Example:
        >>> maf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    num_transforms = _checks.check_count("maf", "num_transforms", num_transforms)
    if input_dim == 1:
        return planar(1, num_transforms=num_transforms, context_dim=context_dim)
    parts = _reversing(
        Inverse(
            AffineAutoregressive(
                input_dim,
                hidden_dims=hidden_dims or _widths(input_dim, context_dim),
                context_dim=context_dim,
                activation=activation,
            )
        )
        for _ in range(num_transforms)
    )
    return Flow(parts)


def planar(
    input_dim: int,
    *,
    num_transforms: int = 16,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
) -> Flow:
    """Build a flow of planar transforms, each of which bends the space along one direction.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of planar transforms.
        hidden_dims: Widths of the hidden layers of the context's networks.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not possible.

    Reference:
        Rezende & Mohamed (2015), *Variational inference with normalizing flows*.

    Example:
        >>> planar(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    num_transforms = _checks.check_count("planar", "num_transforms", num_transforms)
    widths = hidden_dims or _widths(input_dim, context_dim)
    return Flow(
        Planar(input_dim, context_dim=context_dim, hidden_dims=widths)
        for _ in range(num_transforms)
    )


def _widths(input_dim: int, context_dim: int) -> tuple[int, int]:
    width = max(32, 2 * (input_dim + context_dim))
    return width, width


def _alternating_masks(input_dim: int, count: int) -> list[torch.Tensor]:
    """Return ``count`` masks: random halves, each followed by its complement."""
    masks: list[torch.Tensor] = []
    for pair in range((count + 1) // 2):
        order = torch.randperm(input_dim, generator=torch.Generator().manual_seed(pair))
        mask = order < input_dim // 2
        masks += [mask, ~mask]
    return masks[:count]


def _reversing(transforms: Any) -> list[FlowTransform]:
    parts: list[FlowTransform] = []
    for transform in transforms:
        if parts:
            parts.append(Permute.reversal(transform.input_dim))
        parts.append(transform)
    return parts


_RECIPES: dict[str, Recipe] = {
    "iaf": iaf,
    "maf": maf,
    "nice": nice,
    "planar": planar,
    "realnvp": realnvp,
}


def register(name: str, recipe: Recipe) -> None:
    """Make a recipe of one's own available by name, as in ``AutoFlow(model, flow=name)``.

    Args:
        name: The name; registering it again replaces the recipe, a built-in name is refused.
        recipe: A function from the number of coordinates to a :class:`~pyro_flows.Flow`.

    Raises:
        DomainError: The name is not a non-empty string or names a built-in recipe, or the recipe cannot
            be called.

    Example:
        >>> register("deep_iaf", lambda input_dim: iaf(input_dim, num_transforms=8))
        >>> find("deep_iaf")(3).sample().shape
        torch.Size([3])
    """
    if not isinstance(name, str) or not name or _RECIPES.get(name) in _BUILT_IN:
        raise _checks.refusal(
            DomainError,
            "register",
            expected="name to be a non-empty string that is not a built-in recipe's",
            got=f"{name!r}",
            advice="Register it under another name.",
        )
    if not callable(recipe):
        raise _checks.refusal(
            DomainError,
            "register",
            expected="recipe to be a function input_dim -> Flow",
            got=_checks.describe(recipe),
        )
    _RECIPES[name] = recipe


def find(flow: str | Recipe) -> Recipe:
    """Return the recipe of that name; a recipe is returned as it is.

    Args:
        flow: A registered name, or a function from the number of coordinates to a flow.

    Raises:
        DomainError: The name is not known, or ``flow`` can be neither.

    Example:
        >>> find("maf") is maf
        True
    """
    if isinstance(flow, str):
        return _RECIPES[_checks.check_choice("flows.find", "flow", flow, tuple(_RECIPES))]
    if not callable(flow):
        raise _checks.refusal(
            DomainError,
            "flows.find",
            expected="flow to be a name or a function input_dim -> Flow",
            got=_checks.describe(flow),
        )
    return flow


_BUILT_IN = frozenset(_RECIPES.values())
