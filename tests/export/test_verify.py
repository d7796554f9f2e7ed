"""`tutelage export --verify`: both runtimes answer the run's test rows, and a drop beyond its interval is an error."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.project import Command, make_project, run_to_the_end
from tutelage.errors import Kind
from tutelage.export import formats, measure, verify
from tutelage.report.card_facts import find_student
from tutelage.report.model_card import write_card

STUDENT = "distill/scd-aw/seed-0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, whose student chooses among the labels."""
    folder = tmp_path_factory.mktemp("verify")
    run_to_the_end(make_project(folder, task={"decoding": "labels"}, trainer={"bf16": False}))
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


class Runtime:
    """In place of llama.cpp and, unless `truly`, of transformers: they answer what they are told."""

    truly = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.student: list[str] = ["red"] * 6
        """What the student answers, by row."""
        self.answers: list[str] = []
        """What its export answers; empty: as the student."""
        self.kept: tuple[int, int] | None = None
        """Matrices that could not be quantised, of all."""
        self.jobs: list[measure.Job] = []
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: True)
        monkeypatch.setitem(formats._WRITERS, "gguf", self.write)
        monkeypatch.setattr(formats, "measure", self.measure)
        monkeypatch.setattr(verify, "measure", self.measure)

    def write(self, found: Any, predictor: Any, draft: Path, precision: str | None) -> tuple[str, list[int], Any]:
        (draft / "model.gguf").write_bytes(b"weights")
        return precision or "f32", [predictor.evaluator.encoder.tokenizer.eos_token_id], self.kept

    def measure(self, job: measure.Job) -> measure.Measured:
        self.jobs.append(job)
        if job["runtime"] == "transformers" and self.truly:
            measured = measure.measure(job)
            self.student = [reply["text"] for reply in measured["replies"]]
            return measured
        answers = self.student if job["runtime"] == "transformers" or not self.answers else self.answers
        replies = [] if job["only_tokens"] else [{"text": text} for text in answers]
        tokens = [ask["ids"] for ask in job["asks"]]
        seconds = [0.001 * (n + 1) for n in range(len(replies))]
        facts = {"seconds_together": 0.6, "rows_together": 6, "loading": 0.5, "peak_memory": 10**8, "versions": {}}
        return {"replies": replies, "tokens": tokens, "seconds": seconds, **facts}


@pytest.fixture
def runtime(monkeypatch) -> Runtime:
    return Runtime(monkeypatch)


def labels_of(run: Path) -> list[str]:
    lines = (run / "evaluate" / "scd-aw" / "seed-0" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["gold"] for line in lines]


def test_both_answer_the_same_prompts_and_the_result_is_written(run, command, runtime, tmp_path):
    runtime.truly = True
    assert command("export", run / STUDENT, "--to", "gguf", "--output", tmp_path / "out", "--verify", run) == 0
    original, exported = runtime.jobs[-2:]
    assert original["asks"] == exported["asks"] and len(exported["asks"]) == 6
    assert exported["asks"][0]["text"].endswith(":") and exported["asks"][0]["labels"]
    record = json.loads((tmp_path / "out" / "verified.json").read_text())
    assert (record["rows"], record["same_answers"], record["same_prompts"], record["dropped"]) == (6, 6, 6, False)
    assert record["model"] == "scd-aw/seed-0" and record["same_as_recorded"] == 6
    assert record["original"]["scores"] == record["exported"]["scores"]
    recorded = json.loads((run / "evaluate" / "scd-aw" / "seed-0" / "scores.json").read_text())
    assert record["original"]["scores"]["accuracy"]["value"] == recorded["accuracy"]["value"]
    assert record["exported"]["bytes"] == len(b"weights")
    assert record["original"]["bytes"] == (run / STUDENT / "model.safetensors").stat().st_size
    assert record["exported"]["row_ms"] == {"median": 3.5, "p90": 5.5} and record["exported"]["row_ms_together"] == 100
    assert record["original"]["peak_memory"] > 10**8
    assert record == json.loads((run / "export" / "scd-aw" / "seed-0" / "gguf-f32.json").read_text())
    assert "gguf f32, llama.cpp" in command.out and "same answer on 6 of 6 rows" in command.err


def test_an_export_that_is_there_is_verified(run, command, runtime, tmp_path):
    out = ["export", run / STUDENT, "--to", "gguf", "--output", tmp_path / "out"]
    assert command(*out) == 0 and not (tmp_path / "out" / "verified.json").exists()
    assert command(*out, "--quantize", "q8_0", "--verify", run) == 2 and f"[{Kind.FILE_EXISTS}]" in command.err
    (tmp_path / "out" / "model.gguf").write_bytes(b"not written again")
    for precision in ([], ["--quantize", "f32"]):
        assert command(*out, *precision, "--verify", run) == 0
        assert (tmp_path / "out" / "model.gguf").read_bytes() == b"not written again"
    record = json.loads((tmp_path / "out" / "verified.json").read_text())
    assert record["precision"] == "f32" and record["model"] == "scd-aw/seed-0"
    other = json.loads((tmp_path / "out" / "export.json").read_text()) | {"student": "another"}
    (tmp_path / "out" / "export.json").write_text(json.dumps(other))
    assert command(*out, "--verify", run) == 2 and f"[{Kind.FILE_EXISTS}]" in command.err


def test_a_copied_student_is_not_named_after_the_folder_around_it(run, command, runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run / STUDENT, tmp_path / "private" / "copy")
    for student, name in ((copy, "student"), (run / STUDENT, "scd-aw-seed-0")):
        assert command("export", student, "--to", "gguf") == 0
        assert (tmp_path / f"recipe-{name}-gguf" / "export.json").is_file()


def test_matrices_that_were_not_quantised_are_told(run, command, runtime, tmp_path):
    runtime.kept = (2, 16)
    assert command("export", run / STUDENT, "--to", "gguf", "--quantize", "q8_0", "--output", tmp_path / "out") == 0
    assert "2 of 16 matrices kept in f16" in command.err


def test_a_drop_is_an_error_unless_it_is_accepted(run, command, runtime, tmp_path):
    other = {"red": "green", "green": "blue", "blue": "red"}
    runtime.student = labels_of(run)
    runtime.answers = [other[label] for label in runtime.student]
    asked = ["export", run / STUDENT, "--to", "gguf", "--quantize", "q4_0", "--verify", run, "--output"]
    assert command(*asked, tmp_path / "out") == 2
    assert f"[{Kind.EXPORT_SCORE_DROPPED}]" in command.err and "--accept-drop" in command.err
    assert "accuracy 0.000 instead of 1.000 on 6 test rows" in command.err
    assert json.loads((tmp_path / "out" / "verified.json").read_text())["dropped"] is True
    assert command(*asked, tmp_path / "again", "--accept-drop") == 0


def test_one_other_answer_is_no_drop(run, command, runtime, tmp_path):
    runtime.student = labels_of(run)
    wrong = next(label for label in ("red", "green") if label != runtime.student[0])
    runtime.answers = [wrong, *runtime.student[1:]]
    assert command("export", run / STUDENT, "--to", "gguf", "--output", tmp_path / "out", "--verify", run) == 0
    record = json.loads((tmp_path / "out" / "verified.json").read_text())
    assert record["same_answers"] == 5 and record["difference"]["value"] == pytest.approx(-1 / 6)
    assert record["difference"]["low"] < -1 / 6 < 0 <= record["difference"]["high"]


def test_the_card_shows_exports_of_this_student_only(run, command, runtime, tmp_path):
    assert "In other runtimes" not in write_card(run).read_text()
    command("export", run, "--to", "gguf", "--quantize", "q8_0", "--output", tmp_path / "out", "--verify", run)
    name = find_student(run, None).name
    text = write_card(run).read_text()
    assert (
        "## In other runtimes" in text and "| gguf q8_0 | llama.cpp |" in text and "| 6 | 7 B | 3.5 | 100 MB |" in text
    )
    path = run / "export" / name / "gguf-q8_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "student": "another"}))
    assert "In other runtimes" not in write_card(run).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "gguf", "--accept-drop"], "--accept-drop is about the score that --verify RUN measures"),
        (["--to", "gguf", "--quantize", "int3"], "--quantize int3 is none of gguf's"),
        (["--to", "lm-eval", "--quantize", "q8_0"], "--to lm-eval writes no model"),
        (["--to", "gguf", "--verify", "."], "has no prepared test rows"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, command, runtime, tmp_path, words, message):
    assert command("export", run / STUDENT, "--output", tmp_path / "out", *words) == 2
    assert message in command.err and not (tmp_path / "out").exists()


def test_a_run_with_other_labels_is_refused(run, command, runtime, tmp_path):
    path = run / "prepare" / "data.json"
    other = shutil.copytree(run / "prepare", tmp_path / "other" / "prepare").parent
    (other / "prepare" / "manifest.json").unlink()
    shutil.copy(run / "recipe.yaml", other)
    (other / "prepare" / "data.json").write_text(json.dumps({**json.loads(path.read_text()), "labels": ["x"]}))
    assert command("export", run / STUDENT, "--to", "gguf", "--output", tmp_path / "out", "--verify", other) == 2
    assert "other labels than the student" in command.err and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, command, runtime, tmp_path):
    (tmp_path / "out").mkdir()
    for format in ("gguf", "lm-eval"):
        assert command("export", run / STUDENT, "--to", format, "--output", tmp_path / "out") == 2
        assert f"[{Kind.FILE_EXISTS}]" in command.err


def test_the_task_for_the_harness_comes_with_the_command_that_runs_it(run, command, tmp_path):
    assert command("export", run, "--to", "lm-eval", "--output", tmp_path / "task") == 0
    name = find_student(run, None).name
    assert (
        f"pretrained={run / 'distill' / name} --tasks tutelage_recipe --include_path {tmp_path / 'task'}" in command.out
    )
    results = json.loads((tmp_path / "task" / "results.json").read_text())
    recorded = json.loads((run / "evaluate" / name / "scores.json").read_text())
    assert results["results"]["tutelage_recipe"]["accuracy,none"] == recorded["accuracy"]["value"]
    assert results["model_name"] == f"recipe/{name}" and str(tmp_path) not in json.dumps(results)
    shutil.rmtree(run / "evaluate" / name)
    assert command("export", run / STUDENT, "--to", "lm-eval", "--output", tmp_path / "unscored") == 0
    assert not (tmp_path / "unscored" / "results.json").exists()
    alone = shutil.copytree(run / STUDENT, tmp_path / "alone" / "student")
    assert command("export", alone, "--to", "lm-eval", "--output", tmp_path / "other") == 2
    assert "lies in no run folder" in command.err


def test_a_runtime_that_fails_says_why(tmp_path):
    setting = {"folder": str(tmp_path), "threads": 1, "longest": 1, "context": 9, "ends": [0], "prefix": ""}
    job = {"runtime": "transformers", "setting": setting, "asks": [], "only_tokens": False}
    with pytest.raises(
        measure.ModelError, match=r"transformers cannot answer with .*: .*cannot load a causal language model"
    ):
        measure.measure(job)
