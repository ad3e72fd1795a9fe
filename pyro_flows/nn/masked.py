r"""A masked (autoregressive) conditioner that is cheap in both directions.

Coordinate :math:`i` counts from zero. A hidden unit of degree :math:`k` sees the coordinates
:math:`\le k`, and the parameters of coordinate :math:`j` see the units of degree :math:`< j`
(Germain, Gregor, Murray & Larochelle 2015).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.activations import check_activation
from pyro_flows.nn.adjoint import Pass
from pyro_flows.nn.implicit import ElementMap, attach_gradient
from pyro_flows.nn.opaque import opaque
from pyro_flows.nn.stages import pre_activations
from pyro_flows.nn.walk import Walk

# Maps the score of a random point, the gradient of its log-density, to that of its image.
Push = Callable[[Tensor], Tensor]


class MaskedLinear(nn.Module):
    """A linear layer whose forbidden weights are masked out.

    Args:
        mask: Of shape ``(output_dim, input_dim)``; true where a weight may act.
    """

    mask: Tensor
    weight: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        # Each row is scaled by the number of inputs that it really has.
        fan_in = mask.sum(-1, keepdim=True).clamp(min=1)
        weight = nn.init.uniform_(torch.empty(mask.shape), -1.0, 1.0) * fan_in.rsqrt()
        self.bias = nn.Parameter(torch.zeros(mask.shape[0]))
        # Weights that are all forbidden, as with one coordinate, would never get a gradient.
        if bool(mask.any()):
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def masked_weight(self) -> Tensor:
        """Return the weights with the forbidden ones at zero."""
        # Not a product: in its gradient, an overflow at a forbidden weight would turn into a NaN.
        return torch.where(self.mask, self.weight, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, input_dim)`` to ``(*, output_dim)``."""
        return nn.functional.linear(x, self.masked_weight(), self.bias)


class MaskedNet(nn.Module):
    """Map coordinates to parameters, those of each coordinate from the coordinates before it only.

    The last layer starts at zero, so that a transform built on the network starts at the identity.

    Args:
        input_dim: Number of coordinates, ``D``.
        num_params: Number of parameters per coordinate, ``K``.
        hidden_dims: Widths of the hidden layers, each at least ``D - 1`` (``D`` with a context).
        context_dim: Number of entries of the context, which every parameter sees; zero for none.
        activation: Name of the activation.

    Raises:
        DomainError: A size is not a positive integer, a layer is too narrow to hold every degree,
            or the activation is not known.

    Reference:
        Germain, Gregor, Murray & Larochelle (2015), *MADE: Masked autoencoder for distribution
        estimation*, section 4.

    Example:
        >>> import torch
        >>> net = MaskedNet(3, 2, hidden_dims=(16,))
        >>> net(torch.randn(100, 3)).shape
        torch.Size([100, 2, 3])
    """

    def __init__(
        self,
        input_dim: int,
        num_params: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim)
        self.num_params = _checks.check_count(who, "num_params", num_params)
        self.context_dim = _checks.check_count(who, "context_dim", context_dim, least=0)
        self.activation = check_activation(who, activation)
        degrees = self._hidden_degrees(_checks.check_counts(who, "hidden_dims", hidden_dims))
        inputs = torch.arange(input_dim)
        outputs = inputs.repeat(num_params) - 1
        levels = [inputs, *degrees, outputs]
        masks = [above[:, None] >= below for below, above in pairwise(levels)]
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        width = len(masks[0])
        self.from_context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        # By stage, how many units the first i coordinates determine, for i = 0 ... D.
        steps = range(input_dim + 1)
        edges = [
            list(steps),
            *([int((degree < i).sum()) for i in steps] for degree in degrees),
            [i * num_params for i in steps],
        ]
        self._walk = Walk(edges, num_params, activation)
        self._start_at_zero()

    def _hidden_degrees(self, widths: Sequence[int]) -> list[Tensor]:
        lowest = -1 if self.context_dim else 0
        levels = self.input_dim - 1 - lowest
        if levels == 0:
            return []
        if min(widths, default=levels) < levels:
            raise _checks.refusal(
                DomainError,
                type(self).__name__,
                expected=f"hidden_dims of at least {levels} for input_dim={self.input_dim}",
                got=f"hidden_dims={tuple(widths)}",
                advice="Widen the narrow layers, or some coordinates have no unit that sees them.",
            )
        return [lowest + torch.arange(width) * levels // width for width in widths]

    @property
    def _linears(self) -> list[MaskedLinear]:
        return cast("list[MaskedLinear]", list(self.layers))

    def _start_at_zero(self) -> None:
        nn.init.zeros_(self._linears[-1].weight)
        if len(self.layers) == 1 and self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters, of shape ``(*, num_params, input_dim)``.

        Args:
            x: Coordinates, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.
        """
        return self._pass(x, self._shift(context), self._weights()).params

    def _shift(self, context: Tensor | None) -> Tensor | None:
        return None if self.from_context is None else self.from_context(context)

    def _pass(self, x: Tensor, shift: Tensor | None, weights: list[Tensor]) -> Pass:
        return Pass(self._walk, pre_activations(x, shift, weights, self.activation), weights)

    def _weights(self) -> list[Tensor]:
        """Return the matrix and the bias of each layer, in turn."""
        return [t for layer in self._linears for t in (layer.masked_weight(), layer.bias)]

    def map(
        self, x: Tensor, context: Tensor | None, element: ElementMap
    ) -> tuple[Tensor, Tensor, Push]:
        r"""Return :math:`y_i = f(x_i;\, p_i(x_{<i}, c))`.

        Args:
            x: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            element: The map :math:`f`.

        Returns:
            ``y``, the ladj of each coordinate, of shape ``(*, input_dim)``, and what maps the
            score of ``x`` to that of ``y``.
        """
        passed = self._pass(x, self._shift(context), self._weights())
        y, ladj, tangent = element.forward_and_tangent(x, passed.params)

        def push(score: Tensor) -> Tensor:
            alone, share = tangent.push(score)
            by_others = passed.received(share)[0]
            return alone - passed.solve_transposed(by_others, *tangent.slope_and_pull())

        return y, ladj, push

    def solve(
        self, y: Tensor, context: Tensor | None, element: ElementMap
    ) -> tuple[Tensor, Tensor, Push]:
        r"""Return the ``x`` at which every coordinate's map, given the ones before, meets ``y``.

        Coordinate by coordinate, :math:`x_i = f^{-1}(y_i;\, p_i(x_{<i}, c))`. Where gradients are
        enabled, ``x`` has those of the implicit function theorem.

        Args:
            y: Targets, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            element: The map :math:`f`.

        Returns:
            ``x``, the ladj of each coordinate's inverse, of shape ``(*, input_dim)``, and what
            maps the score of ``y`` to that of ``x``.
        """
        own = self._shift(context)
        shift = y.new_zeros(1) if own is None else own
        batch = torch.broadcast_shapes(y.shape[:-1], shift.shape[:-1])
        rows = [y.expand(*batch, -1), shift.expand(*batch, -1)]
        weights = self._weights()

        x, ladj = self._search(rows, weights, element)
        if not torch.is_grad_enabled():

            def push_later(score: Tensor) -> Tensor:
                return self._pull(x, own, weights, element)[1](score)

            return x, ladj, push_later
        x = attach_gradient(x, rows, weights, self._walk, element)
        ladj, push = self._pull(x, own, weights, element)
        return x, -ladj, push

    def _pull(
        self, x: Tensor, shift: Tensor | None, weights: list[Tensor], element: ElementMap
    ) -> tuple[Tensor, Push]:
        """Return the map's ladj, and what maps the score of its result back to that of ``x``."""
        passed = self._pass(x, shift, weights)
        _, ladj, tangent = element.forward_and_tangent(x, passed.params)

        def push(score: Tensor) -> Tensor:
            alone, share = tangent.pull(score)
            return alone + passed.received(share)[0]

        return ladj, push

    def _search(
        self, rows: list[Tensor], weights: list[Tensor], element: ElementMap
    ) -> tuple[Tensor, ...]:
        def kernel(y: Tensor, shift: Tensor, *weights: Tensor) -> Tensor:
            if len(weights) == 2 and shift.shape[-1] > 1:
                shift = self._walk.reorder(shift)
            ordered = self._walk.by_coordinate(weights)
            return self._walk.solve(y, shift, ordered, element.inverse_and_ladj)

        return opaque(kernel, rows, weights).chunk(2, -1)
