"""A sound project with one fault planted, and the check that should find it."""

from __future__ import annotations

from pathlib import Path

from helpers.project import write_rows
from helpers.sound_project import rows, sound
from tutelage.doctor import Check, examine_file


def changed(folder: Path, split: str, change) -> Path:
    """A sound project whose rows of a split went through `change`."""
    path = sound(folder)
    write_rows(folder / "data" / f"{split}.jsonl", change(rows(split)))
    return path


def line_of(path: Path, start: str, after: int = 0) -> str:
    """FILE:LINE of the line that begins so, or of one after it."""
    lines = path.read_text().splitlines()
    return f"{path.name}:{next(n for n, text in enumerate(lines, 1) if text.startswith(start)) + after}"


def found(path: Path, *overrides: str, name: str) -> Check:
    checks = examine_file(path, overrides)
    own = [check for check in checks if check.name == name]
    assert own, [(check.name, check.status) for check in checks]
    return own[0]
