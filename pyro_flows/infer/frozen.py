"""Parts of a distribution that stays as it is: a flow without parameters, supports that move."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.transforms import FlowTransform
from pyro_flows.transforms.base import any_float
from pyro_flows.transforms.domains import same_constraint


def hold(module: nn.Module) -> None:
    """Make parameters buffers: Pyro's store, which would train them, leaves buffers alone.

    Args:
        module: Changed in place.
    """
    for part in module.modules():
        for name in list(part._parameters):
            parameter = part._parameters.pop(name)
            part.register_buffer(name, None if parameter is None else parameter.detach())


def is_smooth(flow: Flow) -> bool:
    """Whether a flow maps real vectors, in a direction that has the derivatives of searches.

    Args:
        flow: The flow.
    """
    if not same_constraint(flow.base_dist.support, constraints.real_vector):
        return False
    kind = any_float(flow)
    with torch.enable_grad():
        eps = torch.zeros(flow.input_dim).to(torch.zeros(()) if kind is None else kind)
        image = flow.transform(eps.requires_grad_())
        (grad,) = torch.autograd.grad(image.square().sum(), eps, create_graph=True)
        try:
            torch.autograd.grad(grad.sum(), eps)
        except DomainError:
            return False
    return True


def mapped_support(support: Constraint, fn: Callable[[Tensor], Tensor]) -> Constraint:
    """Return a support with a function applied to the tensors that bound it.

    Args:
        support: The support.
        fn: From a tensor to another.
    """

    def mapped(value: Any) -> Any:
        if isinstance(value, list):
            return [mapped(entry) for entry in value]
        if isinstance(value, Constraint):
            return mapped_support(value, fn)
        return fn(value) if isinstance(value, Tensor) else value

    new = copy.copy(support)
    vars(new).update({key: mapped(value) for key, value in vars(support).items()})
    return new


class OnPart(FlowTransform):
    """Transform some neighbouring coordinates, and leave the others as they are.

    Args:
        transform: Of the coordinates that are moved.
        begin: The first of them.
        input_dim: Number of all coordinates.
    """

    def __init__(self, transform: FlowTransform, begin: int, input_dim: int) -> None:
        super().__init__(input_dim)
        self.transform = transform
        self._split = [begin, transform.input_dim, input_dim - begin - transform.input_dim]
        self.inverse_kind = transform.inverse_kind  # type: ignore[misc]

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        left, x, right = x.split(self._split, -1)
        y, ladj = self.transform._forward_and_ladj(x, None)
        return torch.cat([left, y, right], -1), ladj

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        left, y, right = y.split(self._split, -1)
        x, ladj = self.transform._inverse_and_ladj(y, None)
        return torch.cat([left, x, right], -1), ladj
