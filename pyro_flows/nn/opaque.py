"""Kernels that autograd must not look into, made safe for ``torch.func.vmap``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
