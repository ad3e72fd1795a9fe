"""What a run does when its process is asked to end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Termination:
    """Whether the process was asked to end (SIGTERM), which a run notes and does not obey yet.

    A run that saves what it has first obeys by :meth:`obey`. Python handles signals in its main
    thread alone; in any other, nothing is noted and the process ends at once, as ever.

    Attributes:
        asked: Whether it was asked to end.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the signal within this context."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # None where it was not set from Python: then what it was cannot be put back.
        self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self._before)
            if self.asked:
                self.obey()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def obey(self) -> None:
        """End as the process would have without this."""
        self.asked = False
        signal.signal(signal.SIGTERM, self._before)
        os.kill(os.getpid(), signal.SIGTERM)
