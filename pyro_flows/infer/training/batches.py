"""What each step of a fit calls the model with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError, DomainError
from pyro_flows.infer.engine import Batch
from pyro_flows.infer.engine.graph import signature
from pyro_flows.infer.random import RandomState, random_state, restore_random_state

# Told of each batch whose tensors have other shapes than those before.
Check = Callable[[Batch], None]
_NO_STATE = RandomState({}, {})


class Batches:
    """The same arguments at each step, or one item after the other of an iterable.

    Args:
        args: The model's arguments, where they are the same at each step.
        kwargs: The model's keyword arguments.
        items: Yields the positional arguments of each step, as a tuple or, for a single one, as
            it is; iterated anew when it comes to its end.
        share: The number of this process, and of how many: it takes every so many-th item.

    Attributes:
        first: What the first step is called with.
        began: Number of steps before the present pass over the items.

    Raises:
        DomainError: There are both ``args`` and ``items``, or ``items`` is empty, or cannot be
            iterated over and over.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        items: Iterable[Any] | None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._kwargs, self._items, self._share = kwargs, items, share
        # A DataLoader shuffles by the random state that a pass begins with: of the present pass,
        # and of that which the first batch was drawn in.
        self.began, self._state, self._before = 0, _NO_STATE, _NO_STATE
        if items is None:
            self.first: Batch = (args, kwargs)
            return
        if args or not isinstance(items, Iterable) or isinstance(items, Iterator):
            raise _checks.refusal(
                DomainError,
                "fit",
                expected="the model's arguments, or else batches, which can be iterated over and "
                "over",
                got=f"{len(args)} arguments and batches of type {type(items).__name__}",
                advice="Pass a list or a DataLoader, for example, not a generator.",
            )
        self._before = self._now()
        self.first = self._first()

    def _first(self) -> Batch:
        for item in self._own():
            return self._batch(item)
        raise _empty()

    def _own(self) -> Iterator[Any]:
        """Begin a pass over the items of this process."""
        items: Any = self._items
        rank, size = self._share
        shared_out = isinstance(getattr(items, "sampler", None), DistributedSampler)
        return iter(items) if shared_out else islice(items, rank, None, size)

    def _now(self) -> RandomState:
        """Return the random state, where the items may depend on it: a list's do not."""
        return _NO_STATE if isinstance(self._items, Sequence) else random_state(self._generators)

    def _set(self, state: RandomState) -> None:
        if state.tensors:
            restore_random_state(state, self._generators)

    def _batch(self, item: Any) -> Batch:
        given = tuple(item) if isinstance(item, (list, tuple)) else (item,)
        return given, self._kwargs

    def from_step(self, step: int, check: Check | None = None) -> Iterator[Batch]:
        """Yield the batch of each step from one on, without end.

        Args:
            step: Number of steps taken before.
            check: Called with each batch whose tensors have other shapes than those before.
        """
        known = set()
        for batch in self._from_step(step):
            key = signature(batch) if self._items is not None else None
            if check is not None and key not in known:
                known.add(key)
                check(batch)
            yield batch

    def _from_step(self, step: int) -> Iterator[Batch]:
        while self._items is None:
            yield self.first
        # Less than it was where another iterator has gone further.
        self.began = min(self.began, step)
        count = step - self.began
        while True:
            for item in self._pass(count):
                count += 1
                yield self._batch(item)
            if count == 0:
                raise _empty()
            self.began, count = self.began + count, 0

    def _pass(self, taken: int) -> Iterator[Any]:
        """Begin a pass over the items, or the rest of one of which some were taken."""
        if taken == 0:
            self._state = self._now()
            return self._own()
        now = self._now()
        self._set(self._state)
        rest = self._own()
        passed = sum(1 for _ in zip(range(taken), rest, strict=False))
        self._set(now)
        if passed < taken:
            raise _checks.refusal(
                CheckpointError,
                "fit",
                expected=f"the batches of the saved run, at least {taken} in a pass",
                got=f"{passed}",
                advice="Continue it with the batches that it began with.",
            )
        return rest

    @property
    def _generators(self) -> dict[str, torch.Generator]:
        """The generator that a DataLoader shuffles by, where it has one of its own."""
        generator = getattr(self._items, "generator", None)
        return {"batches": generator} if isinstance(generator, torch.Generator) else {}

    def one_pass(self) -> Iterator[Batch] | None:
        """Return the batches of a pass of its own; none where the arguments are the same."""
        items: Any = self._items
        return None if items is None else (self._batch(item) for item in items)

    def state(self) -> dict[str, RandomState]:
        """Return the random states to save, with :attr:`began`, to go on within a pass."""
        now = RandomState(_of_generators(random_state(self._generators)), {})
        return {"before": self._before, "began": self._state, "now": now}

    def restore(self, states: Mapping[str, RandomState], began: int) -> None:
        """Go on from what was saved; the global random state is another then.

        Args:
            states: What :meth:`state` returned.
            began: What :attr:`began` was.
        """
        self._before, self._state, self.began = states["before"], states["began"], began
        if self._items is not None:
            self._set(self._before)
            self.first = self._first()
        for name, generator in self._generators.items():
            generator.set_state(states["now"].tensors[f"generator/{name}"])


def _of_generators(state: RandomState) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in state.tensors.items() if n.startswith("generator/")}


def _empty() -> Exception:
    return _checks.refusal(
        DomainError,
        "fit",
        expected="at least one batch in each pass over batches",
        got="none, at the first time or at a later one",
        advice="Pass a list or a DataLoader, for example.",
    )
