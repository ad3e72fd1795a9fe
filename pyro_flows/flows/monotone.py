"""Recipes of flexible monotone maps of each coordinate: splines, networks and polynomials.

In one dimension, where there is nothing to condition on, their maps have free parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.flows._options import TOTAL_LOG_SCALE, check_options, log_scale_bound, widths
from pyro_flows.flows.autoregressive import OnePass, oriented, reversing
from pyro_flows.flows.coupling import alternating_masks
from pyro_flows.transforms import (
    BlockNeuralAutoregressive,
    ElementwiseSpline,
    FlowTransform,
    NeuralAutoregressive,
    PolynomialAutoregressive,
    SplineAutoregressive,
    SplineCoupling,
)

_ONE_PASS = ("sampling", "scoring")


def elementwise(
    input_dim: int,
    *,
    num_transforms: int = 1,
    count_bins: int = 8,
    bound: float = 5.0,
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a flow of splines for each coordinate, which leaves these independent.

    Its size grows with the number of coordinates alone; under a transform that follows a graph it
    gives each coordinate a shape.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of splines, one after the other.
        count_bins: Number of bins.
        bound: Beyond it, on either side, a spline is the identity.
        hidden_dims: Widths of the hidden layers of the context's networks; chosen from
            ``input_dim`` if not given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of these networks' activation.

    Raises:
        DomainError: A size, the bound or the activation is not possible.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*, section 3.

    Example:
        >>> elementwise(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("elementwise", input_dim, num_transforms, context_dim, activation)
    _checks.check_positive("elementwise", "bound", bound)
    options: dict[str, Any] = {
        "count_bins": count_bins,
        "bound": bound,
        "hidden_dims": widths(hidden_dims, input_dim, context_dim),
        "context_dim": context_dim,
        "activation": activation,
    }
    return Flow(ElementwiseSpline(input_dim, **options) for _ in range(num_transforms))


def nsf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    count_bins: int = 8,
    bound: float = 5.0,
    kind: str = "autoregressive",
    one_pass: OnePass = "sampling",
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a flow of rational-quadratic splines (neural spline flow).

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of spline transforms.
        count_bins: Number of bins of each spline.
        bound: Beyond it, in each coordinate and on either side, a spline is the identity.
        kind: ``"autoregressive"``, or ``"coupling"``, of which both directions take one pass.
        one_pass: Of an autoregressive flow, the direction that takes one pass of the networks:
            ``"sampling"``, as suits a guide, or ``"scoring"``, as suits a density; the other
            one takes about two.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size, ``kind``, ``one_pass`` or the activation is not possible.

    Reference:
        Durkan, Bekasov, Murray & Papamakarios (2019), *Neural spline flows*.

    Example:
        >>> nsf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("nsf", input_dim, num_transforms, context_dim, activation)
    _checks.check_choice("nsf", "kind", kind, ("autoregressive", "coupling"))
    _checks.check_choice("nsf", "one_pass", one_pass, _ONE_PASS)
    _checks.check_positive("nsf", "bound", bound)
    options: dict[str, Any] = {
        "count_bins": count_bins,
        "bound": bound,
        "hidden_dims": widths(hidden_dims, input_dim, context_dim),
        "context_dim": context_dim,
        "activation": activation,
    }
    if kind == "coupling":
        masks = alternating_masks(input_dim, num_transforms)
        return Flow(SplineCoupling(input_dim, mask=mask, **options) for mask in masks)
    return _autoregressive(
        "nsf", lambda: SplineAutoregressive(input_dim, **options), num_transforms, one_pass
    )


def naf(
    input_dim: int,
    *,
    num_transforms: int = 2,
    num_units: int = 8,
    one_pass: OnePass = "sampling",
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a neural autoregressive flow, of a small monotone network for each coordinate.

    More than two transforms fit small data so closely that points just outside may score low.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        num_units: Number of units of each coordinate's network.
        one_pass: The direction that takes one pass: ``"sampling"``, as suits a guide, or
            ``"scoring"``, as suits a density; the other one is solved numerically.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size, ``one_pass`` or the activation is not possible.

    Reference:
        Huang, Krueger, Lacoste & Courville (2018), *Neural autoregressive flows*.

    Example:
        >>> naf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("naf", input_dim, num_transforms, context_dim, activation)

    def build() -> FlowTransform:
        return NeuralAutoregressive(
            input_dim,
            num_units=num_units,
            log_scale_bound=log_scale_bound(3.0, num_transforms),
            hidden_dims=widths(hidden_dims, input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
        )

    return _autoregressive("naf", build, num_transforms, one_pass)


def bnaf(
    input_dim: int,
    *,
    num_transforms: int = 1,
    hidden_factors: Sequence[int] = (8, 8),
    one_pass: OnePass = "sampling",
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
) -> Flow:
    """Build a block neural autoregressive flow, of one monotone network for all coordinates.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of networks.
        hidden_factors: By layer, the number of units that each coordinate owns.
        one_pass: The direction that takes one pass: ``"sampling"``, as suits a guide, or
            ``"scoring"``, as suits a density; the other one is solved numerically.
        hidden_dims: Widths of the hidden layers of the context's networks.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size or ``one_pass`` is not possible.

    Reference:
        De Cao, Titov & Aziz (2019), *Block neural autoregressive flow*.

    Example:
        >>> bnaf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("bnaf", input_dim, num_transforms, context_dim)

    def build() -> FlowTransform:
        return BlockNeuralAutoregressive(
            input_dim,
            hidden_factors=hidden_factors,
            log_scale_bound=log_scale_bound(15.0, num_transforms),
            hidden_dims=widths(hidden_dims, input_dim, context_dim),
            context_dim=context_dim,
        )

    return _autoregressive("bnaf", build, num_transforms, one_pass)


def sospf(
    input_dim: int,
    *,
    num_transforms: int = 3,
    degree: int = 5,
    num_polynomials: int = 2,
    bound: float = 4.0,
    one_pass: OnePass = "sampling",
    hidden_dims: Sequence[int] | None = None,
    context_dim: int = 0,
    activation: str = "silu",
) -> Flow:
    """Build a sum-of-squares polynomial flow.

    Args:
        input_dim: Number of coordinates.
        num_transforms: Number of autoregressive transforms.
        degree: Degree of the polynomials whose squares are summed and integrated.
        num_polynomials: Number of squares.
        bound: Beyond it, in each coordinate and on either side, a map is linear.
        one_pass: The direction that takes one pass: ``"sampling"``, as suits a guide, or
            ``"scoring"``, as suits a density; the other one is solved numerically.
        hidden_dims: Widths of the conditioners' hidden layers; chosen from ``input_dim`` if not
            given.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioners' activation.

    Raises:
        DomainError: A size, ``one_pass`` or the activation is not possible.

    Reference:
        Jaini, Selby & Yu (2019), *Sum-of-squares polynomial flow*.

    Example:
        >>> sospf(4).sample((10,)).shape
        torch.Size([10, 4])
    """
    check_options("sospf", input_dim, num_transforms, context_dim, activation)
    _checks.check_count("sospf", "degree", degree)

    def build() -> FlowTransform:
        return PolynomialAutoregressive(
            input_dim,
            degree=degree,
            num_polynomials=num_polynomials,
            bound=bound,
            # At the bound of its interval, a polynomial is the sum of its coefficients.
            coefficient_bound=min(1.0, TOTAL_LOG_SCALE / (2 * (degree + 1) * num_transforms)),
            hidden_dims=widths(hidden_dims, input_dim, context_dim),
            context_dim=context_dim,
            activation=activation,
        )

    return _autoregressive("sospf", build, num_transforms, one_pass)


def _autoregressive(
    who: str, build: Callable[[], FlowTransform], num_transforms: int, one_pass: OnePass
) -> Flow:
    _checks.check_choice(who, "one_pass", one_pass, _ONE_PASS)
    return oriented(reversing(build, num_transforms), one_pass)
