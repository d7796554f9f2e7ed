"""Rows that the student is unsure of go to the teacher: on this machine or behind a URL; the threshold is chosen on
validation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from helpers.project import Command, make_project, run_to_the_end, write_rows
from helpers.served import save_served, served
from tutelage.errors import ConfigError, ModelError
from tutelage.predict.predictor import Cascade
from tutelage.records import Example
from tutelage.serve import command as serve_command
from tutelage.serve.threshold import choose
from tutelage.tasks.classification import Classification
from tutelage.utils.files import read_jsonl

pytest.importorskip("fastapi", reason='needs FastAPI: pip install "tutelage[serve]"')
pytest.importorskip("openai", reason='needs the OpenAI client: pip install "tutelage[serve]"')
pytest.importorskip("prometheus_client", reason='needs prometheus-client: pip install "tutelage[serve]"')

ROWS = [{"id": f"row-{n}", "text": f"new thing {n} is {color}"} for n, color in enumerate(("red", "blue", "green") * 3)]


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_served(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_served(tmp_path_factory.mktemp("teacher"), 7, run="colors-large")


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def predicted(command, tmp_path):
    """What `tutelage predict` answers to the rows."""

    def predict(folder, *words) -> list[dict]:
        write_rows(tmp_path / "rows.jsonl", ROWS)
        (tmp_path / "answers.jsonl").unlink(missing_ok=True)
        files = ["--input", tmp_path / "rows.jsonl", "--output", tmp_path / "answers.jsonl"]
        assert command("predict", folder, *files, *words) == 0
        return list(read_jsonl(tmp_path / "answers.jsonl"))

    return predict


@pytest.fixture
def threshold(student, predicted) -> float:
    """Of nine rows, four are below it."""
    return median(answer["confidence"] for answer in predicted(student))


def same(found: list[dict], expected: list[dict]) -> None:
    keys = ("id", "prediction", "raw", "answered_by")
    for got, wanted in zip(found, expected, strict=True):
        assert [got[key] for key in keys] == [wanted[key] for key in keys]
        assert got["confidence"] == pytest.approx(wanted["confidence"], rel=1e-4)


def test_a_teacher_in_a_folder_answers_as_in_predict(student, teacher, threshold, predicted, capsys):
    expected = predicted(student, "--teacher", teacher, "--defer-below", threshold)
    capsys.readouterr()
    with served(student, teacher=str(teacher), defer_below=str(threshold)) as running:
        same(running.post("/v1/answer", {"rows": ROWS}).json["answers"], expected)
        assert running.metric('tutelage_rows_total{answered_by="teacher"}') == 4
        assert running.metric('tutelage_rows_total{answered_by="student"}') == 5
        assert running.metric("tutelage_deferred_rows_total") == 4
        assert running.metric("tutelage_teacher_failures_total") == 0
        assert running.metric("tutelage_defer_below") == pytest.approx(threshold)
    log = [line for line in capsys.readouterr().err.splitlines() if "answered by the teacher" in line]
    assert sorted(line.partition(":")[0] for line in log) == sorted(
        answer["id"] for answer in expected if answer["answered_by"] == "teacher"
    )
    assert not any("new thing" in line for line in log)


def test_a_plain_model_folder_reads_the_students_prompt(student, teacher, tmp_path, predicted):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in teacher.iterdir():
        if path.name != "tutelage.json":
            (plain / path.name).write_bytes(path.read_bytes())
    with served(student, teacher=str(plain), defer_below="1") as running:
        answers = running.post("/v1/answer", {"rows": ROWS}).json["answers"]
    same(answers, [{**answer, "answered_by": "teacher"} for answer in predicted(teacher)])


def test_a_teacher_of_another_run_renders_rows_by_its_own_template(student, tmp_path, predicted):
    other = save_served(tmp_path / "other", 7, template="Colour of {text}?")
    rows = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    with served(student, teacher=str(other), defer_below="1") as running:
        answers = running.post("/v1/answer", {"rows": ROWS}).json["answers"]
        without_ids = running.post("/v1/answer", {"rows": rows}).json["answers"]
    same(answers, [{**answer, "answered_by": "teacher"} for answer in predicted(other)])
    with served(student) as running:
        own = running.post("/v1/answer", {"rows": rows}).json["answers"]
    assert [answer["id"] for answer in without_ids] == [answer["id"] for answer in own]


def test_a_cascade_keeps_the_ids_of_the_student():
    def answers(row, confidence):
        return lambda rows: [{"id": row, "prediction": row, "raw": row, "confidence": confidence}] * len(rows)

    (answer,) = Cascade(answers("student", 0.1), answers("teacher", 0.2), 0.5)([({}, None)])
    assert answer == {
        "id": "student", "prediction": "teacher", "raw": "teacher", "confidence": 0.2, "answered_by": "teacher",
    }  # fmt: skip


# --- behind a URL ---


def test_a_teacher_behind_a_url_answers_as_in_predict(student, teacher, threshold, predicted):
    expected = predicted(student, "--teacher", teacher, "--defer-below", threshold)
    with (
        served(teacher) as second,
        served(student, teacher=f"{second.url}/v1", defer_below=str(threshold)) as running,
    ):
        same(running.post("/v1/answer", {"rows": ROWS}).json["answers"], expected)
        assert running.metric('tutelage_rows_total{answered_by="teacher"}') == 4
        assert second.metric('tutelage_requests_total{endpoint="/v1/chat/completions",status="200"}') == 4
        prompts = [f"{row['text']}:" for row in ROWS]
        choices = running.post("/v1/completions", {"model": "colors", "prompt": prompts}).json["choices"]
    assert [choice["answered_by"] for choice in choices] == [answer["answered_by"] for answer in expected]
    assert [choice["text"] for choice in choices] == [answer["raw"] for answer in expected]


def test_the_students_answer_stands_where_the_teacher_fails(student, teacher, predicted, capsys, monkeypatch):
    monkeypatch.setattr("tutelage.serve.teachers.TIMEOUT", 2.0)
    with served(teacher) as second:
        url = f"{second.url}/v1"
        with served(student, teacher=url, teacher_model="colors-large", defer_below="1") as running:
            assert running.post("/v1/answer", {"rows": ROWS[:1]}).json["answers"][0]["answered_by"] == "teacher"
            second.uvicorn.should_exit = True
            while second.uvicorn.started and any(server.is_serving() for server in second.uvicorn.servers):
                pass
            (answer,) = running.post("/v1/answer", {"rows": ROWS[:1]}).json["answers"]
            assert running.metric("tutelage_teacher_failures_total") == 1
    assert answer.pop("teacher_error").startswith("API")
    same([answer], [{**predicted(student)[0], "answered_by": "student"}])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"defer_below": "2"}, ConfigError, "from 0 to 1, or auto"),
        ({"defer_below": "nan"}, ConfigError, "from 0 to 1, or auto"),
        ({"defer_below": "0.5"}, ConfigError, "add --teacher RUN"),
        ({"defer_below": "auto"}, ConfigError, "type one, --defer-below"),
        ({"teacher": "ner", "defer_below": "0.5"}, ModelError, "its task is ner, and the student's classification"),
        ({"teacher_model": "m"}, ConfigError, "add --teacher http"),
        ({"teacher": "no/such/folder", "defer_below": "0.5"}, ModelError, "no/such/folder holds no teacher"),
        ({"teacher": "http://127.0.0.1:9/v1", "defer_below": "0.5"}, ModelError, "cannot be listed"),
    ],
)
def test_options_that_do_not_fit_are_refused(student, options, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usage = json.loads((save_served(tmp_path / "ner") / "tutelage.json").read_text())
    (tmp_path / "ner" / "tutelage.json").write_text(json.dumps(usage | {"task": {"type": "ner"}}))
    with pytest.raises(error) as caught, served(student, **options):
        pass
    assert words in str(caught.value)


# --- the threshold ---


def choice(own: list[float | None], theirs: list[float | None], confidences: list[float]):
    """The threshold for rows with these scores, 0 or 1; None: an answer that cannot be parsed."""
    rows = [Example(str(n), "validation", "", "right", ["right"]) for n in range(len(own))]
    answer = {1.0: "right", 0.0: "wrong", None: None}

    def answers(scores):
        return lambda rows: [
            {"id": row.id, "prediction": answer[score], "raw": "", "confidence": confidence}
            for row, score, confidence in zip(rows, scores, confidences, strict=True)
        ]

    return choose(rows, Classification(labels=["right", "wrong"]), answers(own), answers(theirs))


def test_the_threshold_passes_on_the_fewest_rows_that_reach_the_teacher():
    """Of 20 rows the student is wrong on the 5 of lowest confidence, the teacher on none: 5 rows have to go."""
    confidences = np.linspace(0.05, 1.0, 20).round(2).tolist()
    chosen = choice([0.0] * 5 + [1.0] * 15, [1.0] * 20, confidences)
    assert chosen.below == confidences[5]
    assert (chosen.rows, chosen.share, chosen.score, chosen.student, chosen.teacher) == (20, 0.25, 1.0, 0.75, 1.0)


def test_a_student_that_is_as_good_as_its_teacher_passes_nothing_on():
    """Its lowest validation confidence would send new rows of a lower one to a teacher that is worse."""
    chosen = choice([1.0] * 20, [0.0] * 5 + [1.0] * 15, np.linspace(0.19, 1.0, 20).tolist())
    assert (chosen.below, chosen.share, chosen.score, chosen.student) == (0.0, 0.0, 1.0, 1.0)
    said = serve_command._what_was_chosen(chosen)
    assert "--defer-below 0.0" in said and "the student alone is as good as its teacher" in said


def test_answers_that_cannot_be_parsed_go_first_and_count_in_the_share():
    """The student is sure of two of them; with its two least sure answers it is wrong."""
    confidences = np.linspace(0.05, 1.0, 20).round(2).tolist()
    chosen = choice([0.0] * 2 + [1.0] * 16 + [None] * 2, [1.0] * 20, confidences)
    assert (chosen.below, chosen.share, chosen.score, chosen.student) == (confidences[2], 0.2, 1.0, 0.8)
    only_these = choice([1.0] * 18 + [None] * 2, [1.0] * 20, confidences)
    assert (only_these.below, only_these.share, only_these.score) == (0.0, 0.1, 1.0)
    assert "10% of the validation rows go to the teacher: those" in serve_command._what_was_chosen(only_these)
    as_good = choice([1.0] * 18 + [None] * 2, [0.0] * 20, confidences)
    assert (as_good.below, as_good.share, as_good.score) == (0.0, 0.1, 0.9)


def test_an_answer_that_cannot_be_parsed_goes_to_the_teacher_however_sure_the_student_is(tmp_path, predicted):
    """A student of random weights writes no label; it was left with its answer, null, at a confidence above 0."""
    student, teacher = save_served(tmp_path / "s", decoding="generate"), save_served(tmp_path / "t", 7, run="large")
    own, theirs = predicted(student), predicted(teacher)
    assert {answer["prediction"] for answer in own} == {None} and all(answer["confidence"] > 0 for answer in own)
    deferred = predicted(student, "--teacher", teacher, "--defer-below", "0")
    same(deferred, [{**answer, "answered_by": "teacher"} for answer in theirs])
    with served(student, teacher=str(teacher), defer_below="0") as running:
        same(running.post("/v1/answer", {"rows": ROWS}).json["answers"], deferred)


def test_without_a_threshold_that_reaches_the_teacher_one_has_to_be_typed():
    """The student is wrong on the row that it is surest of."""
    with pytest.raises(ConfigError, match=r"student \(0\.950\) to its teacher \(1\.000\)(.|\n)*--defer-below 0\.8"):
        choice([1.0] * 19 + [0.0], [1.0] * 20, np.linspace(0.05, 1.0, 20).tolist())


def test_a_run_is_served_with_its_own_teacher_and_a_threshold_of_its_validation_rows(
    teacher, tmp_path, predicted, command, capsys, monkeypatch
):
    run_to_the_end(make_project(tmp_path, task={"decoding": "labels"}))
    seen = []
    real = serve_command._deferral
    monkeypatch.setattr(serve_command, "_deferral", lambda *words: seen.append(real(*words)) or seen[-1])
    with served(tmp_path / "run", defer_below="auto") as running:
        assert running.name == "recipe"
        answers = running.post("/v1/answer", {"rows": ROWS}).json["answers"]
    same(answers, predicted(tmp_path / "run", "--defer-below", seen[0].below))
    with served(tmp_path / "run", model="teacher") as running:
        assert running.name == "recipe-teacher"
        answers = running.post("/v1/answer", {"rows": ROWS}).json["answers"]
    same(answers, [{**a, "answered_by": "teacher"} for a in predicted(tmp_path / "run", "--model", "teacher")])
    assert command("serve", tmp_path / "run", "--teacher", teacher, "--port", 0) == 2
    assert "renders rows by its own recipe" in command.err
    assert command("serve", tmp_path / "run", "--model", "anchor", "--defer-below", "0.5") == 2
    assert "leave --model out" in command.err


def test_without_the_extra_the_error_names_what_to_install(student, command, monkeypatch):
    def without(name, *more, found=importlib.util.find_spec):
        return None if name == "prometheus_client" else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert command("serve", student) == 2
    assert "prometheus_client" in command.err and "pip install 'tutelage[serve]'" in command.err


def test_a_taken_port_is_named(student, command):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command("serve", student, "--port", taken.getsockname()[1]) == 2
    assert "choose another port" in command.err
