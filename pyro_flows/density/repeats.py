"""How many rows of a table differ, without sorting the rows."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

# The multipliers and shifts of SplitMix64's output.
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def num_different(chunks: Iterable[Tensor]) -> int:
    """Return the number of different rows, told apart by a hash of 64 bits.

    Two of a million rows have one hash with a probability of 3e-8; then the count is too low by
    one. Sorting the rows themselves takes a hundred times the memory.

    Args:
        chunks: The table in pieces, each of shape ``(N, D)``.

    Reference:
        Steele, Lea & Flood (2014), *Fast splittable pseudorandom number generators*, figure 16.

    Example:
        >>> import torch
        >>> num_different([torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[-0.0, 1.0]])])
        2
    """
    hashes = [_hashes(chunk) for chunk in chunks]
    return len(np.unique(np.concatenate(hashes))) if hashes else 0


def _hashes(chunk: Tensor) -> np.ndarray:
    mixed = np.zeros(len(chunk), np.uint64)
    for column in chunk.unbind(1):
        # Adding zero leaves one of the two zeros.
        mixed = _mix(mixed + _STEP ^ (column.double() + 0.0).numpy().view(np.uint64))
    return mixed


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> _SHIFTS[0])) * _FIRST
    bits = (bits ^ (bits >> _SHIFTS[1])) * _SECOND
    return bits ^ (bits >> _SHIFTS[2])
