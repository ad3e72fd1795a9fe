"""How much memory a step takes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from pyro_flows.infer.engine.dispatch import DispatchMode


def peak_memory(step: Callable[[], Any]) -> int:
    """Run a step as Python calls it, and return the most bytes that its tensors held at once.

    Counted are the tensors that the step makes, among them what it keeps for the gradient.

    Args:
        step: The step.

    Example:
        >>> import torch
        >>> peak_memory(lambda: (torch.ones(1000) + 1).sum())
        8000
    """
    with _Ledger() as ledger:
        step()
    return ledger.peak


class _Ledger(DispatchMode):
    """Notes each new memory, and which of them are gone, after every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        self._held = {k: held for k, held in self._held.items() if not held[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in before:
                    self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result
