"""Activations by name, each with its slope: the adjoint of a masked network needs both."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_flows import _checks


class Activation(NamedTuple):
    """An element-wise function and its derivative, both as functions of the pre-activation."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _silu_slope(a: Tensor) -> Tensor:
    gate = torch.sigmoid(a)
    return gate * (1 + a * (1 - gate))


def _step(a: Tensor, low: float) -> Tensor:
    return torch.where(a > 0, torch.ones_like(a), torch.full_like(a, low))


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda a: _step(a, 0.0)),
    "leaky_relu": Activation(functional.leaky_relu, lambda a: _step(a, 0.01)),
    "elu": Activation(functional.elu, lambda a: torch.exp(a.clamp(max=0))),
    "silu": Activation(functional.silu, _silu_slope),
    "tanh": Activation(torch.tanh, lambda a: 1 - torch.tanh(a).square()),
}


def check_activation(who: str, name: str) -> str:
    """Return ``name`` if it is one of the known activations.

    Args:
        who: The caller, for the error's message.
        name: One of ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"silu"``, ``"tanh"``.

    Raises:
        DomainError: The name is not known.
    """
    return _checks.check_choice(who, "activation", name, tuple(ACTIVATIONS))
