"""`tutelage clean`: lists and deletes what a run can rebuild: caches, resume checkpoints, optimizer states.

Students, anchors, checkpoints, losses, predictions, reports and the recipe are never touched.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.cli.list_runs import run_folders
from tutelage.errors import DataError
from tutelage.run.artifacts import checkpoint_folder
from tutelage.run.live_reader import dig, read_or_none, recipe_of
from tutelage.run.manifest import is_run, locked
from tutelage.run.own_files import RESUME_ONLY, foreign_files
from tutelage.run.run_state import Manifests, manifests_by_folder
from tutelage.utils.console import out, print_table
from tutelage.utils.files import discard, is_remains, size_on_disk
from tutelage.utils.format import file_size
from tutelage.utils.integrity import check_run


@dataclass(frozen=True, slots=True)
class Removable:
    """A group of files in a run that can be rebuilt."""

    what: str
    paths: tuple[Path, ...]
    size: int
    """Bytes."""
    rebuilt_by: str
    """The command that rebuilds it, or why nothing needs to."""
    kept_because: str | None = None
    """Why it is not deleted; None if it is."""


def clean(run: Path, delete: bool = False) -> list[Removable]:
    """Print what can be deleted from a run, with sizes; delete it if `delete` is set. Returns the list.

    Raises RunLockedError while a process works in the run, DataError if the folder is not a run.
    """
    if not is_run(run):
        nearby = ", ".join(map(str, islice(sorted(run_folders(run)), 3))) if run.is_dir() else ""
        example = f", such as {nearby}" if nearby else ""
        raise DataError(f"{run} is not a run folder: name one{example}; `tutelage ls` lists them")
    check_run(run, ("recipe.yaml", "teach/checkpoints.json"))
    with locked(run):
        groups = list(removable(run))
        if not groups:
            out(f"{run}: nothing to delete")
            return groups
        doomed = [group for group in groups if group.kept_because is None]
        total = file_size(sum(group.size for group in doomed))
        _print_groups(run, groups, total)
        if delete:
            for path in (path for group in doomed for path in group.paths):
                discard(path, aside=run)
            if left := next(filter(is_remains, run.iterdir()), None):
                raise DataError(f"{left} could not be deleted; nothing needs it: delete it by hand")
            out(f"deleted: {total}")
        elif doomed:
            out(f"nothing was deleted yet; to delete: `tutelage clean {shlex.quote(str(run))} --yes`")
    return groups


def _print_groups(run: Path, groups: list[Removable], total: str) -> None:
    rows = [
        [
            group.what,
            file_size(group.size),
            f"kept: {group.kept_because}" if group.kept_because else group.rebuilt_by,
        ]
        for group in groups
    ]
    print_table(f"{run}: can be rebuilt", ["what", "size", "rebuilt by"], [*rows, ["total", total, ""]])


def removable(run: Path) -> Iterator[Removable]:
    """What can be rebuilt: caches, folds of cross-fitting, resume checkpoints, optimizer states."""
    recipe, manifests = recipe_of(run), manifests_by_folder(run)
    yield from _caches(run, recipe, manifests)
    folds = sorted(run.glob("cross_fit/fold-*"))
    yield from _group("cross_fit folds", folds, "`tutelage cross-fit RECIPE`, from the first fold", recipe)
    anchor = [run / "anchor/trainer"]
    yield from _group("anchor resume checkpoints", anchor, "`tutelage anchor RECIPE`, from the first step", recipe)
    for student in sorted(run.glob("distill/*/*")):
        name, points = student.relative_to(run).as_posix(), sorted(student.glob("trainer-*"))
        rebuilt_by = "`tutelage distill RECIPE`, from the start of the stage"
        yield from _group(f"{name} resume checkpoints", points, rebuilt_by, recipe)
    if "teach" in manifests and not dig(recipe, "teach", "checkpoints"):
        states = sorted(path for pattern in RESUME_ONLY for path in run.glob(f"teach/checkpoint-*/{pattern}"))
        yield from _group("teacher optimizer states", states, "not needed: the teacher is finished", recipe)


def _caches(run: Path, recipe: dict[str, Any], manifests: Manifests) -> Iterator[Removable]:
    """The cache of the teacher, kept if a checkpoint that it was read from is gone; and what older versions left."""
    seconds = dig(manifests.get("cache"), "seconds")
    rebuilt_by = f"`tutelage cache RECIPE` or `run`{f'; took {seconds:.0f} s' if seconds else ''}"
    yield from _group("cache", [run / "cache"], rebuilt_by, recipe, _missing_checkpoint(run))
    yield from _group("anchor_cache", [run / "anchor_cache"], "not needed: no method reads it any more", recipe)


def _group(
    what: str, paths: list[Path], rebuilt_by: str, recipe: dict[str, Any], missing: str | None = None
) -> Iterator[Removable]:
    """The group of those paths that exist, if any. missing: why it could not be rebuilt."""
    existing = tuple(path for path in paths if path.exists() or path.is_symlink())
    if not existing:
        return
    links = (f"{path.name} is a link to files outside the run" for path in existing if path.is_symlink())
    named = (f"the recipe uses {name} in it" for path in existing for name in _named_by(recipe, path))
    foreign = (f"{path.name} holds {name}" for path in existing for name in _foreign(path))
    kept_because = missing or next(links, None) or next(named, None) or next(foreign, None)
    yield Removable(what, existing, sum(map(size_on_disk, existing)), rebuilt_by, kept_because)


def _foreign(path: Path) -> Iterator[str]:
    """What tutelage did not write in a folder: a whole one, or a part of one."""
    yield from foreign_files(path) if path.name.endswith("cache") else foreign_files(path.parent, within=path)


def _named_by(recipe: Any, path: Path) -> Iterator[str]:
    """Files and folders of the user that the recipe names and that are `path` or lie in it."""
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key != "output_dir":
                yield from _named_by(value, path)
    elif isinstance(recipe, list):
        for value in recipe:
            yield from _named_by(value, path)
    elif isinstance(recipe, str) and recipe and "\n" not in recipe and len(recipe) < 1000 and os.path.lexists(recipe):
        named, target = Path(recipe).resolve(), path.resolve()
        if target == named or target in named.parents:
            yield recipe


def _missing_checkpoint(run: Path) -> str | None:
    """Why the teacher's cache could not be rebuilt: a checkpoint that it was read from is gone."""
    own = bool(dig(recipe_of(run), "teach", "checkpoints"))
    records = dig(read_or_none(run / "teach/checkpoints.json"), "checkpoints") or []
    checkpoints = [record for record in records if isinstance(record, dict)]
    for checkpoint in checkpoints:
        if not any(checkpoint_folder(run, checkpoint, own).glob("*.safetensors")):
            return f"{checkpoint.get('name')}, which it was built from, is gone"
    return None if checkpoints else "teach/checkpoints.json, the list of what it was built from, is gone"
