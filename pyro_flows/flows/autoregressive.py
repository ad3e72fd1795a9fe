"""Recipes of autoregressive transforms: one pass in one direction, about two in the other."""

from collections.abc import Callable, Sequence
from typing import Literal

from pyro_flows.distributions import Flow
from pyro_flows.flows._options import check_options, log_scale_bound, widths
from pyro_flows.flows.residual import in_one_dimension
from pyro_flows.transforms import AffineAutoregressive, Compose, FlowTransform, Inverse, Permute

OnePass = Literal["sampling", "scoring"]


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
    check_options("iaf", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return in_one_dimension(num_transforms, hidden_dims, context_dim)
    parts = _affine(input_dim, num_transforms, hidden_dims, context_dim, activation)
    return oriented(parts, "sampling")


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
    check_options("maf", input_dim, num_transforms, context_dim, activation)
    if input_dim == 1:
        return in_one_dimension(num_transforms, hidden_dims, context_dim)
    parts = _affine(input_dim, num_transforms, hidden_dims, context_dim, activation)
    return oriented(parts, "scoring")


def _affine(
    input_dim: int,
    num_transforms: int,
    hidden_dims: Sequence[int] | None,
    context_dim: int,
    activation: str,
) -> list[FlowTransform]:
    def build() -> FlowTransform:
        return AffineAutoregressive(
            input_dim,
            hidden_dims=widths(hidden_dims, input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound(3.0, num_transforms),
        )

    return reversing(build, num_transforms)


def reversing(build: Callable[[], FlowTransform], num_transforms: int) -> list[FlowTransform]:
    """Return autoregressive transforms, the order of the coordinates reversed between them.

    The number of reversals is even, so that the whole starts at the identity.
    """
    parts: list[FlowTransform] = []
    for _ in range(num_transforms):
        transform = build()
        parts += [transform, Permute.reversal(transform.input_dim)]
    return parts[:-1] if num_transforms % 2 else parts


def oriented(parts: list[FlowTransform], one_pass: OnePass) -> Flow:
    """Return a flow of autoregressive transforms, of which one direction takes a single pass."""
    whole = Compose(parts)
    return Flow(whole if one_pass == "sampling" else Inverse(whole))
