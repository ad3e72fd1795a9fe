"""Recipes: functions that build a flow from its number of coordinates.

Every recipe starts at (or next to) the identity, takes a context by ``context_dim``, and works in
one dimension, where couplings and autoregressive transforms have nothing to condition on: it then
stacks planar transforms, which bend a single coordinate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import check_activation
from pyro_flows.transforms import (
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    Compose,
    ElementwiseAffine,
    FlowTransform,
    Inverse,
    Permute,
    Planar,
)

Recipe = Callable[[int], Flow]

# The log-scales of all transforms of a flow together; far from where float32 ends, at 88.
_TOTAL_LOG_SCALE = 40.0


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
    _check_options("realnvp", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return _in_one_dimension(num_transforms, hidden_dims, context_dim)
    widths = _widths(hidden_dims, input_dim, context_dim)
    options: dict[str, Any] = {
        "hidden_dims": widths,
        "context_dim": context_dim,
        "activation": activation,
        "log_scale_bound": min(2.0, _TOTAL_LOG_SCALE / num_transforms),
    }
    masks = _alternating_masks(input_dim, num_transforms)
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
    _check_options("nice", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return _in_one_dimension(num_transforms, hidden_dims, context_dim)
    widths = _widths(hidden_dims, input_dim, context_dim)
    options: dict[str, Any] = {
        "hidden_dims": widths,
        "context_dim": context_dim,
        "activation": activation,
    }
    masks = _alternating_masks(input_dim, num_transforms)
    couplings = [AdditiveCoupling(input_dim, mask=mask, **options) for mask in masks]
    return Flow([*couplings, ElementwiseAffine(input_dim)])


def iaf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build an inverse autoregressive flow (IAF).

    Sampling takes one network pass a transform, and scoring about one more.
    The order of the coordinates is reversed between transforms.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), *Improving variational
        inference with inverse autoregressive flow*.

    Example:
        >>> iaf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    _check_options("iaf", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return _in_one_dimension(num_transforms, hidden_dims, context_dim)
    widths = _widths(hidden_dims, input_dim, context_dim)
    return Flow(_reversing(input_dim, num_transforms, widths, context_dim, activation))


def maf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a masked autoregressive flow (MAF).

    Scoring takes one network pass a transform, and sampling about one more.
    The order of the coordinates is reversed between transforms.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Papamakarios, Pavlakou & Murray (2017), *Masked autoregressive flow for density
        estimation*.

    Example:
        >>> maf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    _check_options("maf", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return _in_one_dimension(num_transforms, hidden_dims, context_dim)
    widths = _widths(hidden_dims, input_dim, context_dim)
    parts = _reversing(input_dim, num_transforms, widths, context_dim, activation)
    return Flow(Inverse(Compose(parts)))


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
    _check_options("planar", input_dim, num_transforms, context_dim)
    widths = _widths(hidden_dims, input_dim, context_dim)
    return Flow(
        Planar(input_dim, context_dim=context_dim, hidden_dims=widths)
        for _ in range(num_transforms)
    )


def _check_options(
    who: str, input_dim: int, num_transforms: int, context_dim: int, activation: str = "silu"
) -> None:
    _checks.check_count(who, "input_dim", input_dim)
    _checks.check_count(who, "num_transforms", num_transforms)
    _checks.check_count(who, "context_dim", context_dim, least=0)
    check_activation(who, activation)


def _in_one_dimension(
    num_transforms: int, hidden_dims: Sequence[int] | None, context_dim: int
) -> Flow:
    return planar(
        1, num_transforms=num_transforms, hidden_dims=hidden_dims, context_dim=context_dim
    )


def _widths(hidden_dims: Sequence[int] | None, input_dim: int, context_dim: int) -> Sequence[int]:
    """Return the hidden layers that were asked for, or two that suit the sizes."""
    if hidden_dims is not None:
        return hidden_dims
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


def _reversing(
    input_dim: int,
    num_transforms: int,
    hidden_dims: Sequence[int],
    context_dim: int,
    activation: str,
) -> list[FlowTransform]:
    """Return autoregressive transforms, the order of the coordinates reversed between them.

    The number of reversals is even, so that the whole starts at the identity.
    """
    parts: list[FlowTransform] = []
    for _ in range(num_transforms):
        transform = AffineAutoregressive(
            input_dim,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=min(3.0, _TOTAL_LOG_SCALE / num_transforms),
        )
        parts += [transform, Permute.reversal(input_dim)]
    return parts[:-1] if num_transforms % 2 else parts


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
        DomainError: The name is not a non-empty string or names a built-in recipe, or the recipe
            cannot be called.

    Example:
        >>> register("deep_iaf", lambda input_dim: iaf(input_dim, num_transforms=8))
        >>> find("deep_iaf")(3).sample().shape
        torch.Size([3])
    """
    if not isinstance(name, str) or not name or name in _BUILT_IN:
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


_BUILT_IN = frozenset(_RECIPES)
