"""Which runs are listed, and the state of each."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

from helpers.fake_run import write
from helpers.whole_run import HOSTILE, finish, whole_run
from tutelage.analysis.run_summary import summarise_run
from tutelage.cli.list_runs import find_runs, show_runs
from tutelage.errors import DataError
from tutelage.run.manifest import digest, locked


def state(run: Path) -> str:
    return summarise_run(run).state.text


def test_a_run_is_described_in_a_line(tmp_path):
    whole_run(tmp_path / "runs/demo")
    (run,) = find_runs(tmp_path)
    assert (run.task, run.teacher, run.student) == ("classification", "teacher-1b", "small-student")
    # td has the better validation score in its last stage (0.79 against 0.70 + 0.03 x 4 = 0.82): scd-aw is the main one
    assert (run.method, run.students, run.state.kind, run.date) == ("scd-aw/seed-0", 2, "finished", "2026-01-01T00:00")
    models = json.loads((run.folder / "evaluate/scores.json").read_text())["models"]
    teacher, anchor, ours = (models[name]["accuracy"]["value"] for name in ("teacher", "anchor", "scd-aw/seed-0"))
    assert (run.score.value, run.gap_closed) == (ours, pytest.approx((ours - anchor) / (teacher - anchor)))
    assert run.size > 4000


def test_runs_are_found_at_any_depth_and_not_inside_each_other(tmp_path):
    for name in ("b", "a/deep"):
        write(tmp_path / name / "prepare/started.json", {"inputs": {}})
    write(tmp_path / "b/compare/prepare/started.json", {})
    write(tmp_path / ".hidden/prepare/started.json", {})
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    assert [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["a/deep", "b", "linked"]
    with pytest.raises(DataError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")


def settle(run: Path) -> None:
    """As if nothing had been written for an hour."""
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def test_the_state_tells_work_from_a_stop(tmp_path):
    run = whole_run(tmp_path)
    (run / "distill/td/seed-0/manifest.json").rename(run / "distill/td/seed-0/started.json")
    assert state(run) == "running: distill/td/seed-0"
    settle(run)
    assert state(run) == "stopped in distill/td/seed-0"
    with locked(run):
        assert state(run) == "running: distill/td/seed-0"
    (run / "distill/td/seed-0/started.json").unlink()
    (run / "report/manifest.json").unlink()
    assert state(run) == "broken: report/manifest.json is missing"
    shutil.rmtree(run / "report")
    assert state(run) == "finished up to evaluate"
    (run / "evaluate/anchor/manifest.json").unlink(missing_ok=True)
    (run / "evaluate/anchor/predictions.jsonl").touch()
    settle(run)
    assert state(run) == "broken: evaluate/anchor/manifest.json is missing"


def test_a_report_alone_does_not_make_a_run_finished(tmp_path):
    finish(tmp_path, "prepare", finished="2026-01-01T00:00:00")
    write(tmp_path / "prepare/data.json", {})
    (tmp_path / "prepare/rows.jsonl").touch()
    finish(tmp_path, "report", finished="2026-01-01T00:00:09")
    (tmp_path / "report/index.html").touch()
    settle(tmp_path)
    assert state(tmp_path) == "finished up to prepare"


def test_a_folder_without_runs_says_so_and_what_to_do(tmp_path, capsys):
    show_runs(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"no runs in {tmp_path}") and "`tutelage run RECIPE`" in said
    show_runs(tmp_path, "csv")
    assert capsys.readouterr().out.startswith("run,task")  # what programs read has its head and no sentence


def test_a_result_of_an_earlier_stage_made_anew_is_stale(tmp_path):
    run = whole_run(tmp_path)
    inputs = json.loads((run / "prepare/manifest.json").read_text())["inputs"]
    finish(run, "teach", inputs={"stage prepare": digest(inputs)})
    assert state(run) == "finished"
    finish(run, "teach", inputs={"stage prepare": "another"})
    assert state(run) == "stale: teach was built before prepare was rebuilt"


def test_changed_data_files_are_stale(tmp_path):
    run = whole_run(tmp_path / "run")
    data = tmp_path / "train.jsonl"
    data.write_text("{}")
    finish(run, "prepare", inputs={"data files": {str(data): "0123456789abcdef"}}, finished="2099-01-01T00:00:00")
    assert state(run) == "finished"  # it is older than the result, so it is not read
    finish(run, "prepare", inputs={"data files": {str(data): "0123456789abcdef"}}, finished="2020-01-01T00:00:00")
    assert "train.jsonl has changed" in state(run)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("evaluate/scores.json", "{", "evaluate/scores.json cannot be read"),
        ("teach/manifest.json", "{", "teach/manifest.json cannot be read"),
        ("recipe.yaml", "a: [", "recipe.yaml is not YAML"),
        ("anchor/model.safetensors", None, "anchor has no *.safetensors"),
        ("distill/td/seed-0/config.json", None, "distill/td/seed-0 has no config.json"),
    ],
)
def test_what_cannot_be_read_is_broken(tmp_path, file, content, says):
    run = whole_run(tmp_path)
    (run / file).unlink() if content is None else (run / file).write_text(content)
    text = state(run)
    assert text.startswith("broken: ") and says in text


def test_names_from_data_are_inert_in_the_table(tmp_path, capsys):
    run = whole_run(tmp_path / "=1+1")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teacher"]["model_name_or_path"] = HOSTILE
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    show_runs(tmp_path)
    out = capsys.readouterr().out
    assert not set("\x1b\u202e\r") & set(out) and "[bold]x␛[31m⟨U+202E⟩gnp.exe␍␊" in out
    show_runs(tmp_path, "csv")
    assert "\n'=1+1," in capsys.readouterr().out
    show_runs(tmp_path, "json")
    assert json.loads(capsys.readouterr().out)[0]["score"].keys() == {"value", "low", "high"}
