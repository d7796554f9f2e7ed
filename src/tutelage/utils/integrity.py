"""What the files of a run folder should hold: recorded when they are finished, compared whenever one is read.

A finished folder's `manifest.json` records size and SHA-256 of its files; `checksums.json` does so where there is no
manifest (the run folder itself, `evaluate/`). Both carry a checksum of their own content. A folder of unfinished work
has `progress.jsonl`, a line for each file that an interrupted process continues from. Files that none of them lists,
as of older versions, are read as they are. Every file is hashed once a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.errors import DamagedArtifactError, Kind, Problem
from tutelage.errors.wording import first_line
from tutelage.utils.checksums import CHECKSUMS, DEEPEST, MANIFEST, SEALED, STARTED, FileRecord, checksum, file_record
from tutelage.utils.progress import is_unfinished, noted

MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of the files of a model folder that decide how the model answers."""
COMMANDS = {
    **{
        name: name
        for name in ("prepare", "teach", "silver", "anchor", "cache", "distill", "evaluate", "diagnose", "report")
    },
    "baseline": "evaluate",
    "cross_fit": "cross-fit",
    "teacher_answers": "cache",
}
"""Folder of a run: the command that makes it."""


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a manifest or another sealed file. Raises DamagedArtifactError if it is not as it was written."""
    try:
        stat = path.stat()
        return {**_read_sealed(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)}
    except OSError as error:
        raise damaged(path, error) from error


@cache
def _read_sealed(path: Path, inode: int, size: int, written: int) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict) or not all(isinstance(value.get(key, {}), dict) for key in ("inputs", "files")):
        raise damaged(path, "something else", "a JSON object with `inputs` and `files`")
    recorded = value.pop("checksum", None)
    if recorded is not None and recorded != checksum(value):
        raise damaged(path, "other content", f"content with the checksum {recorded}")
    return value


def check(path: Path) -> None:
    """Raises DamagedArtifactError if a file is not as its folder's manifest records it, or is missing.

    Files that no manifest lists pass, also missing ones, and manifests themselves: `read_sealed` checks those.
    """
    if path.name in SEALED:
        return
    # Asked twice: a process may just have replaced both file and record.
    if _fault(path) and (fault := _fault(path)):
        raise damaged(path, *fault)


def check_all(folder: Path) -> None:
    """`check` every recorded file of a finished folder."""
    for name in _files_of(folder / MANIFEST):
        check(folder / name)


def check_folder(folder: Path, *suffixes: str) -> None:
    """`check` every recorded file of a folder, or those with one of the suffixes; subfolders are left out."""
    owner, records = _owner(folder / "any")
    for name in records:
        if (owner / name).parent == folder and (not suffixes or name.endswith(suffixes)):
            check(owner / name)


def check_run(run: Path, patterns: Iterable[str]) -> None:
    """`check` every recorded file of a run that matches a pattern, and that no finished folder has lost its manifest.

    patterns: of `Path.glob`, relative to the run.
    """
    wanted = [pattern.split("/") for pattern in patterns]
    for folder, content in sealed_folders(run):
        for path in (folder / name for name in content.get("files") or {}):
            if any(_matches(path.relative_to(run).parts, pattern) for pattern in wanted):
                check(path)
        for key in content.get("inputs") or {}:
            if key.startswith("stage "):
                check_not_lost(run / key.removeprefix("stage "))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern as in `Path.glob`, which finds existing files alone."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def lost(folder: Path) -> bool:
    """Whether a folder has files but no record of what they were made from."""
    without = folder.is_dir() and not any((folder / name).exists() for name in SEALED)
    return without and any(not entry.name.startswith(".") for entry in folder.iterdir())


def check_not_lost(folder: Path) -> None:
    """Raises DamagedArtifactError for a folder that is `lost`."""
    if lost(folder):
        raise damaged(folder / MANIFEST, "no such file", "the record of the folder's files")


def sealed_folders(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of a run with a manifest or checksums, and its content; hidden folders are left out."""
    for depth in range(DEEPEST):
        for name in (MANIFEST, CHECKSUMS):
            for path in sorted(run.glob("*/" * depth + name)):
                if not any(part.startswith(".") for part in path.relative_to(run).parts):
                    yield path.parent, read_sealed(path)


@contextmanager
def reading(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """`check` a file that is then read inside. errors: what its library raises for content that it cannot read."""
    check(path)
    failures: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except failures as error:
        raise damaged(path, error) from error


def content_hash(path: Path) -> str:
    """Short hash of a file's content. Raises DamagedArtifactError if it cannot be read."""
    with reading(path):
        return file_record(path)["sha256"][:16]


def present(path: Path) -> bool:
    """Whether a file is there. Raises as `check`: a file that is listed and missing is no file left out."""
    check(path)
    return path.is_file()


def resized(folder: Path) -> Path | None:
    """The first recorded file of a finished folder that is missing or has another size. No content is read."""
    records = _files_of(folder / MANIFEST)
    return next((folder / name for name in records if _size(folder / name) != records[name]["bytes"]), None)


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def _fault(path: Path) -> tuple[str | Exception, str] | None:
    """What was found and what was expected, if they differ."""
    owner, records = _owner(path)
    expected = records.get(path.relative_to(owner).as_posix())
    if expected is None:
        return None
    wanted = f"{expected['bytes']:,} bytes with SHA-256 {expected['sha256'][:12]}..."
    if "earlier" in expected and not path.exists():  # unfinished work may be without it yet
        return None
    sound = [expected, *expected.get("earlier", ())]
    try:
        if path.is_dir():
            return "a folder", wanted
        if (size := path.stat().st_size) not in [record["bytes"] for record in sound]:
            return f"{size:,} bytes", wanted
        found = file_record(path)["sha256"]
    except OSError as error:
        return error, wanted
    return None if found in [record["sha256"] for record in sound] else (f"SHA-256 {found[:12]}...", wanted)


def _owner(path: Path) -> tuple[Path, dict[str, FileRecord]]:
    """The nearest folder above a file that has a manifest, checksums or unfinished work, and the records in it."""
    for folder in list(path.parents)[:DEEPEST]:
        for name in (MANIFEST, CHECKSUMS):
            if (folder / name).exists():
                return folder, _files_of(folder / name)
        if is_unfinished(folder):
            return folder, noted(folder)
    return path.parent, {}


def _files_of(path: Path) -> dict[str, FileRecord]:
    """The records in a manifest; none if there is no manifest, or one that other software wrote."""
    try:
        return read_sealed(path).get("files") or {} if path.exists() else {}
    except DamagedArtifactError:
        if any(part in COMMANDS for part in path.absolute().parts[-DEEPEST:]):
            raise
        return {}


def damaged(
    path: Path | str, found: str | Exception, expected: str = "a file that can be read", again: str | None = None
) -> DamagedArtifactError:
    """The error for a file of a run. found: what is there instead, or the exception that reading it raised. again: how
    it is made again, unless the path tells."""
    if isinstance(found, Exception):
        reason = found.strerror if isinstance(found, OSError) else first_line(found)
        found = f"an error ({reason})"
    values = {"path": str(path), "expected": expected, "found": found, "again": again or _again(Path(path))}
    return DamagedArtifactError(Problem(Kind.ARTIFACT_DAMAGED, values=values))


def _again(path: Path) -> str:
    """How the file is made again."""
    if path.name == "recipe.yaml":
        return (
            f"`tutelage run RECIPE output_dir={path.parent}`, with the recipe that you gave, writes it again; change"
            " values in that recipe, or by section.key=value"
        )
    stage = next((folder for folder in path.parents if folder.name in COMMANDS), None)
    if stage is None:
        return "Restore it, or delete it and repeat the command that wrote it"
    command = f"`tutelage {COMMANDS[stage.name]} RECIPE`"
    finished = (folder for folder in path.parents if any((folder / name).exists() for name in (MANIFEST, STARTED)))
    owner = next((folder for folder in finished if stage in (folder, *folder.parents)), path.parent)
    if owner.name == "evaluate":  # what joins the scored models has no manifest, and is written in every run
        return f"{command} writes it again"
    return f"Delete {owner}, and {command} makes it again"
