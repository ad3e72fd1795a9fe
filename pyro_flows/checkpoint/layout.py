"""What writing and reading have in common: the layout of the file, its hash, its refusals."""

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError, DomainError, FlowError

# Read-only types, so that a list of floats or a dictionary of texts is one to a type checker.
JSON: TypeAlias = "str | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

FORMAT = 1
KEY = "pyro_flows"
LENGTH_BYTES, MOST_HEADER = 8, 100_000_000  # the limit of safetensors itself
NO_DIGEST = b"0" * 64
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
# Found once at most: within a name or a record, a backslash stands before each quote.
_BEFORE_DIGEST = f'"{KEY}":"'.encode() + rb"{\"sha256\": \""


def digest_start(data: bytes) -> int:
    """Return where the 64 digits of the hash stand; a ValueError, if there are none."""
    return data.index(_BEFORE_DIGEST) + len(_BEFORE_DIGEST)


def digest(data: bytes, start: int) -> bytes:
    """Return the hash of all bytes, its own digits at ``start`` taken as zeros."""
    view = memoryview(data)
    sha = hashlib.sha256(view[:start])
    sha.update(NO_DIGEST)
    sha.update(view[start + len(NO_DIGEST) :])
    return sha.hexdigest().encode()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what writes and reads checkpoints."""
    return {
        "pyro_flows": _installed("pyro-flows"),
        "torch": str(torch.__version__),
        "pyro": _installed("pyro-ppl"),
    }


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def written_by(theirs: Mapping[str, Any]) -> str:
    """Name the versions that wrote a file, and those at hand."""
    ours = versions()
    names = [
        ", ".join(f"{name} {known.get(name, 'unknown')}" for name in ours)
        for known in (theirs, ours)
    ]
    return f"The file was written by {names[0]}; here are {names[1]}."


def as_path(who: str, path: Any) -> Path:
    """Return a path, and refuse what is none, such as the number of an open file."""
    if isinstance(path, (str, os.PathLike)):
        return Path(path)
    raise _checks.refusal(
        DomainError,
        who,
        expected="path to be the path of a file",
        got=_checks.describe(path),
        advice="Pass a text or a pathlib.Path.",
    )


def refusal(who: str, path: Path | str, *, expected: str, got: str, advice: str) -> FlowError:
    """Word a refusal that names the file."""
    where = f"{expected} {str(path)!r}"
    return _checks.refusal(CheckpointError, who, expected=where, got=got, advice=advice)
