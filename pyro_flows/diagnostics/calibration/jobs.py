"""Pieces of work, one after the other or in several processes."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pyro_flows import _checks
from pyro_flows.errors import DomainError

_Done = TypeVar("_Done")


def in_order(work: Callable[[int], _Done], indices: Iterable[int], jobs: int) -> Iterator[_Done]:
    """Yield what ``work`` returns for each index, in the order of the indices.

    Args:
        work: Can be sent to another process.
        indices: What to call it with.
        jobs: Number of processes.
    """
    if jobs == 1:
        return map(work, indices)
    joblib = import_joblib(jobs)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    done: Iterator[_Done] = parallel(joblib.delayed(work)(index) for index in indices)
    return done


def import_joblib(jobs: int) -> Any:
    """Import joblib, which is needed for more than one process alone.

    Args:
        jobs: Number of processes, for the message.

    Raises:
        DomainError: It is not installed.
    """
    try:
        return importlib.import_module("joblib")
    except ModuleNotFoundError:
        raise _checks.refusal(
            DomainError,
            "calibrate",
            expected=f"joblib, for jobs={jobs}",
            got="no such package",
            advice="Call pip install joblib, or pass jobs=1.",
        ) from None
