"""Files that are replaced in one step."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path


def replace(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file whose name stands for the former or for the new content at any moment.

    Args:
        path: The file; a symbolic link is replaced, not followed.
        pieces: The new content.

    Raises:
        OSError: It could not be written; the former file is as it was, and nothing is left over.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        # "x" follows no link, and opens nothing that is there already.
        with temporary.open("xb") as file:
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Let the new name reach the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such thing; the file is in place all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
