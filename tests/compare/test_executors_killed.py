"""`kill -9` of a comparison: its cells stop too, and the next one continues to the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.project import Command, Inline, make_project
from tutelage.compare import cell_runs
from tutelage.compare.cells import Cell, ResultsFile
from tutelage.compare.executors import LocalExecutor
from tutelage.utils.files import read_json, read_jsonl

FOUND_BY_WORKERS = os.pathsep.join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))
"""PYTHONPATH of processes that import this module and the helpers."""


def wait_until(true, seconds, what):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what} not within {seconds} s"
        time.sleep(0.005)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def start(*words):
    """A Python process that finds this module, on one thread."""
    environment = {**os.environ, "PYTHONPATH": FOUND_BY_WORKERS, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, stderr=subprocess.DEVNULL)


# --- one cell ---


def sleep(cell):
    draft = Path(cell.run, "pid.part")
    draft.write_text(str(os.getpid()))
    draft.rename(Path(cell.run, "pid"))
    time.sleep(300)


def run_sleeper(folder):
    list(LocalExecutor(sleep, Path(folder, "logs")).run([Cell("r", folder, "m", 0, 0)]))


def test_a_killed_comparison_stops_its_cells(tmp_path):
    parent = start("-c", f"import {__name__}; {__name__}.run_sleeper({str(tmp_path)!r})")
    wait_until((tmp_path / "pid").exists, 600, "the cell has begun")
    pid = int((tmp_path / "pid").read_text())
    assert not gone(pid) and pid != parent.pid
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(pid), 10, "the cell has ended")


# --- a comparison ---

WORDS = ("--methods", "sft,scd", "--seeds", 1, "--anyway")
ONE_THREAD = "import os; os.cpu_count = lambda: 1; from tutelage.cli.main import main; main()"
"""The command with one thread per cell, as in this process."""


def project(folder):
    return make_project(folder, distill={"epochs_per_stage": 3.0})


def results(recipe):
    return ResultsFile(recipe.parent / "run/compare/results.jsonl")


def values(recipe):
    rows = [row for record in results(recipe).records().values() for row in record.rows]
    return {(row["method"], row["split"], row["metric"]): row["value"] for row in rows}


def half_made(run):
    """Cells that have saved a resume checkpoint and are not finished."""
    saved = {path.parents[1] for path in run.glob("distill/*/seed-0/trainer-*/checkpoint-*")}
    return [folder for folder in saved if not (folder / "manifest.json").exists()]


def test_a_killed_comparison_continues_to_the_same_numbers(tmp_path, monkeypatch, capsys):
    command, undisturbed, recipe = (
        Command(monkeypatch, capsys),
        project(tmp_path / "whole"),
        project(tmp_path / "killed"),
    )
    with monkeypatch.context() as patch:
        patch.setattr(cell_runs, "LocalExecutor", Inline)
        assert command("compare", undisturbed, *WORDS) == 0

    run, file = recipe.parent / "run", results(recipe).path
    killed = start("-c", ONE_THREAD, "compare", recipe, *WORDS)
    try:
        wait_until(
            lambda: (file.exists() and file.stat().st_size and half_made(run)) or killed.poll() is not None,
            900,
            "a cell",
        )
    finally:
        killed.kill()
    assert killed.wait() == -9, "it was killed, and had not ended before"
    assert {cell.method for cell, record in results(recipe).records().items() if not record.failed} == {"sft"}
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("manifest.json")}
    assert {run / "distill/sft/seed-0/manifest.json", run / "evaluate/sft/seed-0/manifest.json"} <= finished.keys()
    assert [folder.parent.name for folder in half_made(run)] == ["scd"]

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert command("compare", recipe, *WORDS) == 0
    assert "2 cells, 1 of them up to date" in command.err
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished, (
        "nothing is made twice"
    )
    rows = list(read_jsonl(file))
    assert {row["method"] for row in rows} == {"sft", "scd"} and {(row["status"], row["attempt"]) for row in rows} == {
        ("done", 1)
    }
    assert len(rows) == len({(row["method"], row["split"], row["metric"]) for row in rows}), (
        "every cell has its lines once"
    )
    assert values(recipe) == pytest.approx(values(undisturbed), abs=1e-6)
    student = run / "distill/scd/seed-0"
    trained = sum(stage["seconds"] for stage in read_json(student / "stages.json"))
    assert read_json(student / "manifest.json")["seconds"] >= trained, "what was trained before the kill counts"
