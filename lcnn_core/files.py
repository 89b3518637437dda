"""Writing a file so that it is either whole and new, or untouched."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``path`` for writing bytes; it appears, or changes, only when the block ends without an error.

    The bytes go to a temporary file in the same folder, which is synced and renamed over ``path``; on any error, an
    interrupt too, it is removed. A symbolic link stays and its target changes; permissions of an existing file stay.
    Pipes and devices (``/dev/stdout``) cannot be renamed over and are written directly. Raises OSError, naming
    ``path`` and the next step, when it cannot be written.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(4)}.tmp"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as device:
                yield device
            return
        # "x" leaves the permissions to the user's umask, as any ordinary file's are.
        with temporary.open("xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if target.is_file():
                    shutil.copymode(target, temporary)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename not in (None, str(path), str(temporary)):
            raise  # the caller's own: something else that it opened in the block
        reason = f"{error.strerror or error}; choose a file in a folder you can write to"
        raise OSError(error.errno or 0, f"cannot write {str(path)!r}: {reason}") from error


def _sync_folder(folder: Path) -> None:
    # Makes the rename last through a power cut. Some file systems and Windows cannot sync a folder: the file is in
    # place by then, so that is no error.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
