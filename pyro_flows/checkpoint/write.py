"""Writing a checkpoint file."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.checkpoint import atomic, layout
from pyro_flows.checkpoint.layout import JSON
from pyro_flows.errors import DomainError

_DEEPEST_RECORD = 50


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, JSON],
    *,
    kind: str,
) -> None:
    """Write a checkpoint file, whole or not at all.

    The bytes go to a new file beside it, reach the disk, and take the name in one step: at any
    moment, be it in a crash or on a full disk, the name stands for the former file or for the new
    one. A process that is killed can leave a hidden file ``.<name>.<random>.tmp`` behind, which
    nobody reads. A symbolic link is replaced, not followed. The same content gives the same bytes.

    Args:
        path: The file.
        tensors: Real or boolean tensors of any shapes by name; copied, so they may be views of
            one another and lie on any device.
        record: A JSON object: texts, numbers, booleans, none, lists and dictionaries. Floats keep
            every bit; NaN and the infinities stand as ``NaN``, ``Infinity`` and ``-Infinity``, as
            Python's ``json`` writes and reads them.
        kind: What sort of checkpoint it is; who reads it must name the same.

    Raises:
        CheckpointError: The file could not be written; a former one is as it was.
        DomainError: A tensor or an entry of the record is of a kind that the file cannot hold.

    Example:
        >>> import os, tempfile, torch
        >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
        >>> write_checkpoint(path, {"weight": torch.ones(2)}, {"step": 10}, kind="example")
        >>> os.listdir(os.path.dirname(path))
        ['run.ckpt']
    """
    who = "write_checkpoint"
    target = layout.as_path(who, path)
    _check_tensors(who, tensors)
    _check_record(who, "record", dict(record), _DEEPEST_RECORD)
    data = _serialise(who, target, tensors, record, kind)
    start = layout.digest_start(data)
    stop = start + len(layout.NO_DIGEST)
    pieces = memoryview(data)[:start], layout.digest(data, start), memoryview(data)[stop:]
    try:
        if target.exists() and not target.is_file():
            raise layout.refusal(
                who,
                target,
                expected="to write the file",
                got="a directory or a device of this name",
                advice="Pass the path of a file.",
            )
        atomic.replace(target, pieces)
    except (OSError, ValueError) as error:  # a path can be no path at all: "\0"
        raise layout.refusal(
            who,
            target,
            expected="to write the file",
            got=f"{type(error).__name__}: {error}",
            advice="A former file is as it was. See that the directory exists, that it may be "
            "written to, and that the disk has room.",
        ) from error


def _check_tensors(who: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not _is_unicode(name):
            raise _checks.refusal(
                DomainError,
                who,
                expected="a tensor's name to be a Unicode text other than '__metadata__'",
                got=repr(name),
                advice="Rename it.",
            )
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not dense or tensor.is_meta or tensor.dtype not in layout.DTYPES:
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"{name!r} to be a dense, real or boolean tensor that holds values",
                got=_checks.describe(tensor),
                advice="Convert it, with torch.view_as_real(...) or .to_dense(), for example.",
            )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _check_record(who: str, where: str, value: Any, depth: int) -> None:
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    elif value is not None and not isinstance(value, (str, int, float)):
        depth = 0
    if depth == 0:
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{where} to be JSON, nested at most {_DEEPEST_RECORD} deep: text, a number, "
            "a boolean, none, a list, or a dictionary whose keys are texts",
            got=_checks.describe(value),
            advice="Convert it, or store it as a tensor.",
        )
    for key, entry in entries:
        _check_record(who, f"{where}[{key!r}]", entry, depth - 1)


def _serialise(
    who: str, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, JSON], kind: str
) -> bytes:
    """Return the file's bytes, with zeros for the hash."""
    document = {
        "sha256": layout.NO_DIGEST.decode(),
        "format": layout.FORMAT,
        "kind": kind,
        "versions": layout.versions(),
        "record": dict(record),
    }
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    try:
        data = safetensors.torch.save(plain, {layout.KEY: json.dumps(document)})
        length = int.from_bytes(data[: layout.LENGTH_BYTES], "little")
        if length > layout.MOST_HEADER:  # some releases write what none reads
            raise ValueError(f"{length} bytes")
        return data
    except (SafetensorError, ValueError) as error:
        raise layout.refusal(
            who,
            path,
            expected=f"names and a record of at most {layout.MOST_HEADER} bytes for",
            got=str(error),
            advice="Store what is long in the record as a tensor.",
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    """Return the values alone: dense in memory, on the CPU, and shared with no other tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
