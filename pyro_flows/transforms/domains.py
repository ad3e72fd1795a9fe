"""Where vectors lie: constraints, and whether two of them agree."""

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor


def on_vectors(constraint: Any) -> Any:
    """Return a constraint on one coordinate as one on vectors."""
    if constraint is constraints.real:
        return constraints.real_vector
    return constraints.independent(constraint, 1)


def same_constraint(left: Any, right: Any) -> bool:
    """Whether two constraints on vectors are of one kind, with the same bounds."""
    left, right = _per_entry(left), _per_entry(right)
    return type(left) is type(right) and all(
        _same_bound(bound, vars(right)[name]) for name, bound in vars(left).items()
    )


def _per_entry(constraint: Any) -> Any:
    """Return what a constraint asks of each entry, taken out of its wrappers."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _same_bound(left: Any, right: Any) -> bool:
    """Whether two bounds are equal, to the rounding of float32."""
    pair = (left, right)
    if not all(isinstance(bound, (int, float, Tensor)) for bound in pair):
        return bool(left == right)
    left, right = torch.broadcast_tensors(*(torch.as_tensor(bound).double() for bound in pair))
    return torch.allclose(left, right.to(left.device), rtol=1e-6, atol=0.0)
