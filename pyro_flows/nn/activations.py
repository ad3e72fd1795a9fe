"""Activations by name, each with its slope: the adjoint of a masked network needs both."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_flows import _checks
from pyro_flows.numerics import pull_tanh


class Activation(NamedTuple):
    """An element-wise function, and what its argument receives, given what its value does."""

    function: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor], Tensor]
    both: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and the derivative at a pre-activation, to be differentiated again."""
        return self.both(a) if self.both else (self.function(a), self.slope(a))

    def slope(self, a: Tensor) -> Tensor:
        """Return the derivative at a pre-activation."""
        return self.pull(torch.ones_like(a), a)


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(a)
    return value, 1 - value * value


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    # What autograd computes the slope by has no derivative of its own.
    gate = torch.sigmoid(a)
    value = a * gate
    return value, gate + value * (1 - gate)


# The operations by which autograd would do it, one for each activation.
_aten = torch.ops.aten

ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda g, a: _aten.threshold_backward(g, a, 0)),
    "leaky_relu": Activation(
        functional.leaky_relu, lambda g, a: _aten.leaky_relu_backward(g, a, 0.01, False)
    ),
    "elu": Activation(functional.elu, lambda g, a: _aten.elu_backward(g, 1, 1, 1, False, a)),
    "silu": Activation(functional.silu, _aten.silu_backward, _silu),
    "tanh": Activation(torch.tanh, lambda g, a: pull_tanh(g, torch.tanh(a)), _tanh),
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
