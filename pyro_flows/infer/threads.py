"""How many threads a step's operators get."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Below both, handing an operator to several threads costs more than it saves, and on a busy
# machine several times more, since each operator waits for the slowest thread.
_LEAST_ELEMENTS = 4_000_000
_LEAST_PRODUCTS = 40_000_000


@contextmanager
def threads_for(*, elements: int, products: int) -> Iterator[None]:
    """Run on one thread where operators are small; put the number of threads back afterwards.

    The choice depends on sizes alone, so that a run can be repeated.

    Args:
        elements: Number of entries of the largest tensor of a step.
        products: Number of multiplications of a step's matrix products.
    """
    before = torch.get_num_threads()
    if elements < _LEAST_ELEMENTS and products < _LEAST_PRODUCTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
