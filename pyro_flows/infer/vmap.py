"""Functions of Pyro's under ``torch.func.vmap``."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Result = TypeVar("_Result")

_NO_BATCHING_RULE = "There is a performance drop because we have not yet implemented the batching"


def vmapped(
    fn: Callable[..., _Result], num: int, *inputs: Any, shared: bool, muted: bool
) -> _Result:
    """Run a function for ``num`` entries of its inputs at once, and stack what it returns.

    Args:
        fn: Takes one entry of each input, and returns tensors in any nesting of containers.
        num: Number of entries.
        *inputs: Tensors in any nesting of containers, the entries on the first axis.
        shared: Whether a random number is drawn once for all entries, or for each.
        muted: Whether to hide that an operator has no batching rule. It runs in a loop of its own
            then, which is never slower than a loop over the function.
    """

    def one(index: Tensor, *entries: Any) -> _Result:
        if shared:
            return fn(*entries)
        with _OwnMemory(index):
            return fn(*entries)

    # Validation would read values, which vmap forbids.
    with pyro.validation_enabled(False), ExitStack() as stack:
        if muted:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=_NO_BATCHING_RULE)
        randomness = "same" if shared else "different"
        return torch.func.vmap(one, randomness=randomness)(torch.arange(num), *inputs)


@contextmanager
def missing_batching_rules() -> Iterator[list[str]]:
    """Collect what vmap says of operators without a batching rule, instead of warning of it.

    Only who hears something needs to mute vmap later: each change of filters makes Python repeat
    what it would warn of but once.
    """
    missing: list[str] = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.filterwarnings("always", message=_NO_BATCHING_RULE)
        yield missing
    for warning in heard:
        if _NO_BATCHING_RULE in str(warning.message):
            missing.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def densities_agree(ours: Tensor, theirs: Tensor) -> bool:
    """Compare entries to the rounding of a long sum; infinities and NaN must agree."""
    tolerance = 1e4 * torch.finfo(ours.dtype).eps
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


class _OwnMemory(TorchFunctionMode):
    """Let each entry fill new memory with random numbers of its own.

    Distributions draw by ``torch.empty(...).normal_()``, which vmap refuses: the memory is the
    same for all entries.
    """

    _MAKERS = (torch.empty, torch.empty_like, Tensor.new, Tensor.new_empty)

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self._index = index

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in self._MAKERS:
            return made
        return torch.empty_like(self._index.to(made).expand(made.shape))
