"""The random state of a run."""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError

logger = logging.getLogger("pyro_flows")

# What torch, numpy and Python raise on a state that is none.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class RandomState(NamedTuple):
    """Where random numbers will go on from.

    Attributes:
        tensors: The states of torch: ``"cpu"``, ``"cuda/0"`` and so on, and ``"generator/..."``.
        record: Those of numpy and Python, as JSON.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def random_state(generators: Mapping[str, torch.Generator] | None = None) -> RandomState:
    """Return the state of every global source of random numbers: torch's, numpy's and Python's.

    Args:
        generators: Further generators to capture, by name.

    Example:
        >>> import torch
        >>> state = random_state()
        >>> first = torch.rand(3)
        >>> restore_random_state(state)
        >>> bool((torch.rand(3) == first).all())
        True
    """
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"cuda/{index}": state for index, state in enumerate(states)}
    for name, generator in (generators or {}).items():
        tensors[f"generator/{name}"] = generator.get_state()
    version, words, gauss = random.getstate()
    record = {
        "numpy": _listed(np.random.get_state(legacy=False)),  # noqa: NPY002
        "python": {"version": version, "words": list(words), "gauss": gauss},
    }
    return RandomState(tensors, record)


def restore_random_state(
    state: RandomState, generators: Mapping[str, torch.Generator] | None = None
) -> None:
    """Let random numbers go on from a state; states of CUDA devices that are not here are left.

    Args:
        state: What :func:`random_state` returned, perhaps in another process.
        generators: The further generators of that time.

    Raises:
        CheckpointError: The state is none; every source is left as it was.
    """
    generators = generators or {}
    before = random_state(generators)
    try:
        _restore(state, generators)
    except _MALFORMED as error:
        _restore(before, generators)
        raise _checks.refusal(
            CheckpointError,
            "restore_random_state",
            expected="states of the random generators of torch, numpy and Python",
            got=f"{type(error).__name__}: {error}",
            advice="Restore what random_state() returned, with generators of the same names.",
        ) from error


def _restore(state: RandomState, generators: Mapping[str, torch.Generator]) -> None:
    python = state.record["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(state.record["numpy"])  # noqa: NPY002
    torch.set_rng_state(state.tensors["cpu"])
    for name, generator in generators.items():
        generator.set_state(state.tensors[f"generator/{name}"])
    saved = [name for name in state.tensors if name.startswith("cuda/")]
    present = torch.cuda.device_count() if saved else 0
    for index in range(min(present, len(saved))):
        torch.cuda.set_rng_state(state.tensors[f"cuda/{index}"], index)
    if len(saved) > present:
        logger.warning(
            "restore_random_state: found %d CUDA devices where the state is of %d, so random "
            "numbers drawn there will be others than without the break",
            present,
            len(saved),
        )


def _listed(value: Any) -> Any:
    """Return nested dictionaries with lists and plain numbers for numpy's."""
    if isinstance(value, dict):
        return {name: _listed(entry) for name, entry in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


@contextmanager
def aside() -> Iterator[None]:
    """Put torch's random states back, so that they go on as if nothing had been drawn."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def seeded(who: str, seed: int | None) -> Iterator[None]:
    """Run under a seed and put the global random state back; without a seed, change nothing.

    Only torch's generators are seeded; numpy's and Python's states are put back as well.

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
    outside = random.getstate(), np.random.get_state()  # noqa: NPY002
    with aside():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002
