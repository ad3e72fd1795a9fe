"""The trace of a Jacobian: exactly, exactly at the cost of one layer, or by one random product."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

Velocity = Callable[[Tensor], Tensor]


def by_all_products(velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return :math:`v(z)`, the trace of its Jacobian, and the squared Frobenius norm of that.

    One Jacobian-vector product for each coordinate, all in one call.

    Args:
        velocity: Maps each row of its argument by itself.
        z: Of shape ``(*, D)``.
    """

    def along(direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, tangent = _product(velocity, z, direction.expand_as(z))
        return value, (tangent * direction).sum(-1), tangent.square().sum(-1)

    axes = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    values, diagonal, squares = torch.func.vmap(along)(axes)
    # The value is computed once: it does not depend on the direction.
    return values[0], diagonal.sum(0), squares.sum(0)


def by_one_product(velocity: Velocity, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return :math:`v(z)`, :math:`\epsilon^\top J \epsilon` and :math:`\|J \epsilon\|^2`.

    Their means are the trace of the Jacobian :math:`J` and its squared Frobenius norm, where the
    entries of the noise are independent, of mean zero and variance one.

    Args:
        velocity: Maps each row of its argument by itself.
        z: Of shape ``(*, D)``.
        noise: :math:`\epsilon`, of the shape of ``z``.

    Reference:
        Hutchinson (1990), *A stochastic estimator of the trace of the influence matrix for
        Laplacian smoothing splines*, proposition 1.
    """
    value, tangent = _product(velocity, z, noise)
    return value, (tangent * noise).sum(-1), tangent.square().sum(-1)


def _product(velocity: Velocity, z: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    value, tangent = torch.func.jvp(velocity, (z,), (direction,))  # type: ignore[misc]
    return value, tangent


class TraceOfLayers:
    r"""The trace of a fully connected network's Jacobian, given the slopes of its activations.

    .. math:: \mathrm{tr}(W_3 S_2 W_2 S_1 W_1)
        = s_2^\top \left(W_2 \circ (W_1 W_3)^\top\right) s_1, \qquad S_l = \mathrm{diag}(s_l)

    With up to two hidden layers it costs no more than a layer, whatever the number of coordinates;
    with more, as much as one pass for each coordinate.

    Args:
        matrices: The matrix of each layer; the last has as many rows as the first has columns.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._matrices = matrices
        self._kernel: Tensor | None = None
        first, last = matrices[0], matrices[-1]
        if len(matrices) == 1:
            self._kernel = first.trace()
        elif len(matrices) == 2:
            self._kernel = (first * last.mT).sum(-1)
        elif len(matrices) == 3:
            self._kernel = matrices[1] * (first @ last).mT

    def __call__(self, slopes: Sequence[Tensor]) -> Tensor:
        """Return the trace, of shape ``(*)``, or ``()`` without hidden layers.

        Args:
            slopes: Those of each hidden layer, of shape ``(*, n)``.
        """
        if self._kernel is None:
            return self._along_each_coordinate(slopes)
        if len(slopes) == 2:
            return (linear(slopes[0], self._kernel) * slopes[1]).sum(-1)
        return slopes[0] @ self._kernel if slopes else self._kernel

    def _along_each_coordinate(self, slopes: Sequence[Tensor]) -> Tensor:
        *before, last = self._matrices
        rows = tangents(before, slopes[:-1], None)
        return (rows * slopes[-1][..., None, :] * last).sum((-1, -2))


def tangents(
    matrices: Sequence[Tensor], slopes: Sequence[Tensor], directions: Tensor | None
) -> Tensor:
    """Return the products of a fully connected network's Jacobian with some directions.

    Args:
        matrices: The matrix of each layer.
        slopes: Those of each hidden layer, of shape ``(*, n)``.
        directions: One for each point, of shape ``(*, D)``; each axis, if not given.

    Returns:
        Of shape ``(*, D)``; or ``(*, D, D)``, one row for each axis.
    """
    first, *rest = matrices
    rows = first.mT if directions is None else linear(directions, first)
    for slope, matrix in zip(slopes, rest, strict=True):
        rows = linear(rows * (slope[..., None, :] if directions is None else slope), matrix)
    return rows
