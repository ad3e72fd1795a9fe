"""Faults on order: damaged or hostile files, full disks, killed processes, steps that fail."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from pyro_flows.checkpoint import layout

TESTS = Path(__file__).parent
# Far above what any script here takes: a hang must be a failure, not a stuck run.
TIMEOUT = 300


def run_script(script, *arguments):
    """Run Python in a new process, this folder and the package importable; return its output."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(work):
    """Start ``work`` in a child process, and return its id; for scripts without other threads."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(1)  # whatever happens, the parent's code is not for the child


def death(child):
    """Wait for a child process, and return the signal that ended it; 0 if none did."""
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def full_disk(limit, *, kill=False):
    """Let no file of this process grow beyond ``limit`` bytes; more is an error, or its death."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)


def flip_bit(path, position, bit=0):
    """Flip one bit of a file, in place."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


class _Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def pickle_bomb(path, marker):
    """Write a pickle that makes the file ``marker`` when it is loaded."""
    path.write_bytes(pickle.dumps(_Touch(marker)))


def safetensors_file(path, header, data=b""):
    """Write a file with a header of one's own: a JSON value, or text."""
    text = header if isinstance(header, str) else json.dumps(header)
    encoded = text.encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def sealed(path, document, entries=(), data=b""):
    """Write a checkpoint file whose hash is right, whatever it holds."""
    text = json.dumps({"sha256": "0" * 64, **document})
    header = {"__metadata__": {"pyro_flows": text}, **dict(entries)}
    compact = json.dumps(header, separators=(",", ":"))
    safetensors_file(path, compact, data)
    whole = path.read_bytes()
    start = layout.digest_start(whole)
    path.write_bytes(whole[:start] + layout.digest(whole, start) + whole[start + 64 :])


def nan_model(at, where, value=math.nan):
    """Return a model, and batches for its steps, those numbered in ``at`` with a fault.

    The faults are in the data, so that they reach a step on every rung of the engine.

    Args:
        at: Numbers of the steps, counted from zero.
        where: ``"site"``: the log-density at an observed site is ``value``; ``"factor"``: that of
            a factor; ``"gradient"``: the loss is finite, and its gradient is not.
        value: NaN, or an infinity.
    """

    def model(offset, slope):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum(-1)
        pyro.factor("bad", 0.0 * z + offset)
        # At a slope of zero, the root's derivative is infinite, and zero times that is NaN.
        pyro.factor("edge", (slope * z.square()).sqrt() - 2.0 * z.square())

    def site_model(offset, slope):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum(-1)
        pyro.sample("y", dist.Normal(z * slope, 1.0), obs=offset)

    good = torch.tensor(0.0), torch.tensor(1.0)
    bad = (good[0], torch.tensor(0.0)) if where == "gradient" else (torch.tensor(value), good[1])
    batches = [bad if step in at else good for step in range(max(at, default=0) + 1)]
    return site_model if where == "site" else model, batches


def signal_at(step, number):
    """Return a callback that sends this process a signal after a step."""

    def callback(info):
        if info.step == step:
            os.kill(os.getpid(), number)

    return callback
