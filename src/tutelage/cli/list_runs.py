"""`tutelage ls`: run folders as a table, with their state. Everything is read from files; no model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.analysis.run_summary import RunSummary, summarise_run
from tutelage.errors import DataError
from tutelage.run.manifest import is_run
from tutelage.utils.console import as_json, out, print_table
from tutelage.utils.format import NO_VALUE, file_size, percent

HEAD = ["run", "task", "teacher → student", "method", "score", "gap closed", "date", "size", "state"]


def find_runs(folder: Path) -> list[RunSummary]:
    """Every run in a folder and its subfolders, the folder itself included, sorted by path.

    Raises DataError if the folder does not exist. A run with unreadable files is listed as broken.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the folder that holds your runs, such as runs")
    return [summarise_run(path) for path in sorted(run_folders(folder))]


def run_folders(folder: Path) -> Iterator[Path]:
    """Run folders at any depth, links to run folders included; neither hidden folders nor runs are searched."""
    for path, subfolders, _ in os.walk(folder):
        if is_run(Path(path)):
            subfolders.clear()
            yield Path(path)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (link for name in subfolders if (link := Path(path, name)).is_symlink() and is_run(link))


def show_runs(folder: Path, form: str = "table") -> None:
    """Print the runs in a folder. form: table, markdown, latex, csv or json. Raises as `find_runs`."""
    runs = find_runs(folder)
    if form == "json":
        out(as_json([_as_json(run) for run in runs]))
        return
    if not runs and form == "table":
        out(f"no runs in {folder}: name the folder that holds your runs; `tutelage run RECIPE` starts one")
        return
    rows = [_cells(run, folder) for run in runs]
    if form == "csv":  # a spreadsheet would run a cell that begins like a formula
        rows = [[f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for cell in row] for row in rows]
    print_table(f"{len(runs)} runs in {folder}", HEAD, rows, form)


def _as_json(run: RunSummary) -> dict[str, Any]:
    scores = {key: value._asdict() for key in ("score", "teacher_score") if (value := getattr(run, key))}
    return asdict(run) | {"folder": str(run.folder), "state": run.state.text} | scores


def _cells(run: RunSummary, folder: Path) -> list[str]:
    """The cells of a run, in the order of HEAD."""
    name = run.folder.relative_to(folder).as_posix()
    others = f" (+{run.students - 1})" if run.students > 1 else ""
    return [
        name if name != "." else run.folder.resolve().name,
        run.task,
        f"{run.teacher} → {run.student}" if run.teacher else NO_VALUE,
        (run.method or NO_VALUE) + others,
        f"{run.metric} {run.score.value:.3f}" if run.score else NO_VALUE,
        percent(run.gap_closed),
        run.date.replace("T", " "),
        file_size(run.size),
        run.state.text,
    ]
