"""A run folder that was moved, copied or linked: it goes on by itself, and reads no file of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.older import without_checksums
from helpers.project import Command, Inline, make_project, run_to_the_end
from tutelage.compare import cell_runs
from tutelage.run.live_reader import best_checkpoint

STUDENT = "distill/scd-aw/seed-0"


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    monkeypatch.setattr(cell_runs, "LocalExecutor", Inline)
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    run_to_the_end(make_project(folder))
    return folder


@pytest.fixture
def copied(project, tmp_path) -> Path:
    """The run in another place, while the first one stays where it was."""
    return shutil.copytree(project / "run", tmp_path / "elsewhere/copy")


def spoil(run: Path) -> None:
    """Make every file of a run unusable, so that whoever reads one fails."""
    for path in run.rglob("*"):
        if path.is_file():
            path.write_bytes(b"not yours")


@pytest.mark.parametrize("older", [False, True])
def test_a_copy_goes_on_without_the_run_it_was_copied_from(project, copied, command, older):
    if older:  # versions before this one recorded whole paths
        taught = json.loads((copied / "teach/checkpoints.json").read_text())
        for record in taught["checkpoints"]:
            record["folder"] = str(project / "run/teach" / record["name"])
        without_checksums(copied)
        (copied / "teach/checkpoints.json").write_text(json.dumps(taught))
    kept = shutil.copytree(project / "run", copied.parent / "kept")
    spoil(project / "run")
    try:
        assert command("run", copied) == 0, command.err
        assert command.err.count("up to date") == 11 if not older else "teach: up to date" in command.err
        assert command("cache", copied, "--force") == 0 and command("evaluate", copied, "--force") == 0, command.err
        assert command("distill", copied, "distill.methods=[td]") == 0, command.err
        assert best_checkpoint(copied).parent == copied / "teach"
    finally:
        shutil.rmtree(project / "run")
        kept.rename(project / "run")
    scores, now = (json.loads((run / "evaluate/scores.json").read_text()) for run in (project / "run", copied))
    assert scores["models"] == now["models"]


def test_nothing_in_a_run_names_the_place_where_it_is(project):
    texts = (path for path in (project / "run").rglob("*.json*") if "trainer_state" not in path.name)
    named = [path.relative_to(project / "run").as_posix() for path in texts if str(project / "run") in path.read_text()]
    assert named == []


def test_a_lost_checkpoint_is_never_taken_from_the_run_it_was_copied_from(copied, command):
    best = best_checkpoint(copied)
    shutil.rmtree(best)
    assert best_checkpoint(copied) is None
    assert command("evaluate", copied, "--force") == 2 and str(best) in command.err and "damaged" in command.err


def test_a_linked_run_is_the_run(project, tmp_path, command):
    link = tmp_path / "link"
    link.symlink_to(project / "run")
    assert command("run", link) == 0 and command.err.count("up to date") == 11


def test_a_run_goes_on_where_its_data_and_models_are_not(project, copied, command, tmp_path):
    """A folder that was mailed: what the finished stages were made from is not on this machine."""
    outside = [project / "data", project / "models"]
    for folder in outside:
        folder.rename(folder.with_name(f"{folder.name}-away"))
    try:
        assert command("run", copied) == 0, command.err
        assert command("report", copied, "--force") == 0 and command("diagnose", copied) == 0
        assert command("prepare", copied, "--force") == 2
    finally:
        for folder in outside:
            folder.with_name(f"{folder.name}-away").rename(folder)


@pytest.mark.parametrize("older", [False, True])
def test_a_comparison_moves_with_its_run(project, copied, command, older):
    words = ("--methods", "scd-aw,sft", "--seeds", "1")
    assert command("compare", copied, *words) == 0, command.err
    assert command.err.strip().endswith(f"page: {copied / 'compare' / 'index.html'}")
    lines = (copied / "compare/results.jsonl").read_text()
    assert str(copied) not in lines
    moved = copied.rename(copied.parent / "moved")
    if older:
        rows = [json.loads(line) | {"run": str(copied)} for line in lines.splitlines()]
        for row in rows:
            del row["checksum"]
        (moved / "compare/results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {path: path.stat().st_mtime_ns for path in (moved / "distill").rglob("*.safetensors")}
    assert command("compare", moved, *words) == 0, command.err
    assert "2 cells, 2 of them up to date" in command.err
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    summary = json.loads((moved / "compare/summary.json").read_text())
    assert {cell["run"] for cell in summary["cells"]} == {str(moved)} and not summary["stale"]


def test_a_changed_line_of_results_is_found(project, copied, command):
    words = ("--methods", "sft", "--seeds", "1")
    assert command("compare", copied, *words) == 0
    path = copied / "compare/results.jsonl"
    path.write_text(path.read_text().replace('"metric": "nll"', '"metric": "nlm"'))
    assert command("compare", copied, *words) == 2
    assert "results.jsonl, line" in command.err and "Remove the line, and its cell is run again" in command.err


def test_a_student_alone_answers_and_is_checked(copied, command, tmp_path):
    student = shutil.copytree(copied / STUDENT, tmp_path / "student")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "test thing 1 is red"}\n')
    assert command("predict", student, "--input", rows) == 0
    weights = student / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert command("predict", student, "--input", rows) == 2 and str(weights) in command.err
