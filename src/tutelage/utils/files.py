"""Files: writing them whole or not at all (JSON, JSON lines, text, folders), reading, deleting, and sizes on disk.

Hidden names stand beside a final name for a while: `.NAME.part` is being written, `.NAME.deleting-XXXXXXXX` is being
deleted. A killed process leaves them behind; `discard_remains` deletes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tutelage.errors import Kind, Problem, UserError
from tutelage.utils import integrity
from tutelage.utils.checksums import SEALED, seal
from tutelage.utils.progress import note

_REMAINS = re.compile(r"\..+\.(part|deleting-[0-9a-f]{8})", re.DOTALL)


# --- writing ---


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Gives the name of a draft to write, a file or a folder. On leaving it takes the place of `path`, and the disk has
    it; if an exception was raised it is deleted. In a folder of unfinished work its checksum is recorded.

    The files of a draft that is a folder move one by one if `path` is a folder already. Raises UserError if one of the
    two is a folder and the other is not. new: also if anything has come there meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    discard(draft)
    try:
        yield draft
        sync_tree(draft)
        if os.path.lexists(path) and (new or path.is_dir() != draft.is_dir()):
            raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(path)}))
        note(draft, path)
        _move(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            discard(draft)
        raise


def _move(draft: Path, path: Path) -> None:
    if draft.is_dir() and path.is_dir():
        for inner in sorted(draft.iterdir()):
            _move(inner, path / inner.name)
        draft.rmdir()
    else:
        draft.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder. Some file systems refuse that for folders."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` for a file, or for a folder with everything in it."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write text in UTF-8, whole or not at all. new: as in `replacing`."""
    with replacing(path, new=new) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; manifests with a checksum of their content."""
    value = seal(value) if path.name in SEALED else value
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, records: Iterable[Any], *, new: bool = False) -> None:
    """Write dataclass records or dicts, one JSON object a line, whole or not at all. new: as in `replacing`."""
    with replacing(path, new=new) as draft, draft.open("w", encoding="utf-8") as file:
        for record in records:
            row = record if isinstance(record, dict) else asdict(record)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- reading ---


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DamagedArtifactError if it is not as its run recorded it, or is no JSON."""
    if path.name in SEALED:
        return integrity.read_sealed(path)
    with integrity.reading(path, ValueError):
        return json.loads(path.read_bytes())


def read_jsonl(path: Path, wanted: Container[int] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, in order. Raises as `read_json`.

    wanted: numbers of the lines to read, from 0, blank ones not counted; None: all.
    """
    with integrity.reading(path, ValueError), path.open(encoding="utf-8") as file:
        lines = (line for line in file if line.strip())
        if wanted is None:
            yield from map(json.loads, lines)
        else:
            yield from (json.loads(line) for number, line in enumerate(lines) if number in wanted)


def read_records(path: Path, kind: type) -> list[Any]:
    """The lines of a file that `write_jsonl` made, as records of `kind`; keys that `kind` lacks are ignored."""
    names = {field.name for field in fields(kind)}
    return [kind(**{key: value for key, value in row.items() if key in names}) for row in read_jsonl(path)]


# --- deleting and measuring ---


def discard(path: Path, aside: Path | None = None) -> None:
    """Delete a file, a folder, or a link and not what it points to. A folder is renamed first, so that it is whole or
    gone; what cannot be deleted of it stays under the new name.

    aside: folder for the renamed one, of the same disk; default: its own.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not _REMAINS.fullmatch(path.name):
        path = path.rename((aside or path.parent) / f".{path.name}.deleting-{secrets.token_hex(4)}")
    shutil.rmtree(path, ignore_errors=True)


def is_remains(path: Path) -> bool:
    """Whether a name says that a file or folder is, or was, being written or deleted."""
    return bool(_REMAINS.fullmatch(path.name))


def discard_remains(folder: Path) -> None:
    """Delete what killed processes were writing or deleting in a folder and its subfolders."""
    for parent, folders, names in os.walk(folder):
        for name in filter(_REMAINS.fullmatch, [*folders, *names]):
            discard(Path(parent, name))
        folders[:] = [name for name in folders if not _REMAINS.fullmatch(name)]


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder. Links are not followed; files that vanish meanwhile count 0."""
    with contextlib.suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
