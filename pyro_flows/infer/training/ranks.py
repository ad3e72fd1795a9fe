"""The processes that fit one guide together, and what they agree on."""

import atexit
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor
from torch import distributed as dist

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError
from pyro_flows.infer.training.shards import Shard

logger = logging.getLogger("pyro_flows")

_Made = TypeVar("_Made")
_LARGEST_SEED = 2**31


class Ranks:
    """The processes of a run; each computes the gradient of its own draws, by its own data.

    All of them hold the same parameters, and step them by the mean of the gradients. Numbers that
    are not finite in one process reach all by that mean, so that all of them skip the step.

    Args:
        who: Named in messages.
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self, who: str, rank: int = 0, size: int = 1) -> None:
        self._who, self.rank, self.size = who, rank, size

    @classmethod
    def joined(cls, who: str) -> "Ranks":
        """Return those that ``torchrun`` started, or that are in torch's process group; or one.

        Args:
            who: Named in messages.
        """
        if not dist.is_available():
            return cls(who)
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
                return cls(who)
            _begin_group()
        rank, size = dist.get_rank(), dist.get_world_size()
        logger.info("%s: process %d of %d", who, rank + 1, size)
        return cls(who, rank, size)

    def mean(self, loss: Tensor, grads: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the means over the processes of a loss and of flat gradients.

        Args:
            loss: A scalar.
            grads: One for each dtype and device; each takes one round.
        """
        if self.size == 1:
            return loss, list(grads)
        first, *others = grads
        joint = torch.cat([first, loss.to(first).reshape(1)])
        for tensor in (joint, *others):
            dist.all_reduce(tensor)
        means = [tensor / self.size for tensor in (joint, *others)]
        return means[0][-1].to(loss), [means[0][:-1], *means[1:]]

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors to those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                held = tensor.detach().contiguous()
                dist.broadcast(held, src=0)
                tensor.detach().copy_(held)

    def check_same(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Refuse to go on where some tensors are not the same in all processes, bit for bit.

        Args:
            what: Names them in the message.
            tensors: The tensors, of the same shapes everywhere.

        Raises:
            DomainError: They differ.
        """
        if self.size == 1:
            return
        own = _digest(tensors)
        ends = torch.tensor([own, -own])
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise _checks.refusal(
                DomainError,
                self._who,
                expected=f"the same {what} in all {self.size} processes",
                got=f"others in some of them than in number {self.rank + 1}",
                advice="Start them with the same script and arguments, and let no callback of a "
                "single one change parameters.",
            )

    def any(self, flag: bool) -> bool:
        """Whether something holds in any process."""
        if self.size == 1:
            return flag
        held = torch.tensor(int(flag))
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return bool(held)

    def from_first(self, make: Callable[[], _Made]) -> _Made:
        """Return what a function makes in the first process; the others wait for it.

        Args:
            make: Called there; its result is pickled for the others.

        Raises:
            FlowError: It failed there.
        """
        if self.size == 1:
            return make()
        parcel: list[Any] = [None, False]
        if self.rank == 0:
            try:
                parcel = [make(), True]
            finally:
                dist.broadcast_object_list(parcel, src=0)
        else:
            dist.broadcast_object_list(parcel, src=0)
        if not parcel[1]:
            raise _checks.refusal(
                FlowError,
                self._who,
                expected="the first process to go on",
                got="an error there",
                advice="See what it printed.",
            )
        made: _Made = parcel[0]
        return made

    def shard(self) -> AbstractContextManager[object]:
        """Return a handler by which each process sees members of its own of a plate."""
        return nullcontext() if self.size == 1 else Shard(self.rank, self.size)

    def draw_apart(self) -> None:
        """Let each process go on with random numbers of its own."""
        if self.size > 1:
            seed = self.from_first(lambda: int(torch.randint(_LARGEST_SEED, ())))
            pyro.set_rng_seed((seed + self.rank) % _LARGEST_SEED)


def _begin_group() -> None:
    """Let the processes that torchrun started find each other."""
    torchs: Any = dist
    store, rank, size = next(torchs.rendezvous("env://"))
    # torchrun has one store for all its attempts, where the addresses of processes that are gone
    # stand as well (pytorch issue 167288).
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = torchs.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    atexit.register(dist.destroy_process_group)


def _digest(tensors: Sequence[Tensor]) -> int:
    """Return a number that differs where a single bit does."""
    digest = hashlib.blake2b(digest_size=7)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest(), "big")
