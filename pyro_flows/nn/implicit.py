"""The gradient of a masked network's inverse, by the implicit function theorem."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.adjoint import Pass
from pyro_flows.nn.stages import pre_activations
from pyro_flows.nn.walk import Walk

# Rows whose gradients are computed at a time, for the memory.
_CHUNK = 1024


class Tangent(Protocol):
    """The derivatives of a map at points ``x`` and parameters, for use without a graph."""

    def push(self, score: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the score of :math:`y`, given that of :math:`x`, and its share of parameters.

        .. math:: g_y = \frac{g_x - \partial_x \log f'}{f'}, \qquad
            g_y \, \partial_p f + \partial_p \log f'

        Args:
            score: Of shape ``(*, n)``.

        Returns:
            The score of shape ``(*, n)``, and the share of shape ``(*, K, n)``.
        """

    def pull(self, score: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the score of :math:`x`, given that of :math:`y`, and its share of parameters.

        .. math:: g_x = g_y f' + \partial_x \log f', \qquad
            g_y \, \partial_p f + \partial_p \log f'

        Args:
            score: Of shape ``(*, n)``.

        Returns:
            The score of shape ``(*, n)``, and the share of shape ``(*, K, n)``.
        """

    def slope_and_pull(self) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\partial f / \partial x` and :math:`\partial f / \partial p`."""


class ElementMap(Protocol):
    """What the inverse needs to know of the map of one coordinate, :math:`y = f(x; p)`."""

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return ``y`` and :math:`\log f'`, for ``x`` of shape ``(*, n)``."""

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return ``x`` and minus :math:`\log f'`, for ``y`` of shape ``(*, n)``."""

    def slope_and_pull(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\partial f / \partial x` and :math:`\partial f / \partial p`."""

    def forward_and_tangent(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        """Return what ``forward_and_ladj`` does, and the derivatives there."""


def attach_gradient(
    x: Tensor, rows: Sequence[Tensor], weights: Sequence[Tensor], walk: Walk, element: ElementMap
) -> Tensor:
    r"""Return a solution ``x`` of :math:`y_j = f(x_j;\, p_j(x_{<j}))` with its gradient.

    With the Jacobian

    .. math:: J_{ji} = f'_j \delta_{ij}
        + \frac{\partial f_j}{\partial p_j} \frac{\partial p_j}{\partial x_i}

    a cotangent :math:`g` of :math:`x` becomes :math:`u = J^{-\top} g` for :math:`y`, and
    :math:`-u_j \, \partial f_j / \partial p_j` for the parameters. Nothing of the network is kept
    for it but its input: the rest is computed again.

    Args:
        x: The solution, of shape ``(*, D)``.
        rows: The targets ``y`` and the shift of the first stage, with the batch axes of ``x``.
        weights: Matrix and bias of each layer, in turn.
        walk: The network's blocks.
        element: The map :math:`f`.
    """
    return _Solution.apply(walk, element, x.detach(), *rows, *weights)


class _Solution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(walk: Walk, element: ElementMap, x: Tensor, *sources: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.walk, ctx.element, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Gradients.apply(ctx.walk, ctx.element, cotangent, *ctx.saved_tensors)
        return None, None, None, *gradients


class _Gradients(torch.autograd.Function):
    """The gradients for targets, shift and weights; they refuse to be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        walk: Walk,
        element: ElementMap,
        cotangent: Tensor,
        x: Tensor,
        y: Tensor,
        shift: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        # The targets are not needed here; but they are what a second derivative would be for.
        flat = [row.reshape(-1, row.shape[-1]).split(_CHUNK) for row in (cotangent, x, shift)]
        chunks = [_of_chunk(walk, element, rows, weights) for rows in zip(*flat, strict=True)]
        u, by_shift, *by_weights = zip(*chunks, strict=True)
        return (
            torch.cat(u).reshape(x.shape),
            torch.cat(by_shift).reshape(shift.shape),
            *(functools.reduce(torch.add, parts) for parts in by_weights),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise _checks.second_derivative(
            "MaskedNet",
            of="inverse",
            advice="Take second derivatives through the other direction, which has all of them.",
        )


def _of_chunk(
    walk: Walk, element: ElementMap, rows: tuple[Tensor, ...], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients for some targets and their shifts, and for the weights."""
    cotangent, x, shift = rows
    activation = ACTIVATIONS[walk.activation]
    passed = Pass(walk, pre_activations(x, shift, weights, walk.activation), weights)
    u, *deltas = passed.solve_and_send(cotangent, *element.slope_and_pull(x, passed.params))
    gradients = [u, -deltas[0].sum_to_size(shift.shape)]
    for stage, delta in zip(
        [x, *map(activation.function, passed.stages[:-1])], deltas, strict=True
    ):
        gradients += [-(delta.T @ stage), -delta.sum(0)]
    return gradients
