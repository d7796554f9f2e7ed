"""Runs that are not worth going on with stop between two stages, say why, and go on with --anyway."""

import json
import shutil
from pathlib import Path

import pytest

from helpers.project import Command, color_rows, make_project, write_rows
from tutelage.utils.checksums import file_record
from tutelage.utils.files import read_json, read_jsonl, write_json, write_jsonl


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A project of 80 validation rows whose teacher and anchor are there; neither has learned anything."""
    from tutelage.cli.main import main

    folder = tmp_path_factory.mktemp("stopped")
    recipe = make_project(folder)
    write_rows(folder / "data/validation.jsonl", color_rows("validation", 80))
    with pytest.MonkeyPatch.context() as patch:
        for words in (["prepare"], ["teach", "--anyway"], ["anchor", "--anyway"]):
            patch.setattr("sys.argv", ["tutelage", *words, str(recipe)])
            with pytest.raises(SystemExit) as leaving:
                main()
            assert not leaving.value.code
    return folder


@pytest.fixture
def project(taught, tmp_path):
    """A copy of it that may stop; its recipe."""
    shutil.copytree(taught / "run", tmp_path / "run")
    return make_copy(taught, tmp_path)


def make_copy(taught: Path, folder: Path) -> Path:
    text = (taught / "recipe.yaml").read_text().replace(f"output_dir: {taught}/run", f"output_dir: {folder}/run")
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


@pytest.fixture
def command(monkeypatch, capsys):
    made = Command(monkeypatch, capsys)
    made.may_stop = True
    return made


def record(run: Path, stage: str) -> None:
    """Record the files of a stage again, as they are now."""
    manifest = read_json(run / stage / "manifest.json")
    manifest["files"] = {name: file_record(run / stage / name) for name in manifest["files"]}
    write_json(run / stage / "manifest.json", manifest)


def a_good_teacher(run: Path, anchor_score: float) -> None:
    """As if the teacher were right on all validation rows, and the anchor on this fraction of them."""
    taught = read_json(run / "teach/checkpoints.json")
    for checkpoint in taught["checkpoints"]:
        checkpoint |= {"score": 1.0, "low": 0.94, "high": 1.0, "unreadable": 0.0}
    write_json(run / "teach/checkpoints.json", taught)
    for path, score in ((f"teach/validation/{taught['best']}.jsonl", 1.0), ("anchor/sample_loss.jsonl", anchor_score)):
        lines = list(read_jsonl(run / path))
        right = {line["id"] for line in lines[-80:][: int(80 * score)]}
        write_jsonl(run / path, ({**line, "score": float(line["id"] in right), "nll": 0.1} for line in lines))
    for stage in ("teach", "anchor"):
        record(run, stage)


def test_a_teacher_that_learned_nothing_stops_the_run(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("run", recipe) == 3
    said = command.err[command.err.index("RunStoppedError") :]
    assert "accuracy 0.000 [0.000, 0.390] on 6 validation rows" in said and "[teacher_learned_nothing]" in said
    assert "has 0.333" in said  # three labels, equally often
    assert all(cause in said for cause in ("'{text}:'", "teach.trainer.learning_rate is 0.003", "tokens per answer"))
    assert "cannot be read" in said and "--anyway" in said
    assert (tmp_path / "run/teach/manifest.json").is_file() and not (tmp_path / "run/anchor").exists()
    assert command("run", recipe) == 3 and said == command.err[command.err.index("RunStoppedError") :]
    assert "teach: up to date" in command.err
    assert command("run", recipe, "--anyway", "distill.methods=[td]") == 0
    assert "teach: up to date" in command.err and command.err.count("learned nothing") == 1
    assert (tmp_path / "run/distill/td/seed-0/manifest.json").is_file()


def test_every_command_that_would_train_after_it_stops(project, command):
    for words in (["teach"], ["anchor"], ["cache"], ["distill"], ["compare", "--methods", "sft,td", "--seeds", "1"]):
        assert command(words[0], project, *words[1:]) == 3, words
        assert "[teacher_learned_nothing]" in command.err
    assert not (project.parent / "run/cache").exists()
    assert command("cache", project, "--anyway") == 0 and "going on, as --anyway asks" in command.err


def test_a_run_without_a_teachers_students_goes_on(project, command):
    assert command("teach", project, "distill.methods=[sft]") == 0


def test_a_run_of_an_earlier_version_is_not_judged(project, command):
    path = project.parent / "run/teach/checkpoints.json"
    taught = read_json(path)
    del taught["baseline"]
    write_json(path, taught)
    record(project.parent / "run", "teach")
    assert command("cache", project) == 0


def test_an_anchor_that_equals_its_teacher_stops_the_run(project, command):
    run = project.parent / "run"
    a_good_teacher(run, anchor_score=1.0)
    assert command("run", project) == 3
    said = command.err[command.err.index("RunStoppedError") :]
    assert "teacher has accuracy 1.000 and plain fine-tuning 1.000" in said and "[nothing_to_gain]" in said
    assert "+0.000 [-0.046, +0.046]" in said and str(run / "anchor") in said
    assert "headroom: " in command.err and command.err.count("nothing to gain") == 1
    assert not (run / "cache").exists()
    assert command("anchor", project) == 3 and command("distill", project) == 3


def test_a_run_with_a_gap_goes_on_and_says_what_to_expect(project, command):
    a_good_teacher(project.parent / "run", anchor_score=0.5)
    assert command("anchor", project) == 0
    assert "verdict: " in command.err and "accuracy on validation rows: 0.500 and 1.000" in command.err


def test_the_doctor_says_the_same(project, command):
    assert command("doctor", project, "--json") == 1
    checks = {check["name"]: check for check in json.loads(command.out)}
    assert checks["verdict"]["kind"] == "teacher_learned_nothing"
    a_good_teacher(project.parent / "run", anchor_score=1.0)
    command("doctor", project, "--json")
    assert next(c for c in json.loads(command.out) if c["name"] == "verdict")["kind"] == "nothing_to_gain"
