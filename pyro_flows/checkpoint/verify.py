"""The bytes of a checkpoint file, once they are found to be those that were written."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pyro_flows.checkpoint import layout
from pyro_flows.errors import FlowError

# What parsers raise on bytes that somebody else made up.
MALFORMED = (
    *(SafetensorError, AttributeError, LookupError, OverflowError),
    *(RuntimeError, TypeError, ValueError),
)
# How files begin that torch.save and pickle write.
_PICKLES = (b"PK", b"\x80")


def verified(who: str, path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a file, and what its metadata holds.

    Args:
        who: Named in the message.
        path: The file.

    Raises:
        CheckpointError: There is no such file, or it is another program's, or damaged.
    """
    data, header = _read(who, path)
    try:
        start = layout.digest_start(data)
        document = dict(json.loads(header["__metadata__"][layout.KEY]))
    except MALFORMED as error:
        raise layout.refusal(
            who,
            path,
            expected="a checkpoint of pyro_flows in",
            got="another safetensors file, or a damaged one",
            advice="Read the tensors of other programs with safetensors.torch.load_file(...).",
        ) from error
    if data[start : start + len(layout.NO_DIGEST)] != layout.digest(data, start):
        raise damaged(who, path, "other bytes than were written: their SHA-256 differs")
    return data, document


def _read(who: str, path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes and the header, if the file is as long as its header says."""
    try:
        if not path.is_file():
            raise layout.refusal(
                who,
                path,
                expected="a checkpoint in",
                got="a directory or a device" if path.exists() else "no file of this name",
                advice=f"Check the path; the working directory is {str(Path.cwd())!r}.",
            )
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(layout.LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if length > min(size - layout.LENGTH_BYTES, layout.MOST_HEADER):
                raise _foreign(who, path, start)
            text = file.read(length)
            header, promised = _parse(who, path, start, text)
            if size != promised:
                raise damaged(who, path, f"{size} bytes where its header tells of {promised}")
            return b"".join((start, text, file.read(size - len(start) - length))), header
    except (OSError, ValueError) as error:
        raise layout.refusal(
            who,
            path,
            expected="to read the file",
            got=f"{type(error).__name__}: {error}",
            advice="See that it may be read.",
        ) from error


def _parse(who: str, path: Path, start: bytes, text: bytes) -> tuple[dict[str, Any], int]:
    """Return the header, and how long it says that the file is."""
    try:
        header = json.loads(text.decode())
        specs = [spec for name, spec in header.items() if name != "__metadata__"]
        ends = [int(spec["data_offsets"][1]) for spec in specs]
    except MALFORMED as error:
        raise _foreign(who, path, start + text) from error
    return header, len(start) + len(text) + max(ends, default=0)


def _foreign(who: str, path: Path, start: bytes) -> FlowError:
    length = int.from_bytes(start[: layout.LENGTH_BYTES], "little")
    # A header may be 128 bytes long, and then the file begins as a pickle does.
    if length > layout.MOST_HEADER and start.startswith(_PICKLES):
        return layout.refusal(
            who,
            path,
            expected="a checkpoint of pyro_flows in",
            got="what looks like a file of torch.save or pickle, which is never loaded, since it "
            "can run code",
            advice="If you trust it, read it with torch.load(..., weights_only=True).",
        )
    return layout.refusal(
        who,
        path,
        expected="a checkpoint of pyro_flows in",
        got=f"no header of a safetensors file but {start[:16]!r}",
        advice="It is another program's, or truncated, or damaged; go back to an earlier file.",
    )


def damaged(who: str, path: Path, got: str) -> FlowError:
    """Word the refusal of a file that was changed after it was written."""
    return layout.refusal(
        who,
        path,
        expected="an undamaged checkpoint in",
        got=got,
        advice="The file was truncated or changed; go back to an earlier one.",
    )
