"""The random state of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_flows import _checks


@contextmanager
def seeded(who: str, seed: int | None) -> Iterator[None]:
    """Run under a seed and put the global random state back; without a seed, change nothing.

    Args:
        who: Named in the message, should the seed be refused.
        seed: A count, or none.

    Raises:
        DomainError: The seed is not an integer of at least 0.
    """
    if seed is None:
        yield
        return
    seed = _checks.check_count(who, "seed", seed, least=0)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
