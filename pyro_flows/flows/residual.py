"""Recipes of transforms that add a bend to the identity: planar, radial, Sylvester."""

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows._options import check_options, widths
from pyro_flows.transforms import Planar, Radial, Sylvester


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
    check_options("planar", input_dim, num_transforms, context_dim)
    hidden_dims = widths(hidden_dims, input_dim, context_dim)
    return Flow(
        Planar(input_dim, context_dim=context_dim, hidden_dims=hidden_dims)
        for _ in range(num_transforms)
    )


def radial(
    input_dim: int,
    *,
    num_transforms: int = 16,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
) -> Flow:
    """Build a flow of radial transforms, each of which pushes the space away from a centre.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of radial transforms.
        hidden_dims: Widths of the hidden layers of the context's networks.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not possible.

    Reference:
        Rezende & Mohamed (2015), *Variational inference with normalizing flows*.

    Example:
        >>> radial(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("radial", input_dim, num_transforms, context_dim)
    hidden_dims = widths(hidden_dims, input_dim, context_dim)
    return Flow(
        Radial(input_dim, context_dim=context_dim, hidden_dims=hidden_dims)
        for _ in range(num_transforms)
    )


def sylvester(
    input_dim: int,
    *,
    num_transforms: int = 4,
    num_hidden: int | None = None,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
) -> Flow:
    """Build a flow of Sylvester transforms, which bend the space along several directions.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of Sylvester transforms.
        num_hidden: Number of directions of each, at most ``input_dim``; 16 or ``input_dim``,
            whichever is less, if not given.
        hidden_dims: Widths of the hidden layers of the context's networks.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not possible.

    Reference:
        van den Berg, Hasenclever, Tomczak & Welling (2018), *Sylvester normalizing flows for
        variational inference*.

    Example:
        >>> sylvester(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("sylvester", input_dim, num_transforms, context_dim)
    hidden_dims = widths(hidden_dims, input_dim, context_dim)
    num_hidden = min(16, input_dim) if num_hidden is None else num_hidden
    return Flow(
        Sylvester(
            input_dim, num_hidden=num_hidden, context_dim=context_dim, hidden_dims=hidden_dims
        )
        for _ in range(num_transforms)
    )


def in_one_dimension(
    num_transforms: int, hidden_dims: Sequence[int] | None, context_dim: int
) -> Flow:
    """Return a flow of one coordinate: couplings have nothing there to condition on."""
    return planar(
        1, num_transforms=num_transforms, hidden_dims=hidden_dims, context_dim=context_dim
    )
