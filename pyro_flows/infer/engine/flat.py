"""Parameters as views of one flat tensor."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class FlatParameters:
    """Lay parameters out in one flat tensor for each dtype and device, as views of it.

    An optimiser then steps one tensor, and a norm is one reduction. The parameters stay the
    objects that modules and Pyro's store hold, under their names; :meth:`release` gives each a
    memory of its own again.

    Args:
        parameters: Leaf tensors by name.

    Attributes:
        parameters: The same, in the order of their layout.
        tensors: The flat tensors.
        grads: One gradient for each flat tensor, also in its ``.grad``.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
        for name, parameter in parameters.items():
            kinds.setdefault((parameter.dtype, parameter.device), {})[name] = parameter
        self._buckets = list(kinds.values())
        self.parameters = {name: p for bucket in self._buckets for name, p in bucket.items()}
        self.tensors = [_flat(list(bucket.values())) for bucket in self._buckets]
        self.grads = [torch.zeros_like(tensor) for tensor in self.tensors]
        for tensor, grad in zip(self.tensors, self.grads, strict=True):
            tensor.grad = grad
        for parameter, view in zip(self.parameters.values(), self._views(), strict=True):
            parameter.data = view

    def _views(self) -> list[Tensor]:
        return [view for named in self.split(self.tensors) for view in named.values()]

    def split(self, tensors: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return views by the parameters' names of tensors laid out like the flat ones.

        Args:
            tensors: One for each flat tensor, of its shape.
        """
        named = []
        for tensor, bucket in zip(tensors, self._buckets, strict=True):
            parts = tensor.split([parameter.numel() for parameter in bucket.values()])
            shapes = [parameter.shape for parameter in bucket.values()]
            views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
            named.append(dict(zip(bucket, views, strict=True)))
        return named

    def flatten(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return flat tensors of values by the parameters' names."""
        return [_flat([named[name] for name in bucket]) for bucket in self._buckets]

    @torch.no_grad()
    def copy(self) -> list[Tensor]:
        """Return a copy of the flat tensors."""
        return [tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def assign(self, tensors: Sequence[Tensor]) -> None:
        """Set all parameters from tensors laid out like the flat ones."""
        for tensor, value in zip(self.tensors, tensors, strict=True):
            tensor.copy_(value)

    def release(self) -> None:
        """Give each parameter a memory of its own, with its present value."""
        for parameter in self.parameters.values():
            parameter.data = parameter.data.clone()


def _flat(parts: Sequence[Tensor]) -> Tensor:
    # Not by torch.nn.utils.parameters_to_vector, which keeps the graph of the parameters' views.
    return torch.cat([part.detach().reshape(-1) for part in parts])
