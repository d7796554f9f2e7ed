"""From rows to a distilled student with tiny models: results, reruns, interrupted runs, stale results, saved models."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.older import without_checksums
from helpers.project import Command, color_rows, make_project, run_to_the_end, write_rows
from tutelage.analysis.run_results import read_results
from tutelage.cli.endings import Stopped
from tutelage.stages import evaluate, prepare
from tutelage.teacher import hidden_store
from tutelage.training import callbacks, distillation, probe, run_models, trainer
from tutelage.utils.files import read_jsonl, write_jsonl


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project run once to the end, for tests that read its results or add others to them."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = make_project(folder, distill={"keep_stages": True})
    run_to_the_end(recipe)
    return folder


@pytest.fixture
def copy_of_stages(finished, tmp_path):
    """Copies finished stages into a new run folder, which the recipe of `finished` then continues with."""

    def copy(*stages: str) -> list[str]:
        """The words of a command after `tutelage run`."""
        for stage in stages:
            shutil.copytree(finished / "run" / stage, tmp_path / "run" / stage)
        return [str(finished / "recipe.yaml"), f"output_dir={tmp_path / 'run'}"]

    return copy


CELL = "run/distill/scd-aw/seed-0"
TEACHER_AND_ANCHOR = ("prepare", "teach", "anchor", "cache")


def test_a_log_says_when_work_begins_and_not_that_it_would(command, tmp_path):
    recipe = make_project(tmp_path)
    assert command("prepare", recipe) == 0 and command.err.count("prepare: begins") == 1
    assert command("prepare", recipe) == 0 and "begins" not in command.err


def test_scores_have_every_model_metric_and_interval(finished):
    scores = json.loads((finished / "run/evaluate/scores.json").read_text())
    assert (scores["task"], scores["metric"], scores["split"], scores["rows"]) == (
        "classification",
        "accuracy",
        "test",
        6,
    )
    assert list(scores["models"]) == ["teacher", "student", "anchor", "scd-aw/seed-0"]
    for table in scores["models"].values():
        for name in ("accuracy", "macro_f1", "invalid_rate", "nll"):
            assert table[name]["low"] <= table[name]["value"] <= table[name]["high"]


def test_predictions_and_losses_have_their_documented_keys(finished):
    predictions = list(read_jsonl(finished / "run/evaluate/predictions.jsonl"))
    assert len(predictions) == 4 * 6
    assert set(predictions[0]) == {"id", "model", "split", "gold", "raw", "prediction", "score", "nll", "confidence"}
    losses = list(read_jsonl(finished / "run/anchor/sample_loss.jsonl"))
    assert set(losses[0]) == {"id", "split", "nll", "tokens"}
    assert {line["split"] for line in losses} == {"train", "validation"}
    caches = sorted((finished / "run/cache").glob("checkpoint-*/sample_loss.jsonl"))
    assert len(caches) == 2 and len(list(read_jsonl(caches[0]))) == 12


def test_stages_and_weights_agree_with_each_other_and_with_the_losses_on_file(finished):
    stages = json.loads((finished / CELL / "stages.json").read_text())
    assert [record["stage"] for record in stages] == [1, 2]
    for record in stages:
        totals = {c["checkpoint"]: c["total"] for c in record["candidates"]}
        assert record["chosen"] == min(totals, key=totals.get)
        assert {"reason", "seconds"} <= set(record)
    anchor_nll = {line["id"]: line["nll"] for line in read_jsonl(finished / "run/anchor/sample_loss.jsonl")}
    for line in read_jsonl(finished / CELL / "weights.jsonl"):
        folder = finished / "run/cache" / line["checkpoint"]
        teacher_nll = {row["id"]: row["nll"] for row in read_jsonl(folder / "sample_loss.jsonl")}[line["id"]]
        anchor_fraction = anchor_nll[line["id"]] / (anchor_nll[line["id"]] + teacher_nll)
        assert line["weight"] == pytest.approx(anchor_fraction, rel=1e-6)
    held_out = list(read_jsonl(finished / CELL / "validation_rows.jsonl"))
    assert [(line["stage"], line["id"]) for line in held_out] == [
        (n, f"validation-{row}") for n in (1, 2) for row in range(6)
    ]
    for record in stages:
        for key in ("nll", "score"):
            values = [line[key] for line in held_out if line["stage"] == record["stage"]]
            assert record["validation"][key] == pytest.approx(sum(values) / 6)
    assert (finished / CELL / "stage-1-start/config.json").exists()
    assert (finished / CELL / "stage-2-start/config.json").exists()


def test_the_student_is_a_plain_transformers_model(finished):
    folder = finished / CELL
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = [
        line for line in read_jsonl(finished / "run/evaluate/predictions.jsonl") if line["model"] == "scd-aw/seed-0"
    ]
    rows = {row["id"]: row for row in read_jsonl(finished / "run/prepare/rows.jsonl")}
    for line in lines:
        ids = tokenizer(rows[line["id"]]["prompt"], return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=6)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == line["raw"]
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_the_report_exists_and_loads_nothing_from_outside(finished):
    page = (finished / "run/report/index.html").read_text(encoding="utf-8")
    assert "scd-aw/seed-0" in page and 'src="http' not in page and "<link" not in page


def test_another_language_is_a_second_page(finished, command):
    first, second = (finished / "run/report" / name for name in ("index.html", "index.ko.html"))
    before = first.read_bytes()
    assert command("report", finished / "recipe.yaml", "--lang", "ko") == 0, command.err
    assert f"report: {first}" in command.err and f"report: {second}" in command.err
    assert first.read_bytes() == before and '<html lang="ko">' in second.read_text(encoding="utf-8")
    assert command("report", finished / "recipe.yaml", "--lang", "en") == 0 and first.read_bytes() == before
    assert command("report", finished / "recipe.yaml", "--force") == 0, command.err
    assert not second.exists()  # nothing stale stays behind


def test_a_second_run_changes_nothing(finished, command):
    student = finished / CELL / "model.safetensors"
    written = student.stat().st_mtime_ns
    assert command("run", finished / "recipe.yaml") == 0
    for name in ("prepare", "teach", "anchor", "cache", "distill/scd-aw/seed-0", "evaluate/teacher"):
        assert f"{name}: up to date" in command.err
    assert student.stat().st_mtime_ns == written
    assert "accuracy" in command.out


def test_another_method_uses_teacher_and_cache_again_and_scores_only_itself(finished, command):
    assert command("run", finished / "recipe.yaml", "distill.methods=[scd-aw, td, sft]") == 0
    assert "cache: up to date" in command.err and "evaluate/teacher: up to date" in command.err
    scores = json.loads((finished / "run/evaluate/scores.json").read_text())
    assert list(scores["models"])[-3:] == ["scd-aw/seed-0", "td/seed-0", "sft/seed-0"]


def test_a_changed_recipe_is_refused_with_what_changed(finished, command):
    assert command("run", finished / "recipe.yaml", "distill.kd_ratio=0.9") == 2
    assert "distill.kd_ratio: 0.5 -> 0.9" in command.err and "--force" in command.err and "output_dir=" in command.err
    assert (finished / CELL / "model.safetensors").exists()


def test_the_run_folder_of_another_recipe_is_refused(finished, command):
    assert command("run", finished / "recipe.yaml", "data.max_train_rows=5") == 2
    assert "data.max_train_rows: null -> 5" in command.err


def test_a_stage_never_builds_on_a_stale_one(finished, command):
    assert command("distill", finished / "recipe.yaml", "data.max_train_rows=5") == 2
    assert "prepare holds a result of other inputs" in command.err and "data.max_train_rows: null -> 5" in command.err
    (finished / "data/train.jsonl").touch()  # the same content is no change
    (finished / "data/task.json").write_text('{"labels": ["red", "green", "blue", "black"]}')
    assert command("distill", finished / "recipe.yaml") == 2 and "data files" in command.err
    (finished / "data/task.json").unlink()
    assert command("distill", finished / "recipe.yaml") == 0


def test_a_launcher_that_does_not_say_who_is_who_is_refused(finished, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("distill", finished / "recipe.yaml") == 2
    assert "started 2 processes" in command.err and "MASTER_ADDR, MASTER_PORT is not set" in command.err


def test_a_launcher_that_starts_fewer_processes_than_asked_for_is_named(finished, command, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --cpu --num_processes 2` leaves it
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert command("prepare", finished / "recipe.yaml") == 0
    assert "accelerate starts one process on a CPU" in command.err


@pytest.mark.parametrize(
    ("name", "words"),
    [("FSDP", "FSDP in its first version"), ("DEEPSPEED", "asks for DeepSpeed, which is not supported")],
)
def test_a_launcher_that_divides_models_in_other_ways_is_refused(finished, command, monkeypatch, name, words):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert command("distill", finished / "recipe.yaml") == 2
    assert words in command.err and "--fsdp_version 2" in command.err


def test_predict_answers_new_rows_like_the_evaluation(finished, command, monkeypatch):
    test = finished / "data/test.jsonl"
    assert command("predict", finished / CELL, "--input", test) == 0
    answers = [json.loads(line) for line in command.out.splitlines()]
    expected = {
        line["id"]: line
        for line in read_jsonl(finished / "run/evaluate/predictions.jsonl")
        if line["model"] == "scd-aw/seed-0"
    }
    assert [answer["id"] for answer in answers] == [f"test-{n}" for n in range(6)]
    for answer in answers:
        assert (answer["raw"], answer["prediction"]) == (
            expected[answer["id"]]["raw"],
            expected[answer["id"]]["prediction"],
        )
        assert answer["confidence"] == pytest.approx(expected[answer["id"]]["confidence"], rel=1e-4)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a new thing"}\n'))
    assert command("predict", finished / CELL, "--input", "-") == 0
    assert set(json.loads(command.out)) == {"id", "prediction", "raw", "confidence"}


def test_a_run_scored_before_confidences_stays_as_it_is_and_can_be_scored_again(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("run", recipe) == 0
    student = tmp_path / CELL / "model.safetensors"
    written = student.stat().st_mtime_ns
    paths = sorted((without_checksums(tmp_path / "run") / "evaluate").glob("**/predictions.jsonl"))
    written_text = {path: path.read_text() for path in paths}
    for path in paths:
        old = [{key: value for key, value in line.items() if key != "confidence"} for line in read_jsonl(path)]
        write_jsonl(path, old)
    assert command("evaluate", recipe) == 0 and command.err.count("up to date") == 5
    assert {line["confidence"] for line in read_jsonl(tmp_path / "run/evaluate/predictions.jsonl")} == {None}
    assert command("diagnose", tmp_path / "run") == 0
    assert "`tutelage evaluate RECIPE --force`" in " ".join(command.out.split())
    assert command("evaluate", recipe, "--force") == 0
    assert {path: path.read_text() for path in paths} == written_text and student.stat().st_mtime_ns == written
    assert command("diagnose", tmp_path / "run") == 0 and "--force" not in command.out
    summary = json.loads((tmp_path / "run/diagnose/summary.json").read_text())
    assert all(entry["from"] == "confidence" for entry in summary["calibration"].values())
    by_stage = summary["training"]["students"]["scd-aw/seed-0"]["rows_by_stage"]["stages"]
    assert [entry["stage"] for entry in by_stage] == [1, 2]


@pytest.mark.parametrize("killed_in", ["teach", "anchor", "cache", "distill", "evaluate"])
def test_a_killed_run_continues_to_the_same_student(
    finished, tmp_path, copy_of_stages, command, monkeypatch, killed_in
):
    if killed_in in ("distill", "evaluate"):
        words = copy_of_stages(*TEACHER_AND_ANCHOR)
    else:
        words = [str(make_project(tmp_path))]
    with monkeypatch.context() as patch:
        kill(patch, killed_in)
        assert command("run", *words) == 130
    assert "continues" in command.err
    assert command("run", *words) == 0
    assert_same_weights(finished / CELL, tmp_path / CELL)


def assert_same_weights(first: Path, second: Path) -> None:
    expected, actual = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (first, second))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def kill(patch: pytest.MonkeyPatch, stage: str) -> None:
    """Ctrl-C in the middle of a stage: at the n-th call of one of its functions."""
    owner, name, interrupted_call = {
        "teach": (callbacks.SaveAt, "on_save", 1),
        "anchor": (run_models, "save_student", 1),
        "cache": (hidden_store.StoreWriter, "write", 2),
        "distill": (distillation.Distillation, "_train", 2),
        "evaluate": (evaluate, "write_jsonl", 2),
    }[stage]
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == interrupted_call:
            raise Stopped(signal.SIGINT)
        return function(*args, **kwargs)

    patch.setattr(owner, name, interrupted)


def test_a_stall_is_reported_to_the_user(tmp_path, copy_of_stages, command, monkeypatch):
    """The distances are changed so that the student is far from every checkpoint and nearest to the first one."""
    compare = probe.Probe.compare

    def first_is_nearest(self, model):
        first, *later = compare(self, model)
        further = [type(first)(c.checkpoint, c.kl_best, c.kl_student + 50) for c in later]
        return [type(first)(first.checkpoint, first.kl_best, first.kl_student + 1), *further]

    monkeypatch.setattr(probe.Probe, "compare", first_is_nearest)
    assert command("run", *copy_of_stages(*TEACHER_AND_ANCHOR), "distill.methods=[scd]") == 0
    assert "stall in stage 2" in command.err and "advance=true" in command.err
    stages = json.loads((tmp_path / "run/distill/scd/seed-0/stages.json").read_text())
    assert stages[0]["stall"] is None and "advance" in stages[1]["stall"]


def test_lora_teacher_and_student_end_in_a_plain_model(tmp_path, command):
    recipe = make_project(tmp_path, teacher={"lora": {"r": 4}}, student={"lora": {"r": 4}})
    assert command("run", recipe) == 0
    assert len(list((tmp_path / "run/teach").glob("checkpoint-*/adapter_model.safetensors"))) == 2
    heads = list((tmp_path / "run/cache").glob("head-*.safetensors"))
    assert len(heads) == 1  # adapters do not change the head, so it is stored once
    model = AutoModelForCausalLM.from_pretrained(tmp_path / CELL)
    assert "lora" not in " ".join(model.state_dict())


def test_the_users_own_checkpoints_are_taken_as_they_are(finished, tmp_path, command):
    recipe = make_project(tmp_path, teach={"checkpoints": str(finished / "run/teach"), "trainer": {}})
    assert command("run", recipe) == 0
    assert_same_weights(finished / CELL, tmp_path / CELL)
    assert not list((tmp_path / "run/teach").glob("checkpoint-*"))


def test_decoding_by_labels_never_leaves_the_label_set(tmp_path, command):
    assert command("run", make_project(tmp_path, task={"decoding": "labels"})) == 0
    scores = json.loads((tmp_path / "run/evaluate/scores.json").read_text())
    assert all(table["invalid_rate"]["value"] == 0 for table in scores["models"].values())
    lengths = load_file(str(tmp_path / "run/prepare/tokens/test.index.safetensors"))["answers"].tolist()
    tokens = {f"test-{n}": length for n, length in enumerate(lengths)}
    lines = list(read_jsonl(tmp_path / "run/evaluate/predictions.jsonl"))
    right = [line for line in lines if line["score"] == 1]
    assert right and all(0 <= line["confidence"] <= 1 for line in lines)
    for line in right:  # the loss on gold gives the model's probability of it, end-of-sequence included
        assert line["confidence"] == pytest.approx(math.exp(-line["nll"] * tokens[line["id"]]), rel=1e-3)


def test_a_whole_run_in_bfloat16(tmp_path, monkeypatch, command):
    """On a processor with fast bfloat16, a recipe that does not set the precision runs in bfloat16 and reports it."""
    monkeypatch.setattr(prepare, "bf16_pays", lambda kind: (True, "this is a test"))
    recipe = make_project(tmp_path, distill={"num_stages": 1})
    words = yaml.safe_load(recipe.read_text())
    del words["trainer"]["bf16"], words["trainer"]["use_cpu"]
    recipe.write_text(yaml.safe_dump(words))
    assert command("run", recipe) == 0 and "precision: bfloat16, since this is a test" in command.err
    assert all(isinstance(line["nll"], float) for line in read_jsonl(tmp_path / "run/evaluate/predictions.jsonl"))
    assert command("prepare", recipe, "trainer.bf16=false", f"output_dir={tmp_path / 'other'}") == 0
    assert "precision:" not in command.err


def with_rate(initialise, rate):
    """The constructor of training arguments with this learning rate, whatever the recipe says."""
    return lambda self, **given: initialise(self, **given | {"learning_rate": rate})


def test_a_diverged_training_run_is_reported(tmp_path, command, monkeypatch):
    monkeypatch.setattr(trainer.Arguments, "__init__", with_rate(trainer.Arguments.__init__, 1e30))
    recipe = make_project(tmp_path)
    assert command("prepare", recipe) == 0
    assert command("teach", recipe) == 2
    assert "are NaN or infinite" in command.err and "lower learning_rate" in command.err


# --- TF-IDF with logistic regression beside the models ---


def test_the_baseline_is_scored_on_the_test_rows_and_is_no_model_of_the_run(finished, command):
    scores = json.loads((finished / "run/evaluate/scores.json").read_text())
    assert set(scores["baseline"]) == {"accuracy", "macro_f1", "invalid_rate"}  # no loss in nats per token
    answers = list(read_jsonl(finished / "run/baseline/answers.jsonl"))
    assert [line["id"] for line in answers] == [f"test-{n}" for n in range(6)]
    assert scores["baseline"]["accuracy"]["value"] == sum(line["score"] for line in answers) / 6 == 1.0
    results = read_results(finished / "run")
    assert results.predictions.keys() == set(results.models)
    slices = json.loads((finished / "run/diagnose/slices.json").read_text())
    pairs = {pair["student"] for pair in slices["pairs"]}
    assert {"anchor", "scd-aw/seed-0"} <= pairs and "tfidf" not in {*results.models, *pairs, *scores["models"]}


def test_every_model_is_tested_against_the_baseline_row_by_row(finished):
    """The baseline has all rows right: of n rows that only it has right, McNemar's test gives p = 2 / 2^n."""
    scores = json.loads((finished / "run/evaluate/scores.json").read_text())
    assert scores["against_baseline"].keys() == scores["models"].keys()
    for model, test in scores["against_baseline"].items():
        wrong = 6 - round(6 * scores["models"][model]["accuracy"]["value"])
        assert test["test"] == "mcnemar_exact" and test["value"] == pytest.approx(-wrong / 6)
        assert test["p_value"] == pytest.approx(min(1.0, 2 / 2**wrong))
        assert test["low"] <= test["value"] <= test["high"] and test["low"] < test["high"]


def test_the_printed_table_shows_the_baseline_with_a_dash_for_its_loss(finished, capsys):
    evaluate.show_scores(finished / "run")
    line, test = (line for line in capsys.readouterr().out.splitlines() if "tfidf" in line)
    assert "1.000" in line and line.rstrip(" │|").endswith("–")
    assert re.match(r"\S+/seed-\d minus tfidf: \S+ \[.*\] accuracy, p \S+ \(paired by row\)", test)


def test_a_finished_baseline_is_kept_and_a_damaged_one_is_rebuilt(tmp_path, copy_of_stages, command):
    words = copy_of_stages("prepare", "teach", "anchor", "cache", "distill", "evaluate", "baseline")
    path = tmp_path / "run/baseline/scores.json"
    sound, written = path.read_text(), (tmp_path / "run/baseline/manifest.json").read_text()
    assert command("evaluate", *words) == 0 and "baseline: up to date" in command.err
    assert (tmp_path / "run/baseline/manifest.json").read_text() == written
    path.write_text(sound.replace("1.0", "0.5"))
    assert command("evaluate", *words) == 0 and path.read_text() == sound


def test_a_task_with_free_answers_has_no_baseline(tmp_path):
    recipe = make_project(tmp_path, task={"type": "qa", "max_new_tokens": 6}, data={"template": "{question}:"})
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        rows = [{**row, "question": row["text"], "answers": [row["label"]]} for row in color_rows(split, count)]
        keys = ("id", "question", "answers")
        write_rows(tmp_path / "data" / f"{split}.jsonl", [{key: row[key] for key in keys} for row in rows])
    run_to_the_end(recipe)
    assert "baseline" not in json.loads((tmp_path / "run/evaluate/scores.json").read_text())
    assert not (tmp_path / "run/baseline").exists()
