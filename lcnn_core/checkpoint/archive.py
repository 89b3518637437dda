"""Zip archives that may be hostile: the directory is checked against the file before anything is read from it.

PyTorch stores the entries of its archives uncompressed, so nothing here ever expands: an archive with compressed,
overlapping or doubled entries is no checkpoint of PyTorch's, and is refused.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lcnn_core.errors import CheckpointError

MAX_DIRECTORY = 16 << 20
"""Bytes of the central directory: about 100,000 entries of PyTorch's."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at ``path``, its directory checked; what goes wrong while it is read is a CheckpointError."""
    try:
        with path.open("rb") as file:
            _check_directory_size(path, file)
            with zipfile.ZipFile(file) as archive:
                _check_entries(path, archive)
                yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; fetch or save it again") from error


def common_prefix(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder, with its slash, that PyTorch puts every entry of an archive into."""
    prefix, slash, _ = archive.namelist()[0].partition("/")
    if not slash or any(not name.startswith(prefix + "/") for name in archive.namelist()):
        raise CheckpointError(f"{path} is a zip archive of something else; expected one written by torch")
    return prefix + "/"


def _check_directory_size(path: Path, file: BinaryIO) -> None:
    """Refuse what would make the directory itself costly, and comments, behind which a second one could hide."""
    size = file.seek(0, 2)
    if size < _END.size:
        raise CheckpointError(f"{path} has {size} bytes; expected a zip archive, with {_END.size} or more")
    file.seek(size - _END.size)
    magic, *_, directory, _, _ = _END.unpack(file.read(_END.size))
    if magic != b"PK\5\6":
        raise CheckpointError(f"{path} is a zip archive without its end; fetch or save it again")
    if size >= _END.size + _LOCATOR.size:
        file.seek(size - _END.size - _LOCATOR.size)
        magic, _, at, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if magic == b"PK\6\7":
            file.seek(min(at, size))
            head = file.read(_END64.size)
            directory = _END64.unpack(head)[8] if len(head) == _END64.size else MAX_DIRECTORY + 1
    if directory > MAX_DIRECTORY:
        raise CheckpointError(f"{path} announces a zip directory over {MAX_DIRECTORY} bytes; it is damaged or hostile")
    file.seek(0)


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    if not entries:
        raise CheckpointError(f"{path} is an empty zip archive; expected a checkpoint")
    names: set[str] = set()
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise CheckpointError(
                f"{path}: entry {entry.filename!r} is compressed or encrypted ({entry.compress_size} bytes for "
                f"{entry.file_size}); expected it stored, as torch.save writes it"
            )
        # Case is folded because torch's reader finds entries without regard to it.
        if entry.filename.casefold() in names:
            raise CheckpointError(f"{path}: entry {entry.filename!r} is there twice; expected every name once")
        names.add(entry.filename.casefold())
        if entry.header_offset < end:
            raise CheckpointError(
                f"{path}: entry {entry.filename!r} overlaps another; the archive is damaged or hostile"
            )
        end = entry.header_offset + entry.file_size
    if end > archive.start_dir:
        raise CheckpointError(f"{path}: its entries claim {end} bytes, the file has room for {archive.start_dir}")
