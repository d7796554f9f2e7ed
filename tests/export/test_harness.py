"""`tutelage export --to lm-eval`: lm-evaluation-harness gives a student the score that the library gives it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from helpers.small_student import COLOR_ROWS, COLOR_TASK, small_student
from tutelage.errors import DataError
from tutelage.export.harness import Recorded, write_harness_task
from tutelage.predict.predictor import Predictor
from tutelage.records import Example

CHOICES = [
    Example(f"c-{n}", "test", f"Which holds {n}?\nA. x\nB. y\nC. z\nAnswer:", letter, [letter], ["A", "B", "C"])
    for n, letter in enumerate("ABCBACABCACB")
]
SPANS = [
    Example(f"s-{n}", "test", f"Text {n}: {who} lives in {place}.\nWhere?", place, [place, f"the {place}"], None, "en")
    for n, (who, place) in enumerate([("Ada", "London"), ("Bo", "New York"), ("Cy", "Low Hill"), ("Di", "London")] * 3)
]
ENTITIES = [
    Example(f"e-{n}", "test", f"{n} {who} in {place}", f"person: {who}\nplace: {place}", [""], None, "en")
    for n, (who, place) in enumerate([("Ada", "London"), ("Charles", "New York"), ("Ada", "New York")] * 4)
]
NONE = [Example("e-none", "test", "nothing at all", "none", ["none"], None, "en")]
CASES = {
    "classification": (COLOR_ROWS, COLOR_TASK, 6),
    "classification, labels": (COLOR_ROWS, {**COLOR_TASK, "decoding": "labels"}, 1),
    "choices": (CHOICES, {"type": "qa", "labels": ["A", "B", "C"]}, 6),
    "choices, labels": (CHOICES, {"type": "qa", "labels": ["A", "B", "C"], "decoding": "labels"}, 2),
    "spans": (SPANS, {"type": "qa"}, 8),
    "entities": (ENTITIES + NONE, {"type": "ner", "labels": ["person", "place"]}, 10),
}


def loaded(folder: Path) -> ModuleType:
    """The task's utils.py."""
    spec = importlib.util.spec_from_file_location(f"task_{abs(hash(folder))}", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_the_harness_gives_the_same_score_to_the_digit(case, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows, task, passes = CASES[case]
    found = small_student(tmp_path / "student", rows, task, passes=passes)
    rows = [
        replace(rows[0], answer=rows[1].answer, answers=rows[1].answers),
        *rows[1:],
    ]  # one that was taught otherwise
    evaluator = Predictor(found, batch_size=4).evaluator
    eval_set = evaluator.eval_set(rows, [evaluator.encoder.row(row) for row in rows])
    predictions = evaluator.predict("student", found.load(), eval_set)
    expected = evaluator.summary(predictions, rows, resamples=1)
    manifest = {"finished": "2026-11-30T12:00:00+00:00", "answering": 1.5, "versions": {"transformers": "5.0"}}
    name = write_harness_task(found, rows, tmp_path / "task", Recorded("sft/seed-0", expected, manifest))
    model = HFLM(pretrained=str(found.folder), device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(tmp_path / "task"), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    measured = {key.partition(",")[0]: value for key, value in results["results"][name].items() if ",none" in key}
    wanted = {key: score["value"] for key, score in expected.items() if "/" not in key and key != "nll"}
    assert {key: measured[key] for key in wanted} == wanted
    assert 0 < wanted[evaluator.task.metric] < 1, "a score that a harness without answers would not give"
    written = json.loads((tmp_path / "task" / "results.json").read_text())
    assert_as_the_harness_writes(written, json.loads(json.dumps(results, default=str)), name)


def assert_as_the_harness_writes(written: dict, harness: dict, name: str) -> None:
    """results.json has the keys and values of the harness, and its own printer reads it."""
    from lm_eval.utils import make_table

    same = ("results", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    assert {key: written[key] for key in same} == {key: harness[key] for key in same}
    about_the_machine = {"model_source", "model_name", "model_name_sanitized", "total_evaluation_time_seconds"}
    assert set(written) - about_the_machine <= set(harness), "what the command line adds aside"
    functions = ("custom_dataset", "process_results", "metric_list", "metadata")
    ours, theirs = written["configs"][name], harness["configs"][name]
    assert {key: ours[key] for key in ours if key not in functions} == {
        key: theirs[key] for key in ours if key not in functions
    }
    assert [line["metric"] for line in ours["metric_list"]] == [line["metric"] for line in theirs["metric_list"]]
    assert make_table(written) == make_table(harness)
    assert written["date"] == 1796040000 and written["model_name_sanitized"] == "small__sft__seed-0"


def test_the_task_scores_given_answers_as_the_library_does(tmp_path):
    found = small_student(tmp_path / "student", ENTITIES, CASES["entities"][1], passes=0)
    write_harness_task(found, ENTITIES, tmp_path / "task")
    task = loaded(tmp_path / "task")
    docs = list(task.load()["test"])
    answers = ["person: Ada\nplace: Paris", *(json.loads(doc["example"])["answer"] for doc in docs[1:])]
    read = [task.read_text(doc, [f" {answer} "]) for doc, answer in zip(docs, answers, strict=True)]
    assert set(read[0]) == {"entity_f1", "precision", "recall", "unparsable_rate"}
    # 12 rows of two entities, one of them wrong
    assert task.precision([row["precision"] for row in read]) == 23 / 24


def test_a_choice_is_the_mean_over_tokens_with_the_end_of_sequence(tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, {**COLOR_TASK, "decoding": "labels"}, passes=0)
    write_harness_task(found, COLOR_ROWS[:3], tmp_path / "task")
    task, config = loaded(tmp_path / "task"), (tmp_path / "task" / "tutelage_small.yaml").read_text()
    (doc, *_) = task.load()["test"]
    assert doc["continuations"] == [f"{label}<|end|>" for label in doc["labels"]]
    lengths = [len(found.tokenizer()(f" {text}")["input_ids"]) for text in doc["continuations"]]
    assert doc["tokens"] == lengths
    # The second has the lowest sum and the highest mean.
    totals = [-1.0 * lengths[0], -0.9 * lengths[1] - 0.0, -1.1 * lengths[2]]
    assert task.read_choice(doc, [(total, False) for total in totals])["accuracy"][1] == "green"
    assert "target_delimiter: ' '" in config


def test_prompts_that_the_harness_would_read_otherwise_are_refused(tmp_path):
    task = {**COLOR_TASK, "decoding": "labels"}
    rows = [Example("a", "test", "Thing:\n", "red", ["red"])]
    found = small_student(tmp_path / "student", rows, task, passes=0)
    with pytest.raises(DataError, match="row a ends with white space"):
        write_harness_task(found, rows, tmp_path / "task")
    cut = {"template": "{text}", "max_length": 16, "too_long": "truncate_prompt"}
    rows = [Example("b", "test", "one two three " * 20, "red", ["red"])]
    found = small_student(tmp_path / "other", rows, task, data=cut, passes=0)
    with pytest.raises(DataError, match="row b was cut at its start"):
        write_harness_task(found, rows, tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_the_folder_can_be_moved(tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0)
    write_harness_task(found, COLOR_ROWS, tmp_path / "task")
    shutil.move(tmp_path / "task", tmp_path / "elsewhere")
    assert len(loaded(tmp_path / "elsewhere").load()["test"]) == len(COLOR_ROWS)
    assert str(tmp_path) not in "".join(
        path.read_text() for path in (tmp_path / "elsewhere").iterdir() if path.is_file()
    )
