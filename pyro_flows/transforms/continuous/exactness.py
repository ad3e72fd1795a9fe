"""Where the log-determinant of a continuous flow must not be an estimate."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ASKED: ContextVar[bool] = ContextVar("exact traces", default=False)


def exactness_is_asked() -> bool:
    """Return whether traces are to be exact at present, whatever their transforms say."""
    return _ASKED.get()


@contextmanager
def exact_traces() -> Iterator[None]:
    """Let continuous flows compute exact traces, also in training and with ``"hutchinson"``.

    For comparisons and reports, of which an estimate's noise would be a part: the exponential of
    an estimate that has the right mean does not have it.
    """
    token = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(token)
