"""Kernels that autograd must not look into, made safe for ``torch.func.vmap``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError

Kernel = Callable[..., Tensor]


class _Opaque(torch.autograd.Function):
    """Run a kernel on ``num_rows`` batched tensors and some weights, without a graph."""

    @staticmethod
    def forward(kernel: Kernel, num_rows: int, *tensors: Tensor) -> Tensor:
        return kernel(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], kernel: Kernel, num_rows: int, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        size, dims = info.batch_size, in_dims[2:]
        if any(dim is not None for dim in dims[num_rows:]):
            members = [
                [
                    tensor if dim is None else tensor.select(dim, k)
                    for tensor, dim in zip(tensors, dims, strict=True)
                ]
                for k in range(size)
            ]
            return torch.stack([_Opaque.apply(kernel, num_rows, *member) for member in members]), 0
        rows = [
            row.expand(size, *row.shape) if dim is None else row.movedim(dim, 0)
            for row, dim in zip(tensors[:num_rows], dims[:num_rows], strict=True)
        ]
        return _Opaque.apply(kernel, num_rows, *rows, *tensors[num_rows:]), 0


def opaque(kernel: Kernel, rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Run ``kernel(*rows, *weights)`` without a graph.

    A vmapped axis becomes a leading batch axis, so that a kernel may write in place, which
    ``vmap`` refuses otherwise.

    Args:
        kernel: Works on any leading batch axes of the rows, and returns one tensor with the same
            ones.
        rows: Tensors of shape ``(*, n)`` with equal batch axes.
        weights: Tensors without batch axes.
    """
    tensors = [tensor.detach() for tensor in (*rows, *weights)]
    with torch.no_grad():
        return _Opaque.apply(kernel, len(rows), *tensors)


class _FirstOrder(torch.autograd.Function):
    """A gradient that refuses to be differentiated, as the second derivative would be wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise _checks.refusal(
            DomainError,
            "MaskedNet",
            expected="no more than the first derivative of its inverse",
            got="a second one",
            advice="Take second derivatives through the other direction, which has all of them.",
        )


class _ImplicitZero(torch.autograd.Function):
    """Zero, whose gradient is a kernel applied to the cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, kernel: Kernel, num_rows: int, *tensors: Tensor) -> Tensor:
        return torch.zeros_like(residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        residual, ctx.kernel, ctx.num_rows, *tensors = inputs
        ctx.save_for_backward(residual, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        residual, *tensors = ctx.saved_tensors
        rows, weights = tensors[: ctx.num_rows], tensors[ctx.num_rows :]
        pulled = opaque(ctx.kernel, [cotangent, *rows], weights)
        if torch.is_grad_enabled():
            pulled = _FirstOrder.apply(pulled, residual, cotangent)
        return pulled, None, None, *(None for _ in tensors)


def implicit_zero(
    residual: Tensor, kernel: Kernel, rows: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    r"""Return zero, carrying the gradient that the implicit function theorem gives a solution.

    For the solution :math:`x` of :math:`f(x; \theta) = y`, found without a graph, the residual
    :math:`r = y - f(x; \theta)` is zero in value, and :math:`\mathrm{d}x = J^{-1} \mathrm{d}r`.
    Adding the returned zero to :math:`x` thus gives it its gradient for :math:`y` and
    :math:`\theta`, to first order.

    Args:
        residual: :math:`r`, of shape ``(*, n)``.
        kernel: ``kernel(cotangent, *rows, *weights)`` solves :math:`J^\top u = g` for ``u``.
        rows: Tensors of shape ``(*, m)`` with the batch axes of the residual.
        weights: Tensors without batch axes.
    """
    tensors = [tensor.detach() for tensor in (*rows, *weights)]
    return _ImplicitZero.apply(residual, kernel, len(rows), *tensors)
