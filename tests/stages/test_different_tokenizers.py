"""A whole run of a teacher and a student with different tokenizers, with tiny random models."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.project import LABELS, Command, make_project, run_to_the_end, write_rows
from helpers.tokenizers_made import save_cross_pair, unigram_tokenizer
from tutelage.data.token_store import TokenStore
from tutelage.doctor import data_checks
from tutelage.recipe.load import load_recipe
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json, read_jsonl

METHODS = ["scd-aw", "td", "seqkd", "td-aw-cf", "taid"]


def cross_project(folder: Path, **changes) -> Path:
    teacher, student = save_cross_pair(folder / "pair")
    models = {"teacher": {"model_name_or_path": str(teacher)}, "student": {"model_name_or_path": str(student)}}
    return make_project(folder, **models, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, rows without gold included."""
    folder = tmp_path_factory.mktemp("different")
    new = [{"text": f"a new thing {n} is {LABELS[n % 3]}"} for n in range(6)]
    write_rows(folder / "more.jsonl", new)
    recipe = cross_project(
        folder,
        task={"decoding": "labels"},
        data={"unlabelled": str(folder / "more.jsonl")},
        distill={"methods": METHODS, "save_steps": None},
    )
    run_to_the_end(recipe)
    return folder / "run"


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def test_each_model_reads_its_own_tokens_of_the_same_rows(finished):
    stores = [TokenStore(finished / f"prepare/tokens/{name}.arrow", "train") for name in ("train", "teacher/train")]
    student, teacher = ([row.answer for row in store] for store in stores)
    assert [row.id for row in stores[0]] == [row.id for row in stores[1]]
    assert student != teacher
    tokenizer = unigram_tokenizer(adds_space=True)
    assert tokenizer.decode(teacher[0][:-1]).strip() in LABELS and teacher[0][-1] == tokenizer.eos_token_id


def test_the_cache_holds_bytes_and_losses_per_token_of_the_student(finished):
    stores = [read_json(path) for path in sorted(finished.glob("cache/*/store.json"))]
    assert [store["kind"] for store in stores] == ["bytes", "bytes"]
    assert not list(finished.glob("cache/head-*"))
    models = RunModels(RunFolder(load_recipe(finished / "recipe.yaml").recipe))
    tokens = [len(row.answer) for row in models.encoded("train")]
    for path in finished.glob("cache/*/sample_loss.jsonl"):
        assert [line["tokens"] for line in read_jsonl(path)] == tokens
    name = models.run.teacher_checkpoints["best"]
    model = models.load(models.run.recipe.teacher, models.run.best_teacher)
    measured = models.taught.evaluator.losses(model, models.taught.encoded("train"))
    stored = [line["nll"] for line in read_jsonl(finished / "cache" / name / "sample_loss.jsonl")]
    assert stored == pytest.approx(measured, rel=1e-4)


def test_weights_compare_nats_of_the_same_text(finished):
    anchor = {line["id"]: line["nll"] for line in read_jsonl(finished / "anchor/sample_loss.jsonl")}
    for line in read_jsonl(finished / "distill/scd-aw/seed-0/weights.jsonl"):
        assert line["weight"] == pytest.approx(anchor[line["id"]] / (anchor[line["id"]] + line["teacher_nll"]))


def test_every_method_ends_with_a_student_and_scores(finished):
    scores = read_json(finished / "evaluate/scores.json")["models"]
    assert set(scores) == {"teacher", "student", "anchor", *(f"{name}/seed-0" for name in METHODS)}
    assert all(np.isfinite(table["nll"]["value"]) for table in scores.values())
    log = list(read_jsonl(finished / "distill/td/seed-0/log.jsonl"))
    assert all(line["kd"] > 0 for line in log if "kd" in line)
    silver = read_json(finished / "silver/silver.json")
    assert silver["rows"] == 6 and silver["kept"] > 0


def test_a_rerun_finds_everything_up_to_date(finished, command):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("distill/*/seed-0/manifest.json")}
    assert command("run", finished / "recipe.yaml") == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("distill/*/seed-0/manifest.json")}


def test_states_are_refused_with_the_key_to_change(tmp_path, command):
    recipe = cross_project(tmp_path, cache={"form": "states"})
    assert command("prepare", recipe) != 0
    assert "cache.form" in command.err


def test_a_tokenizer_that_changes_text_is_refused_before_anything_is_trained(tmp_path, command):
    recipe = cross_project(tmp_path)
    path = tmp_path / "pair/teacher/tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"]["normalizers"].append({"type": "Lowercase"})
    path.write_text(json.dumps(state))
    for split in ("train", "validation", "test"):
        rows = [{**row, "label": row["label"].title()} for row in read_jsonl(tmp_path / f"data/{split}.jsonl")]
        write_rows(tmp_path / f"data/{split}.jsonl", rows)
    assert command("prepare", recipe) != 0
    assert "teacher" in command.err and "lower case" in command.err
    assert not (tmp_path / "run/teach").exists()


def test_a_sample_is_drawn_from_the_rows_that_fit_both_models(tmp_path, command):
    """The sample was filled with rows that fit the student alone, which were left out afterwards."""
    sampled = {"max_length": 60, "too_long": "drop", "max_train_rows": 6}
    recipe = cross_project(tmp_path, data=sampled)
    long = "感情はとても良いです。感情は良くないです。"  # one token of the student, one of the teacher for each byte
    rows = [{"text": f"{n} {long * (n % 2)}", "label": LABELS[n % 3]} for n in range(18)]
    write_rows(tmp_path / "data/train.jsonl", rows)
    assert command("prepare", recipe) == 0
    kept = [row for row in read_jsonl(tmp_path / "run/prepare/rows.jsonl") if row["split"] == "train"]
    assert len(kept) == 6 and long not in str(kept)
    assert "training rows exceed 60 tokens and are left out" in command.err
    assert len(data_checks.read(load_recipe(recipe).recipe)[0].examples["train"]) == 6


def test_bytes_serve_models_with_one_tokenizer_as_well(tmp_path, command):
    """The same losses and weights as with states; what is learned differs."""
    weights = {}
    for form in ("states", "bytes"):
        recipe = make_project(tmp_path, distill={"methods": ["td-aw"]}, cache={"form": form})
        assert command("run", recipe, f"output_dir={tmp_path / form}") == 0
        assert {read_json(path)["kind"] for path in (tmp_path / form).glob("cache/*/store.json")} == {form}
        lines = list(read_jsonl(tmp_path / form / "distill/td-aw/seed-0/weights.jsonl"))
        weights[form] = [(line["id"], line["weight"]) for line in lines if line["stage"] == 1]
    assert weights["states"] == weights["bytes"]
