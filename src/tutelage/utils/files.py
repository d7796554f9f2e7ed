"""Files: atomic writes (JSON, JSON lines, text), reading them back checked, and sizes on disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tutelage.utils import integrity


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a draft beside `path` to write; it takes the place of `path` on leaving, unless an exception was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    yield draft
    draft.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; manifests with a checksum of their content."""
    value = integrity.seal(value) if path.name in integrity.SEALED else value
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DamagedArtifactError if it is not as its run recorded it, or is no JSON."""
    if path.name in integrity.SEALED:
        return integrity.read_sealed(path)
    with integrity.reading(path, ValueError):
        return json.loads(path.read_bytes())


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass records or dicts, one JSON object a line, whole or not at all."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        for record in records:
            row = record if isinstance(record, dict) else asdict(record)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, in order. Raises as `read_json`."""
    with integrity.reading(path, ValueError), path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def read_records(path: Path, kind: type) -> list[Any]:
    """The lines of a file that `write_jsonl` made, as records of `kind`; keys that `kind` lacks are ignored."""
    names = {field.name for field in fields(kind)}
    return [kind(**{key: value for key, value in row.items() if key in names}) for row in read_jsonl(path)]


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
