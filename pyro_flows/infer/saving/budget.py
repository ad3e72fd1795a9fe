"""A limit to what building a flow may take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError

# Far above what building and dropping takes, in bytes and in operations.
_BYTES, _BYTES_BY_BYTE = 100_000_000, 50
_OPERATIONS, _OPERATIONS_BY_TENSOR, _OPERATIONS_BY_BYTE = 5000, 20, 0.01


class Budget(TorchDispatchMode):
    """Refuse to build a flow that is out of all proportion to the tensors saved of it.

    The size of each result is found on the meta device before the result is made.

    Args:
        who: Named in the message.
        where: What asked for the flow, in words.
        tensors: What was saved.
    """

    def __init__(self, who: str, where: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._who, self._where = who, where
        saved = sum(tensor.nbytes for tensor in tensors.values())
        self._saved = f"{len(tensors)} tensors of {saved} bytes"
        self._bytes = _BYTES + _BYTES_BY_BYTE * saved
        self._operations = _OPERATIONS + _OPERATIONS_BY_TENSOR * len(tensors)
        self._operations += int(_OPERATIONS_BY_BYTE * saved)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, if there is room for its results."""
        kwargs = kwargs or {}
        self._bytes -= _size(func, args, kwargs)
        self._operations -= 1
        if self._bytes < 0 or self._operations < 0:
            raise _checks.refusal(
                CheckpointError,
                self._who,
                expected=f"options of a flow of {self._saved} in {self._where}",
                got="options of a much larger one",
                advice="The file was made up or changed; pass flow=... if you trust the rest.",
            )
        return func(*args, **kwargs)


def _size(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the number of bytes that an operation's results take; 0 where values decide."""
    bare_args, bare_kwargs = tree_map(_bare, (args, dict(kwargs)))
    if "device" in bare_kwargs:
        bare_kwargs["device"] = torch.device("meta")
    try:
        results = func(*bare_args, **bare_kwargs)
    except (NotImplementedError, RuntimeError):
        # Such results, as of nonzero and item, are no larger than what they are of.
        return 0
    return sum(tensor.nbytes for tensor in tree_leaves(results) if isinstance(tensor, Tensor))


def _bare(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
