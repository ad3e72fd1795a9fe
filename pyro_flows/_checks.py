"""Argument checks; the only place that words an argument error.

Every message has one form: *who: expected X; got Y. Do Z.*
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_flows.errors import DomainError, FlowError, ShapeError

_Choice = TypeVar("_Choice")


def refusal(
    error: type[FlowError], who: str, *, expected: str, got: str, advice: str = ""
) -> FlowError:
    """Word an error in the one form that all messages share."""
    message = f"{who}: expected {expected}; got {got}."
    return error(f"{message} {advice}" if advice else message)


def second_derivative(who: str, *, of: str, advice: str) -> FlowError:
    """Word the refusal to differentiate once more what has one derivative only."""
    return refusal(
        DomainError,
        who,
        expected=f"no more than the first derivative of its {of}",
        got="a second one",
        advice=advice,
    )


def describe(value: object) -> str:
    """Name a value's kind and shape, for the *got* half of a message."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def check_count(who: str, name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise refusal(
            DomainError,
            who,
            expected=f"{name} to be an integer >= {least}",
            got=f"{value!r}",
            advice=f"Pass {name}={least} or more.",
        )
    return int(value)


def check_counts(who: str, name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Return ``values`` as a tuple of positive ints."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise refusal(
            DomainError,
            who,
            expected=f"{name} to be a sequence of integers >= 1",
            got=describe(values),
            advice=f"Pass a tuple for {name}.",
        )
    return tuple(check_count(who, f"each of {name}", value) for value in values)


def entries(values: Any) -> list[Any]:
    """Return the plain entries of a sequence, an array or a tensor; none, if it is neither."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, Iterable) else []


def shortened(value: Any) -> str:
    """Return the representation of a value, cut where it is too long for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_image_shape(who: str, value: Iterable[Any]) -> tuple[int, int, int]:
    """Return ``value`` as ``(channels, height, width)``."""
    shape = check_counts(who, "image_shape", value)
    if len(shape) != 3:
        raise refusal(
            ShapeError, who, expected="image_shape of (channels, height, width)", got=f"{shape}"
        )
    return shape


def check_permutation(who: str, values: Any, *, size: int | None = None) -> list[int]:
    """Return ``values`` as a list that holds each of ``0 ... D-1`` once, ``D`` being ``size``."""
    listed = entries(values)
    integers = [v for v in listed if hasattr(v, "__index__") and not isinstance(v, bool)]
    wanted = len(listed) if size is None else size
    if not listed or sorted(integers) != list(range(wanted)):
        raise refusal(
            DomainError,
            who,
            expected=f"a permutation: each of 0 ... {'D-1' if size is None else size - 1} once",
            got=f"{listed or values!r}",
            advice="Pass torch.randperm(D), for example.",
        )
    return [int(value) for value in integers]


def check_mask(who: str, values: Any, input_dim: int) -> list[bool]:
    """Return ``values`` as a list of ``input_dim`` booleans, of which at least one is false."""
    listed = entries(values)
    flags = [value for value in listed if isinstance(value, bool)]
    if len(flags) != len(listed) or len(listed) != input_dim or all(flags):
        raise refusal(
            DomainError,
            who,
            expected=f"a boolean mask of {input_dim} entries, not all of them true",
            got=shortened(listed or values),
            advice="Mark with True the coordinates to keep; the others are moved.",
        )
    return flags


def check_positive(who: str, name: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` as a finite float above zero (or at zero, where ``zero`` allows it)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise refusal(
            DomainError,
            who,
            expected=f"{name} to be a finite number {'>=' if zero else '>'} 0",
            got=f"{value!r}",
        )
    return number


def check_choice(who: str, name: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise refusal(
            DomainError,
            who,
            expected=f"{name} to be one of {known}",
            got=f"{value!r}",
            advice="Pick one of them.",
        )
    return value


def check_module(who: str, name: str, value: Any) -> nn.Module:
    """Return ``value``, a module of torch's."""
    if not isinstance(value, nn.Module):
        raise refusal(
            DomainError, who, expected=f"{name} to be a torch.nn.Module", got=describe(value)
        )
    return value


def check_real(who: str, name: str, value: Any) -> None:
    """Refuse anything but a real floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise refusal(
            DomainError,
            who,
            expected=f"{name} to be a real floating-point tensor",
            got=describe(value),
            advice=f"Convert {name} first, with torch.as_tensor(...) or .float().",
        )


def check_points(who: str, name: str, value: Any, input_dim: int) -> None:
    """Refuse anything but a real floating-point tensor of shape ``(*, input_dim)``."""
    check_real(who, name, value)
    if value.dim() == 0 or value.shape[-1] != input_dim:
        raise refusal(
            ShapeError,
            who,
            expected=f"{name} of shape (*, {input_dim})",
            got=describe(value),
            advice=f"Put the {input_dim} coordinates on the last axis.",
        )


def check_context(who: str, context: Tensor | None, context_dim: int) -> None:
    """Refuse a context that is missing, not wanted, or of the wrong size."""
    if context is None and context_dim == 0:
        return
    if context is None:
        raise refusal(
            ShapeError,
            who,
            expected=f"a context of shape (*, {context_dim})",
            got="none",
            advice="Pass context=..., or fix one with .condition(context).",
        )
    if context_dim == 0:
        raise refusal(
            ShapeError,
            who,
            expected="no context, since context_dim is 0",
            got=describe(context),
            advice="Build it with context_dim=..., or leave the context out.",
        )
    check_points(who, "context", context, context_dim)


def check_dtypes(who: str, **tensors: Tensor | None) -> None:
    """Refuse tensors of more than one dtype; none at all is no dtype."""
    dtypes = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    if len(set(dtypes.values())) > 1:
        named = " and ".join(
            f"{str(dtype).removeprefix('torch.')} {name}" for name, dtype in dtypes.items()
        )
        raise refusal(
            DomainError,
            who,
            expected=f"{' and '.join(dtypes)} of one dtype",
            got=named,
            advice="Convert one of them with .to(dtype).",
        )


def check_buffer(who: str, name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """Return ``value`` as a finite floating-point tensor of that shape, detached and copied."""
    check_real(who, name, value)
    if tuple(value.shape) != tuple(shape):
        raise refusal(
            ShapeError, who, expected=f"{name} of shape {tuple(shape)}", got=describe(value)
        )
    if not bool(value.isfinite().all()):
        raise refusal(DomainError, who, expected=f"{name} to be finite", got=f"{value.tolist()}")
    return value.detach().clone()


def check_expansion(who: str, old: Sequence[int], new: Sequence[int]) -> torch.Size:
    """Return ``new`` as a size, if a tensor of the shape ``old`` expands to it."""
    new = torch.Size(new)
    if check_broadcast(who, expansion=new, distribution=old) != new:
        raise refusal(
            ShapeError,
            who,
            expected=f"a batch shape that {tuple(old)} expands to",
            got=f"{tuple(new)}",
        )
    return new


def check_broadcast(who: str, **batches: Sequence[int]) -> torch.Size:
    """Return the common batch shape of several named batch shapes."""
    try:
        return torch.broadcast_shapes(*batches.values())
    except RuntimeError:
        named = " and ".join(f"{tuple(shape)} of {name}" for name, shape in batches.items())
        raise refusal(
            ShapeError,
            who,
            expected="batch shapes that broadcast",
            got=named,
            advice="Add axes of size 1, or repeat one of them.",
        ) from None
