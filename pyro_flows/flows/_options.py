"""What recipes share: the options they check, and the sizes they choose."""

from collections.abc import Callable, Sequence

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.nn.activations import check_activation

Recipe = Callable[[int], Flow]

# The log-scales of all transforms of a flow together; far from where float32 ends, at 88.
TOTAL_LOG_SCALE = 40.0


def check_options(
    who: str, input_dim: int, num_transforms: int, context_dim: int, activation: str = "silu"
) -> None:
    """Refuse sizes and activations that are not possible, in the recipe's name."""
    _checks.check_count(who, "input_dim", input_dim)
    _checks.check_count(who, "num_transforms", num_transforms)
    _checks.check_count(who, "context_dim", context_dim, least=0)
    check_activation(who, activation)


def widths(hidden_dims: Sequence[int] | None, input_dim: int, context_dim: int) -> Sequence[int]:
    """Return the hidden layers that were asked for, or two that suit the sizes."""
    if hidden_dims is not None:
        return hidden_dims
    width = max(32, 2 * (input_dim + context_dim))
    return width, width


def log_scale_bound(most: float, num_transforms: int) -> float:
    """Return the bound of one of many log-scales, so that all together stay finite."""
    return min(most, TOTAL_LOG_SCALE / num_transforms)
