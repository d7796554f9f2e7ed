"""What cannot be compared is refused before anything is trained; finished results are not lost."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from helpers.project import Command, Inline, color_rows, make_project, write_rows
from tutelage.compare import cell_runs
from tutelage.compare.cells import Cell, ResultsFile
from tutelage.errors import ConfigError, UserError
from tutelage.method.methods import METHODS, Method
from tutelage.recipe.load import load_recipe, varied
from tutelage.teacher import build_cache as caching
from tutelage.utils.files import read_jsonl


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(cell_runs, "LocalExecutor", Inline)
    return Command(monkeypatch, capsys)


# --- methods and settings ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("td+schedule.student_kl=forward", "schedule.student_kl has no effect on td"),
        ("td+schedule.reach=forward", "schedule.reach has no effect on td"),
        ("cd+schedule.advance=true", "schedule.advance has no effect on cd"),
        ("scd-aw+kd_ratio=0.7", "kd_ratio has no effect on scd-aw"),
        ("sft+temperature=2.0", "temperature has no effect on sft"),
        ("td+trainer.per_device_train_batch_size=2", "every method gets the same steps"),
        ("td+trainer.gradient_accumulation_steps=2", "every method gets the same steps"),
    ],
)
def test_a_setting_that_a_method_does_not_read_or_that_changes_its_budget_is_refused(tmp_path, name, words):
    with pytest.raises(ConfigError, match=words):
        varied(load_recipe(make_project(tmp_path)).recipe, name)


def test_settings_of_the_recipe_may_concern_some_methods_only(tmp_path):
    overrides = ["distill.methods=[td, scd, td-aw]", "distill.kd_ratio=0.7", "distill.schedule.advance=true"]
    recipe = load_recipe(make_project(tmp_path), overrides).recipe
    assert recipe.distill.kd_ratio == 0.7 and recipe.distill.schedule.advance


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("in-order", "forward_kl", "constant"), "its schedule is 'in-order'; allowed are none, best"),
        (("best", "forward", "constant"), "its divergence is 'forward'"),
        (("best", "forward_kl", "adaptiv"), "its weighting is 'adaptiv'"),
        (("best", "forward_kl", "none"), "it follows a teacher, but its weighting is none"),
        (("best", "forward_kl", "constant", "", "teacher"), "but trains on the teacher's answers; choose one"),
    ],
)
def test_a_user_method_that_cannot_work_is_refused_with_the_recipe(tmp_path, command, monkeypatch, parts, words):
    monkeypatch.setitem(METHODS, "mine", Method(*parts[:3], "a test", *parts[4:]))
    assert command("compare", make_project(tmp_path), "--methods", "td,mine") == 2
    assert words in command.err and not (tmp_path / "run").exists()


def test_a_user_teacher_has_no_folds_and_no_other_seeds(tmp_path, command):
    recipe = make_project(tmp_path, teach={"checkpoints": ["somewhere"], "num_checkpoints": 2, "trainer": {}})
    assert command("compare", recipe, "--methods", "ccd-aw") == 2
    assert "write cross_fit.teacher: false" in command.err and not (tmp_path / "run").exists()
    assert command("compare", recipe, "--methods", "td", "--teacher-seeds", 2) == 2
    assert (
        "--teacher-seeds trains teachers, but teach.checkpoints names yours" in command.err
        and not (tmp_path / "run").exists()
    )


def test_methods_that_need_whole_distributions_are_refused_before_a_student_is_trained(tmp_path, command, monkeypatch):
    monkeypatch.setattr(
        caching, "FAITHFUL_NATS", -1.0
    )  # as of an architecture whose head is no function of one hidden state
    recipe, methods = make_project(tmp_path), "td,scd,taid,rkl,td+temperature=2.0"
    assert command("compare", recipe, "--methods", methods, "--seeds", 1) == 2
    assert "scd, taid, rkl, td+temperature=2.0 cannot learn from this teacher" in command.err
    assert not (tmp_path / "run/anchor").exists()
    assert command("compare", recipe, "--methods", "td,cd-aw", "--seeds", 1) == 0
    assert "failed" not in command.err


def test_bad_rows_of_the_last_recipe_are_reported_before_the_first_is_trained(tmp_path, command):
    recipes = [make_project(tmp_path / name, name=name) for name in ("one", "two")]
    write_rows(tmp_path / "two/data/test.jsonl", color_rows("train", 6))  # rows that are trained on
    assert command("compare", *recipes, "--methods", "sft", "--output", tmp_path / "both") == 2
    assert "training rows that are also test rows" in command.err.partition("two, teacher seed 0")[2]
    assert not (tmp_path / "one/run/teach").exists()


def test_more_checkpoints_than_the_teacher_has_steps_are_refused_before_it_is_trained(tmp_path, command):
    assert (
        command("compare", make_project(tmp_path, teach={"num_checkpoints": 40}), "--methods", "td", "--seeds", 1) == 2
    )
    assert "6 steps, too few for 40 checkpoints" in command.err and not list(
        (tmp_path / "run/teach").glob("checkpoint-*")
    )


def test_a_stage_of_warm_up_steps_alone_is_an_error(tmp_path, command):
    recipe = make_project(tmp_path, distill={"epochs_per_stage": 0.3})
    assert command("compare", recipe, "--methods", "sft,sft+restart=true", "--seeds", 1) == 1
    (failed,) = json.loads((tmp_path / "run/compare/summary.json").read_text())["failed"]
    assert failed["method"] == "sft+restart=true" and "a stage has 1 step, all of them warm-up" in failed["error"]


# --- training runs ---


def test_an_adapter_student_that_starts_from_the_anchor_ends_on_it(tmp_path, command):
    recipe = make_project(tmp_path, student={"lora": {"r": 2}}, anchor={"trainer": {"learning_rate": 0.05}})
    still = ["distill.start=anchor", "distill.trainer.learning_rate=1.0e-8"]
    assert command("run", recipe, "distill.methods=[sft]", *still) == 0, command.err
    anchor, ended = (
        load_file(str(tmp_path / f"run/{name}/model.safetensors")) for name in ("anchor", "distill/sft/seed-0")
    )
    untrained = load_file(str(tmp_path / "models/student/model.safetensors"))
    moved = max(float((anchor[name] - untrained[name]).abs().max()) for name in anchor)
    assert max(float((ended[name] - anchor[name]).abs().max()) for name in anchor) < 0.01 * moved


def test_teacher_seeds_share_an_anchor_with_its_own_arguments(tmp_path, command):
    recipe = make_project(tmp_path, anchor={"trainer": {"learning_rate": 0.002}})
    assert command("compare", recipe, "--methods", "sft,td-aw", "--seeds", 2, "--teacher-seeds", 2) == 0, command.err
    assert "failed" not in command.err and "6 cells, 0 of them" in command.err  # sft knows no teacher: once a seed
    anchors = [tmp_path / f"{run}/anchor/sample_loss.jsonl" for run in ("run", "run-teacher-1")]
    assert anchors[0].read_text() == anchors[1].read_text()


def test_folds_of_another_teacher_seed_have_another_teacher(tmp_path, command):
    assert command("compare", make_project(tmp_path), "--methods", "td-aw-cf", "--seeds", 1, "--teacher-seeds", 2) == 0
    first, second = (
        list(read_jsonl(tmp_path / f"{run}/cross_fit/sample_loss.jsonl")) for run in ("run", "run-teacher-1")
    )
    assert [line["anchor"] for line in first] == [line["anchor"] for line in second]
    assert [line["teacher"] for line in first] != [line["teacher"] for line in second]


# --- a second call ---


def test_a_changed_recipe_is_refused_with_what_changed_and_rebuilt_with_force(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 0
    results = tmp_path / "run/compare/results.jsonl"
    before = results.read_text()
    again = ["compare", recipe, "distill.temperature=2.0", "--methods", "sft,td", "--seeds", 1]
    assert command(*again) == 2
    assert "distill.temperature: 1.0 -> 2.0" in command.err and "add --force to this command" in command.err
    assert results.read_text() == before and (tmp_path / "run/distill/td/seed-0/model.safetensors").is_file()
    teacher = (tmp_path / "run/teach/manifest.json").read_text()
    assert command(*again, "--force") == 0
    assert (tmp_path / "run/teach/manifest.json").read_text() == teacher, "what is fresh stays"
    assert {row["attempt"] for row in read_jsonl(results) if row["method"] == "td"} == {1, 2}
    assert command(*again) == 0 and "2 of them up to date" in command.err


def test_a_cell_whose_predictions_were_deleted_is_run_again(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 0
    (tmp_path / "run/evaluate/td/seed-0/predictions.jsonl").unlink()
    (tmp_path / "run/evaluate/td/seed-0/manifest.json").unlink()
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 0, command.err
    assert "1 of them up to date" in command.err
    (tmp_path / "run/evaluate/td/seed-0/predictions.jsonl").unlink()
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1) == 2
    assert (
        "td/seed-0/predictions.jsonl does not exist" in command.err and "remove the lines of that cell" in command.err
    )


def test_a_cell_that_was_written_in_part_is_not_recorded(tmp_path):
    path, cells = tmp_path / "results.jsonl", [Cell("r", "run", name, 0, 0) for name in ("sft", "td")]
    rows = [{"status": "done", "metric": name} for name in ("accuracy", "nll", "macro_f1")]
    for cell in cells:
        ResultsFile(path).append(cell, "abc", rows)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:5]) + whole[5][:30])  # a full disk takes a part of what is written in one piece
    results = ResultsFile(path)
    assert list(results.records()) == cells[:1]
    results.append(cells[1], "abc", rows)
    assert list(results.records()) == cells and len(results.records()[cells[1]].rows) == 3
    path.write_text("".join(whole[:5]))  # cut between two lines
    assert list(ResultsFile(path).records()) == cells[:1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("inline_container.cc:672] . unexpected pos 186688 vs 186576"),
    ],
)
def test_a_full_disk_is_reported_without_a_traceback(tmp_path, command, monkeypatch, error):
    def full(self, cell, inputs, rows):
        raise error

    monkeypatch.setattr(ResultsFile, "append", full)
    monkeypatch.setattr("tutelage.utils.disk.free_space", lambda folder: 0)
    assert command("compare", make_project(tmp_path), "--methods", "sft", "--seeds", 1) == 2
    assert "free some space; the same command continues" in command.err


def test_learning_rates_keep_their_digits(tmp_path):
    from tutelage.compare.tuning import learning_rate_option

    recipe = load_recipe(make_project(tmp_path)).recipe
    for rate in (2e-5, 0.00012345678, 0.1):
        assert varied(recipe, f"td+{learning_rate_option(rate)}").distill.trainer["learning_rate"] == rate


def test_summary_json_is_complete_after_a_failed_method(tmp_path, command, monkeypatch):
    def refuses(anchor, teacher):
        raise RuntimeError("not today")

    monkeypatch.setitem(METHODS, "mine", Method("best", "forward_kl", refuses, "a test"))
    assert command("compare", make_project(tmp_path), "--methods", "sft,mine", "--seeds", 1) == 1
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    assert [cell["error"] for cell in summary["failed"]] == ["RuntimeError: not today"]


def test_a_note_about_an_old_name_is_told_once(tmp_path, command, monkeypatch):
    from tutelage.compare import experiment

    def stop(plan, runs):
        raise UserError("enough")

    monkeypatch.setattr(experiment, "_check_before_training", stop)
    old = "td+restart=false"
    for methods in (["sft"], [old]):
        recipe = make_project(tmp_path, distill={"methods": methods})
        assert command("compare", recipe, "--methods", f"sft,{old}", "--seeds", "1") == 2
        assert command.err.count("distill.restart is now distill.stage_reset") == 1
