"""Mistakes of a user: each ends with exit code 2, a message that says what, where and what to do, and no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from helpers.project import Command, color_rows, make_project, write_rows
from helpers.tiny import byte_tokenizer, save_pair, tiny_model


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def expect_refusal(
    command: Command, recipe: Path, *words: str, overrides: tuple[str, ...] = (), stage: str = "prepare"
) -> str:
    """Run a stage that must be refused; returns the message, after checking that it holds `words`."""
    assert command(stage, recipe, *overrides) == 2
    assert "Traceback" not in command.err
    for word in words:
        assert word in command.err, command.err
    return command.err


def test_all_mistakes_of_a_recipe_at_once(command, tmp_path):
    recipe = make_project(tmp_path, distill={"temprature": 2}, cache={"dtype": "int8"}, teech={"num_checkpoints": 4})
    expect_refusal(command, recipe, "temprature", "temperature", "int8", "bfloat16", "teech", "teach")


def test_a_recipe_that_is_not_there(command, tmp_path):
    expect_refusal(command, tmp_path / "recipe.yaml", "recipe.yaml")


def test_a_data_file_that_is_not_there(command, tmp_path):
    recipe = make_project(
        tmp_path, data={"dataset": None, "train": str(tmp_path / "data/trian.jsonl"), "test": "x.jsonl"}
    )
    expect_refusal(command, recipe, "trian.jsonl", "train.jsonl", "x.jsonl")


def test_an_unreadable_line_is_named(command, tmp_path):
    recipe = make_project(tmp_path)
    path = tmp_path / "data/train.jsonl"
    path.write_text(path.read_text() + '{"text": "broken\n', encoding="utf-8")
    expect_refusal(command, recipe, "train.jsonl:13")


def test_an_empty_file(command, tmp_path):
    recipe = make_project(tmp_path)
    (tmp_path / "data/test.jsonl").write_text("")
    expect_refusal(command, recipe, "test.jsonl", "empty")


def test_a_missing_column_says_which_there_are(command, tmp_path):
    recipe = make_project(tmp_path)
    write_rows(tmp_path / "data/train.jsonl", [{"sentence": "a", "color": "red"}, {"sentence": "b", "color": "green"}])
    expect_refusal(command, recipe, "sentence", "color", "columns")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": ""}, ("train.jsonl:2", "empty")),
        ({"label": ["red", "blue"]}, ("train.jsonl:2", "multi-label")),
        ({"labels": "red"}, ("train.jsonl:2", "data.columns={label: labels}")),
        ({"id": "train-0"}, ("train-0",)),
        ({"text": "test thing 0 is red"}, ("test-0",)),
    ],
)
def test_rows_that_cannot_be(command, tmp_path, change, words):
    recipe = make_project(tmp_path)
    rows = color_rows("train", 12)
    rows[1] |= change
    write_rows(tmp_path / "data/train.jsonl", rows)
    expect_refusal(command, recipe, *words)


def test_validation_rows_that_are_test_rows(command, tmp_path):
    recipe = make_project(tmp_path)
    write_rows(tmp_path / "data/validation.jsonl", [{**color_rows("test", 1)[0], "id": "v"}])
    expect_refusal(command, recipe, "validation rows that are also test rows", "test-0")


def test_two_columns_that_could_be_the_label(command, tmp_path):
    recipe = make_project(tmp_path)
    write_rows(tmp_path / "data/train.jsonl", [{"sentence": "a", "category": "red", "intent": "green"}])
    expect_refusal(command, recipe, "train.jsonl:1", "'category' and 'intent'", "data.columns={label: category}")


def test_a_label_outside_the_set(command, tmp_path):
    recipe = make_project(tmp_path, task={"labels": ["red", "green"]})
    expect_refusal(command, recipe, "blue", "task.labels")


def test_an_entity_that_is_not_in_the_text(command, tmp_path):
    recipe = make_project(tmp_path, task={"type": "ner"})
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"{split} {n} takes aspirin", "entities": [{"type": "drug", "text": "aspirin"}]} for n in range(4)
        ]
        write_rows(tmp_path / f"data/{split}.jsonl", rows)
    rows[2]["entities"][0]["text"] = "ibuprofen"
    write_rows(tmp_path / "data/train.jsonl", [{**row, "text": row["text"].replace("test", "train")} for row in rows])
    expect_refusal(command, recipe, "ibuprofen", "train.jsonl:3")


def test_tokenizers_that_differ_by_one_entry_share_no_hidden_states(command, tmp_path):
    recipe = make_project(tmp_path, cache={"form": "states"})
    path = tmp_path / "models/student/tokenizer.json"
    inner = json.loads(path.read_text())
    vocabulary = inner["model"]["vocab"]
    names = {index: token for token, index in vocabulary.items()}
    vocabulary[names[10]], vocabulary[names[11]] = 11, 10  # equal sizes, two entries swapped
    path.write_text(json.dumps(inner))
    expect_refusal(command, recipe, "tokenizers", repr(names[10]), "cache.form")


def test_a_folder_without_checkpoints(command, tmp_path):
    recipe = make_project(tmp_path, teach={"checkpoints": str(tmp_path / "data"), "trainer": {}})
    expect_refusal(command, recipe, "checkpoint-*", "teach.checkpoints")


def test_a_checkpoint_of_another_architecture(command, tmp_path):
    recipe = make_project(tmp_path, teach={"checkpoints": str(tmp_path / "mine"), "trainer": {}})
    tiny_model(0, "qwen2", hidden=32, layers=4).save_pretrained(tmp_path / "mine/checkpoint-1")
    expect_refusal(command, recipe, "another architecture", "model_type", "qwen2", "llama")


def test_adapters_whose_base_is_missing(command, tmp_path):
    recipe = make_project(tmp_path, teach={"checkpoints": str(tmp_path / "mine"), "trainer": {}})
    (tmp_path / "mine/checkpoint-1").mkdir(parents=True)
    about = {"base_model_name_or_path": "/somewhere/base", "peft_type": "LORA"}
    (tmp_path / "mine/checkpoint-1/adapter_config.json").write_text(json.dumps(about))
    expect_refusal(command, recipe, "/somewhere/base", "is not a folder here")


def test_a_model_folder_that_is_not_there(command, tmp_path):
    expect_refusal(
        command, make_project(tmp_path, teacher={"model_name_or_path": "./models/teecher"}), "teecher", "folder"
    )


def test_rows_that_are_too_long_name_the_three_ways_out(command, tmp_path):
    recipe = make_project(tmp_path, data={"max_length": 24})
    message = expect_refusal(command, recipe, "too_long=truncate_prompt", "too_long=drop", "max_length=", "train-0")
    longest = message.split("data.max_length=")[1].split()[0]
    assert command("prepare", recipe, f"data.max_length={longest}") == 0


@pytest.mark.parametrize(("way", "left"), [("drop", 0), ("truncate_prompt", 12)])
def test_ways_out_for_rows_that_are_too_long(command, tmp_path, way, left):
    recipe = make_project(tmp_path, data={"max_length": 24, "too_long": way})
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        short = {"id": f"short-{split}", "text": split[-2], "label": "red"}
        write_rows(tmp_path / f"data/{split}.jsonl", [*color_rows(split, count), short])
    assert command("prepare", recipe) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/prepare/rows.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["split"] == "train"]) == left + 1


def test_a_split_of_which_too_long_rows_leave_nothing(command, tmp_path):
    recipe = make_project(tmp_path, data={"max_length": 24, "too_long": "drop"})
    rows = [*color_rows("train", 12), {"id": "short", "text": "s", "label": "red"}]
    write_rows(tmp_path / "data/train.jsonl", rows)
    expect_refusal(command, recipe, "no validation row is left of 6", "data.max_length = 24", "[split_emptied]")
    assert not (tmp_path / "run/prepare/tokens").exists()


def test_a_sample_is_drawn_from_the_rows_that_fit(command, tmp_path):
    recipe = make_project(tmp_path, data={"max_length": 24, "too_long": "drop", "max_train_rows": 5})
    for split in ("train", "validation", "test"):
        short = [{"text": f"{split[-2]}{n}", "label": "red"} for n in range(6)]
        write_rows(tmp_path / f"data/{split}.jsonl", [*color_rows(split, 12), *short])
    assert command("prepare", recipe) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/prepare/rows.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["split"] == "train"]) == 5
    assert "training rows exceed 24 tokens and are left out" in command.err


def test_a_disk_too_small_for_the_cache(command, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    expect_refusal(command, make_project(tmp_path), "GB free", "num_checkpoints", "output_dir")


def test_training_arguments_that_transformers_refuses(command, tmp_path):
    expect_refusal(command, make_project(tmp_path, trainer={"lr_scheduler_type": "cosne"}), "cosne", "trainer")


def test_a_stage_whose_predecessor_is_missing(command, tmp_path):
    expect_refusal(command, make_project(tmp_path), "prepare", "tutelage run", stage="teach")


def test_a_run_in_progress_in_the_same_folder(command, tmp_path):
    recipe = make_project(tmp_path)
    (tmp_path / "run").mkdir()
    with FileLock(str(tmp_path / "run/.lock")):
        expect_refusal(command, recipe, "another process", "output_dir=")


def test_predict_does_not_write_over_a_file(command, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    assert command("predict", tmp_path, "--input", rows, "--output", rows) == 2
    assert "rows.jsonl already exists" in command.err
    assert rows.read_text() == '{"text": "a"}\n'


def test_predict_wants_a_distilled_student(command, tmp_path):
    _, student = save_pair(tmp_path)
    assert command("predict", student, "--input", "-") == 2
    assert "tutelage.json" in command.err


def test_shrink_keeps_first_and_last_and_never_overwrites(command, tmp_path):
    teacher, _ = save_pair(tmp_path)
    assert command("shrink", teacher, tmp_path / "small", "--layers", 3) == 0
    from transformers import AutoModelForCausalLM

    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(teacher).state_dict()
    assert json.loads((tmp_path / "small/config.json").read_text())["num_hidden_layers"] == 3
    for new, old in ((0, 0), (1, 2), (2, 3)):
        assert (
            small[f"model.layers.{new}.mlp.up_proj.weight"] == whole[f"model.layers.{old}.mlp.up_proj.weight"]
        ).all()
    assert command("shrink", teacher, tmp_path / "small", "--layers", 3) == 2 and "exists" in command.err
    assert command("shrink", teacher, tmp_path / "other", "--layers", 9) == 2 and "between 2 and 3" in command.err


def test_a_student_of_the_same_tokenizer_may_pad_its_vocabulary(command, tmp_path):
    recipe = make_project(tmp_path)
    padded = tiny_model(5, vocab_size=len(byte_tokenizer()) + 30)
    padded.save_pretrained(tmp_path / "models/student")
    assert command("prepare", recipe) == 0


def test_ctrl_c_leaves_cleanly_and_the_run_can_go_on(tmp_path, command):
    recipe = make_project(tmp_path, teach={"trainer": {"num_train_epochs": 2000}})
    script = [sys.executable, "-m", "tutelage", "run", str(recipe)]
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "run/teach/log.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "continues" in err and "Traceback" not in err
    assert command("prepare", recipe) == 0  # the lock is free, what was whole is still there
    assert "prepare: up to date" in command.err


def test_show_tells_where_each_value_comes_from(command, tmp_path):
    recipe = make_project(tmp_path)
    assert command("show", recipe, "distill.num_stages=7") == 0
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in command.out.splitlines()}
    assert lines["distill.num_stages"] == ["7", "override"]
    assert lines["distill.kd_ratio"] == ["0.5", "default"]
    assert lines["teach.num_checkpoints"][1].startswith("recipe.yaml:")
    assert yaml.safe_load(recipe.read_text())["teach"]["num_checkpoints"] == 2
