"""Graphs as native code, compiled by Inductor, in this process or in one beside it.

A graph becomes a shared library (AOTInductor), which is kept in Inductor's cache and loaded by any
later process in a millisecond. A compiler in the same process would hold Python's lock for most
of the time, and slow the steps that it is to speed up.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_flows.infer.engine.layout import store_by_columns

Native = Callable[[list[Tensor]], list[Tensor]]

# Names what the library of a graph depends on beside the graph; changes with this file and
# with the layout.
_FORMAT = "2"
# With buffers reused in place, Inductor 2.13 gave wrong gradients.
_OPTIONS: dict[str, Any] = {"inplace_buffers": False}


class CompilingError(Exception):
    """A graph cannot be compiled; the message says why."""


class Compilation:
    """The compilation of a graph, in a process of its own.

    Args:
        main: A graph whose inputs are all tensors on the CPU.
        inputs: Tensors of the shapes, strides and dtypes that it will be called with.

    Attributes:
        fresh: Whether there is anything to compile: whether no former process did.
        running: Whether it is going on.

    Raises:
        CompilingError: There is no place for the library, or no interpreter.
    """

    def __init__(self, main: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._main = main
        self._kinds = [(tuple(x.shape), x.stride(), x.dtype) for x in inputs]
        self._threads = torch.get_num_threads()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaint, self._stopped, self.running = "", False, False
        # An event, since a join that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        self._ended = threading.Event()
        if shutil.which(sys.executable or "") is None:
            raise CompilingError(f"there is no interpreter at {sys.executable!r} to compile with")
        try:
            self._path = library_path(main, inputs)
            self.fresh = not self._path.exists()
        except OSError as error:
            raise CompilingError(f"{type(error).__name__}: {error}") from error

    def begin(self) -> None:
        """Begin, where there is anything to compile; what holds this object can stop it then."""
        if self.fresh:
            self.running = True
            # Not in the main thread, where Ctrl-C could part the process from what knows of it.
            threading.Thread(target=self._run, daemon=True).start()

    def load(self) -> Native:
        """Wait for the end, and return the compiled graph.

        Raises:
            CompilingError: The compilation failed.
        """
        if self.fresh:
            self._ended.wait()
        if not self._path.exists():
            raise CompilingError(self._complaint or "the compiler was stopped")
        try:
            return _load(self._path)
        except (OSError, RuntimeError) as error:
            # Damaged: the next run compiles it anew.
            self._path.unlink(missing_ok=True)
            raise CompilingError(f"{type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """End it, if it is going on, with all that it has started."""
        self._stopped = True
        while self.running:
            self._kill()
            self._ended.wait(0.1)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(OSError):  # it has come to its end by itself
                os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self) -> None:
        try:
            self._talk()
        finally:
            self.running = False
            self._ended.set()

    def _talk(self) -> None:
        # Between two processes of one user, by a pipe: never a file that others could write.
        work = pickle.dumps((self._main, self._kinds, self._path, self._threads))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import _worker; _worker()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,
            )
        except OSError as error:
            self._complaint = f"{type(error).__name__}: {error}"
            return
        if self._stopped:
            self._kill()
        _, complaint = self._process.communicate(work)
        self._complaint = _cause(complaint.decode(errors="replace"))


def library_path(main: fx.GraphModule, inputs: Sequence[Tensor]) -> Path:
    """Return where the library of a graph is kept."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415

    parts = [
        _FORMAT,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        json.dumps(_OPTIONS, sort_keys=True),
        main.code,
        *(f"{tuple(x.shape)} {x.stride()} {x.dtype} {x.device}" for x in inputs),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Path(cache_dir()) / "pyro_flows" / f"{digest[:32]}.so"


def _worker() -> None:
    """Compile what the parent process sends."""
    # Before unpickling, which imports its parts in an order that they do not bear.
    import torch._inductor.compile_fx  # noqa: PLC0415

    os.nice(10)
    main, kinds, path, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    inputs = [torch.empty_strided(*kind[:2], dtype=kind[2]).zero_() for kind in kinds]
    _compile(main, inputs, path)


def _compile(main: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store_by_columns(main, inputs)
    with torch.no_grad():
        made = torch._inductor.aot_compile(main, tuple(inputs), options=_OPTIONS)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.symlink_to(str(made))
    temporary.replace(path)


def compile_here(main: fx.GraphModule) -> Native:
    """Compile a graph in this process, for devices other than the CPU: by CUDA graphs on a GPU."""
    compiled = torch.compile(main, fullgraph=True, options={"triton.cudagraphs": True})
    return lambda inputs: compiled(*inputs)


def _load(path: Path) -> Native:
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path.resolve()), 1)
    run: Native = runner.run
    return run


def _cause(complaint: str) -> str:
    """Return the line of a traceback that names the error: not the advice that may follow."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines or ["the compiler was stopped"])[-1]
