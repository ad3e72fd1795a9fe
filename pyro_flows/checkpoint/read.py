"""Reading a checkpoint file, and comparing it with what is to be restored."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.checkpoint import layout
from pyro_flows.checkpoint.verify import MALFORMED, damaged, verified


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        tensors: The tensors by name, on the CPU.
        record: The JSON record.
        versions: The versions of ``pyro_flows``, ``torch`` and ``pyro`` that wrote the file.
        path: The file.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    versions: dict[str, str]
    path: str

    def part(self, prefix: str) -> "Checkpoint":
        """Return it with the tensors named ``prefix/...`` alone, their names without the prefix.

        Args:
            prefix: What stands before the first slash.
        """
        lead = f"{prefix}/"
        names = [name for name in self.tensors if name.startswith(lead)]
        return self._replace(tensors={name[len(lead) :]: self.tensors[name] for name in names})


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    allow_non_finite: bool | Collection[str] = False,
) -> Checkpoint:
    """Read a checkpoint file, whole or not at all.

    Args:
        path: The file.
        kind: The kind it was written as.
        allow_non_finite: Whether tensors may hold NaN or infinities, or the names of those that
            may. The record always may.

    Raises:
        CheckpointError: There is no such file, or it is damaged, of another program, kind or
            format, or holds a tensor that is not finite.

    Example:
        >>> import os, tempfile, torch
        >>> from pyro_flows.checkpoint import write_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
        >>> write_checkpoint(path, {"weight": torch.ones(2)}, {"step": 10}, kind="example")
        >>> found = read_checkpoint(path, kind="example")
        >>> found.tensors, found.record
        ({'weight': tensor([1., 1.])}, {'step': 10})
    """
    who = "read_checkpoint"
    source = layout.as_path(who, path)
    data, document = verified(who, source)
    _check_kind(who, source, document, kind)
    try:
        tensors = safetensors.torch.load(data)
        found = Checkpoint(
            tensors, dict(document["record"]), dict(document["versions"]), str(source)
        )
    except MALFORMED as error:
        raise damaged(who, source, f"content that does not load ({error})") from error
    strange = [name for name, t in found.tensors.items() if t.dtype not in layout.DTYPES]
    if strange:
        raise damaged(who, source, f"tensors of dtypes that are never written: {strange}")
    if allow_non_finite is not True:
        exempt = [allow_non_finite] if isinstance(allow_non_finite, str) else allow_non_finite
        _check_finite(who, found, exempt or ())
    return found


def check_matches(who: str, found: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose tensors are not those that are to be restored.

    Args:
        who: Named in the message.
        found: What was read.
        expected: What is to be restored; only names, shapes and dtypes count.

    Raises:
        CheckpointError: A name is missing or unexpected, or a shape or a dtype differs; all of
            them are listed.

    Example:
        >>> import torch
        >>> found = Checkpoint({"weight": torch.ones(2)}, {}, {}, "run.ckpt")
        >>> check_matches("resume", found, {"weight": torch.zeros(2)})
        >>> check_matches("resume", found, {"weight": torch.zeros(3)})
        Traceback (most recent call last):
        ...
        pyro_flows.errors.CheckpointError: resume: expected ... in 'run.ckpt'; got other shapes ...
    """
    groups = {
        "missing": [repr(name) for name in expected if name not in found.tensors],
        "unexpected": [repr(name) for name in found.tensors if name not in expected],
        "other shapes or dtypes": [
            f"{name!r} ({_checks.describe(found.tensors[name])} for {_checks.describe(tensor)})"
            for name, tensor in expected.items()
            if name in found.tensors and _spec(found.tensors[name]) != _spec(tensor)
        ],
    }
    differences = [f"{group}: {', '.join(names)}" for group, names in groups.items() if names]
    if differences:
        raise layout.refusal(
            who,
            found.path,
            expected=f"the {len(expected)} tensors to be restored in",
            got="; ".join(differences),
            advice="Build it as it was when it was saved, with the same sizes and options. "
            + layout.written_by(found.versions),
        )


def _spec(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _check_kind(who: str, path: Path, document: dict[str, Any], kind: str) -> None:
    number = document.get("format")
    theirs = document.get("versions")
    written_by = layout.written_by(theirs if isinstance(theirs, dict) else {})
    if number != layout.FORMAT:
        raise layout.refusal(
            who,
            path,
            expected=f"a checkpoint of format {layout.FORMAT} in",
            got=f"format {number!r}",
            advice=f"{written_by} Upgrade pyro_flows.",
        )
    if document.get("kind") != kind:
        raise layout.refusal(
            who,
            path,
            expected=f"a checkpoint of kind {kind!r} in",
            got=f"one of kind {document.get('kind')!r}",
            advice=f"Load it with what saved it. {written_by}",
        )


def _check_finite(who: str, found: Checkpoint, exempt: Collection[str]) -> None:
    bad = {
        name: int((~tensor.isfinite()).sum())
        for name, tensor in found.tensors.items()
        if tensor.is_floating_point() and name not in exempt
    }
    named = [
        f"{count} of {found.tensors[name].numel()} in {name!r}"
        for name, count in bad.items()
        if count
    ]
    if named:
        raise layout.refusal(
            who,
            found.path,
            expected="finite tensors in",
            got=f"NaN or infinite entries: {', '.join(named)}",
            advice="Go back to an earlier file; allow_non_finite=True reads it as it is.",
        )
