"""Size and SHA-256 of files, and checksums of JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

STARTED, MANIFEST, CHECKSUMS = "started.json", "manifest.json", "checksums.json"
SEALED = (STARTED, MANIFEST, CHECKSUMS)
"""Files with a checksum of their own content."""
LARGE = 4 << 30
"""Bytes. Of a larger file, evenly spaced samples are hashed: a whole one would take longer to hash than to load."""
SAMPLES, SAMPLE = 1024, 1 << 20
"""Number of samples of a large file, the first and the last megabyte among them, and bytes of each."""
DEEPEST = 4
"""Levels between a file and the folder whose manifest lists it, at most."""


class FileRecord(TypedDict):
    """A file as it was when its folder was finished."""

    bytes: int
    sha256: str
    sampled: NotRequired[bool]
    """True if the hash is that of samples, see `LARGE`."""
    earlier: NotRequired[list[FileRecord]]
    """Of unfinished work: what it held before. The last writer may have been killed before it replaced the file."""


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file as it is now."""
    stat = path.stat()
    record: FileRecord = {
        "bytes": stat.st_size,
        "sha256": _sha256(str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns),
    }
    return record | {"sampled": True} if stat.st_size > LARGE else record


@cache
def _sha256(path: str, inode: int, size: int, written: int) -> str:
    """inode, size, written: only so that a file that was replaced is hashed again."""
    with open(path, "rb") as file:
        return (hashlib.file_digest(file, "sha256") if size <= LARGE else _of_samples(file, size)).hexdigest()


def _of_samples(file: BinaryIO, size: int) -> Any:
    total = hashlib.sha256()
    for number in range(SAMPLES):
        file.seek((size - SAMPLE) * number // (SAMPLES - 1))
        total.update(file.read(SAMPLE))
    return total


def records_of(folder: Path, names: Iterable[str], paths: Iterable[Path]) -> dict[str, FileRecord]:
    """Records of the files of a folder by their path in it, but those of these names (patterns) or in these paths."""
    left_out = {path for pattern in (*names, *SEALED) for path in folder.rglob(pattern)} | set(paths)
    kept = (path for path in sorted(folder.rglob("*")) if left_out.isdisjoint((path, *path.parents)))
    return {path.relative_to(folder).as_posix(): file_record(path) for path in kept if path.is_file()}


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The value with a checksum of its content, for the files in `SEALED`."""
    value = json.loads(json.dumps(value))
    return {**value, "checksum": checksum(value)}


def checksum(value: Any) -> str:
    """Short hash of a JSON value: the same before it is written and after it is read."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
