"""Graphs as native code, compiled by Inductor, in this process or in one beside it.

A graph becomes a shared library (AOTInductor), which is kept in Inductor's cache and loaded by any
later process in a millisecond. A compiler in the same process would hold Python's lock for most
of the time, and slow the steps that it is to speed up.
"""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

Native = Callable[[list[Tensor]], list[Tensor]]

# Names what the library of a graph depends on beside the graph; changes with this file.
_FORMAT = "1"
# Reused in place, inputs that share a memory made Inductor 2.13 give wrong gradients.
_OPTIONS: dict[str, Any] = {"inplace_buffers": False}


class CompilingError(Exception):
    """A graph cannot be compiled; the message says why."""


class Compilation:
    """The compilation of a graph, begun on construction, in a process of its own.

    Args:
        main: A graph whose inputs are all tensors on the CPU.
        inputs: Tensors of the shapes, strides and dtypes that it will be called with.
    """

    def __init__(self, main: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._path = library_path(main, inputs)
        self._process: subprocess.Popen[bytes] | None = None
        self._complaint = ""
        if not self._path.exists():
            self._start(main, inputs)

    @property
    def running(self) -> bool:
        """Whether it is still going on."""
        return self._process is not None and self._process.poll() is None

    def load(self) -> Native:
        """Wait for the end, and return the compiled graph.

        Raises:
            CompilingError: The compilation failed.
        """
        if self._process is not None:
            self._talk.join()
            self._process = None
        if not self._path.exists():
            raise CompilingError(self._complaint or "the compiler was stopped")
        return _load(self._path)

    def stop(self) -> None:
        """End it, if it is going on."""
        if self._process is not None:
            self._process.kill()
            self._talk.join()
            self._process = None

    def _start(self, main: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _worker; _worker()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        kinds = [(tuple(x.shape), x.stride(), x.dtype) for x in inputs]
        # Between two processes of one user, by a pipe: never a file that others could write.
        work = pickle.dumps((main, kinds, self._path, torch.get_num_threads()))

        def talk() -> None:
            _, complaint = process.communicate(work)
            self._complaint = _last_line(complaint.decode(errors="replace"))

        # The pipe is narrower than a graph, and the process takes seconds to read from it.
        self._talk = threading.Thread(target=talk, daemon=True)
        self._talk.start()


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


def _last_line(complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return lines[-1] if lines else "the compiler was stopped"
