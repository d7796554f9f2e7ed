"""`progress.jsonl` of a folder of unfinished work: a line for each file that an interrupted process continues from."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import cast

from tutelage.utils.checksums import DEEPEST, MANIFEST, SEALED, STARTED, FileRecord, file_record

PROGRESS = "progress.jsonl"
"""File of an unfinished folder: path in the folder, size and hash of what it holds so far."""
UNNOTED = (*SEALED, PROGRESS, "log.jsonl", "README.md")
"""Names that are not recorded: files that grow line by line, or that users may change."""
_DRAFT = re.compile(r"\..+\.part", re.DOTALL)
"""Name of a file or folder that is being written, see `files.replacing`."""


def note(written: Path, final: Path) -> None:
    """Record a file, or every file of a folder, in `progress.jsonl` of the unfinished folder that it belongs to.

    written: where it is now. final: where it will be. This must happen before it gets that name: a process that is
    killed in between leaves the file before it, which was recorded too. Without an unfinished folder nothing is done,
    nor inside a draft: nothing continues from one, and it is recorded as a whole.
    """
    owner = next((folder for folder in list(final.parents)[:DEEPEST] if is_unfinished(folder)), None)
    if owner is None or final.name in UNNOTED:
        return
    if any(_DRAFT.fullmatch(part) for part in final.relative_to(owner).parts):
        return
    files = sorted(path for path in written.rglob("*") if path.is_file()) if written.is_dir() else [written]
    with (owner / PROGRESS).open("ab") as file:
        for path in (path for path in files if path == written or path.name not in UNNOTED):
            name = (final / path.relative_to(written)).relative_to(owner).as_posix()
            line = json.dumps({"path": name, **file_record(path)}, ensure_ascii=False)
            file.write(b"\n" * _torn(owner / PROGRESS) + line.encode("utf-8", "surrogateescape") + b"\n")
            file.flush()
        os.fsync(file.fileno())


def _torn(path: Path) -> bool:
    """Whether a process was killed while it wrote the last line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return size > 0 and file.read() != b"\n"


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds unfinished work whose files are recorded; a user's own `progress.jsonl` makes it none."""
    return all((folder / name).is_file() for name in (PROGRESS, STARTED)) and not (folder / MANIFEST).exists()


def noted(folder: Path) -> dict[str, FileRecord]:
    """The last record of every file by its path in the folder, with the earlier ones in it."""
    stat = (folder / PROGRESS).stat()
    return _noted(folder / PROGRESS, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _noted(path: Path, inode: int, size: int, written: int) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            name = record.pop("path")
        except (ValueError, KeyError, TypeError, AttributeError):  # a process was killed while it wrote this line
            continue
        before = records.get(name)
        earlier = [before, *before["earlier"]] if before else []
        records[name] = cast(FileRecord, {**record, "earlier": earlier})
    return records
