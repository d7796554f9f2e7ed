"""Headlines, cards and uploads of students that no comparison can speak for: invalid answers, or nothing learned."""

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from helpers.fake_run import Page, write
from helpers.whole_run import model
from tutelage.errors import Kind, UserError
from tutelage.report.model_card import push, write_card
from tutelage.stages.report import build_report
from tutelage.utils.bootstrap import wilson_interval
from tutelage.utils.checksums import file_record
from tutelage.utils.files import write_json, write_jsonl

STUDENT = "scd/seed-0"


def scored_run(folder: Path, rows: int = 200, invalid: float = 0.0, **right: float) -> Path:
    """A run on two equally frequent labels. right: fractions of right answers of teacher, anchor and student; invalid:
    of the student's answers that are no label."""
    row = {"prompt": "p", "answers": ["a"], "labels": None, "language": None, "subdomain": None}
    splits = [("train", 10), ("test", rows)]
    about = [{"id": f"{s}{n}", "split": s, "answer": "ab"[n % 2], **row} for s, count in splits for n in range(count)]
    write_jsonl(folder / "prepare/rows.jsonl", about)
    write(folder / "prepare/data.json", {"labels": ["a", "b"], "choice": False})
    recipe = {"name": "r", "output_dir": str(folder), "task": {"type": "classification"}, "data": {"dataset": "d"}}
    write(folder / "recipe.yaml", recipe)
    models, lines = {}, []
    for name, fraction in right.items():
        name = STUDENT if name == "student" else name
        count = round(rows * fraction)
        models[name] = {"accuracy": wilson_interval(count, rows)._asdict()}
        for n, test_row in enumerate(about[10:]):
            is_right, gold = n < count, test_row["answer"]
            said = gold if is_right else "ba"["ab".index(gold)]
            said = None if name == STUDENT and n >= rows * (1 - invalid) else said
            line = {"id": test_row["id"], "model": name, "split": "test", "gold": gold, "raw": said or "?"}
            lines.append({**line, "prediction": said, "score": float(is_right and said is not None), "nll": 1.0})
    write_jsonl(folder / "evaluate/predictions.jsonl", lines)
    write(folder / "evaluate/scores.json", {
        "task": "classification", "metric": "accuracy", "split": "test", "rows": rows, "models": models,
    })  # fmt: skip
    model(folder / "distill" / STUDENT, 6)
    write(folder / "distill" / STUDENT / "manifest.json", {"inputs": {}, "seconds": 1.0, "finished": "2026-01-01"})
    return folder


@pytest.mark.parametrize(
    ("right", "invalid", "words"),
    [
        ({"teacher": 0.5, "anchor": 0.7, "student": 0.8}, 0.0, "The teacher learned nothing"),
        ({"teacher": 0.0, "anchor": 0.0, "student": 0.0}, 0.0, "The teacher learned nothing"),
        ({"teacher": 0.8, "anchor": 0.8, "student": 0.8}, 0.0, "There was no gap to close"),
        ({"teacher": 0.8, "anchor": 0.5, "student": 0.52}, 0.0, "The student learned nothing."),
        ({"teacher": 0.6, "anchor": 0.5, "student": 0.7}, 0.3, "30 % of the student's answers are invalid."),
        ({"teacher": 0.8, "anchor": 0.6, "student": 0.75}, 0.1, "closes 75 % of the gap"),
        ({"teacher": 0.5, "student": 0.8}, 0.0, "The teacher learned nothing"),
    ],
)
def test_the_headline_says_first_what_spoils_a_comparison(tmp_path, right, invalid, words):
    page = Page(build_report(scored_run(tmp_path, invalid=invalid, **right), title="t"))
    headline = page.text.partition("Verdict")[2] or page.text
    assert words in headline
    if "nothing" in words:
        assert "given to every row, scores 0.500" in page.text and "Gap closed 7" not in page.text


def test_few_rows_are_not_called_nothing(tmp_path):
    text = Page(build_report(scored_run(tmp_path, rows=8, teacher=0.5, anchor=0.5, student=0.5), title="t")).text
    assert "learned nothing" not in text


def card_text(run: Path) -> str:
    return " ".join(ModelCard.load(write_card(run)).text.split())


def test_a_card_does_not_praise_either(tmp_path):
    text = card_text(scored_run(tmp_path / "chance", teacher=0.8, anchor=0.4, student=0.52))
    assert "**Not ready for use:** its accuracy, 0.520 " in text and "most common training answer, 0.500" in text
    assert "It closes" not in text
    text = card_text(scored_run(tmp_path / "invalid", invalid=0.4, teacher=0.8, anchor=0.4, student=0.6))
    assert "40% of its answers to 200 test rows are invalid" in text and "It closes" not in text
    text = card_text(scored_run(tmp_path / "teacher", teacher=0.5, anchor=0.4, student=0.8))
    assert "Its teacher has learned nothing" in text and "It closes" not in text and "Not ready" not in text
    text = card_text(scored_run(tmp_path / "good", teacher=0.9, anchor=0.6, student=0.8))
    assert "It closes 67 % of the gap" in text and "Not ready" not in text


class Hub:
    """Refuses to be reached."""

    def create_repo(self, *_: object, **__: object) -> str:
        raise OSError("reached")


def test_a_student_that_is_no_better_than_a_guess_is_not_pushed_unasked(tmp_path, capsys):
    run, asked = scored_run(tmp_path, teacher=0.8, anchor=0.4, student=0.52), []
    with pytest.raises(UserError) as refused:
        push(run, None, "me/small", api=Hub())
    assert refused.value.kind == Kind.STUDENT_NOT_USABLE and "--anyway" in str(refused.value)
    with pytest.raises(UserError, match="reached"):
        push(run, None, "me/small", api=Hub(), confirm=lambda doubt: asked.append(doubt) or True)
    assert "most common training answer" in asked[0] and asked[0].endswith("Upload it?")
    push(run, None, "me/small", dry_run=True)
    assert "may not be worth uploading" in capsys.readouterr().out
    # Without this file the doubt cannot be told.
    data = run / "prepare/data.json"
    write_json(run / "prepare/manifest.json", {"inputs": {}, "files": {"data.json": file_record(data)}})
    data.unlink()
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        push(run, None, "me/small", dry_run=True)
    good = scored_run(tmp_path / "good", teacher=0.9, anchor=0.6, student=0.8)
    with pytest.raises(UserError, match="reached"):
        push(good, None, "me/small", api=Hub())


@pytest.mark.parametrize(("words", "terminal", "answer", "goes"), [
    ([], False, True, False), (["--anyway"], False, False, True), ([], True, True, True), ([], True, False, False),
])  # fmt: skip
def test_the_command_asks_on_a_terminal_only(tmp_path, monkeypatch, capsys, words, terminal, answer, goes):
    from tutelage.cli import run_commands
    from tutelage.cli.main import main

    run = scored_run(tmp_path, teacher=0.8, anchor=0.4, student=0.52)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(run_commands.typer, "confirm", lambda text: answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "argv", ["tutelage", "push", str(run), "me/small", *words])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert ("reached" in capsys.readouterr().err) is goes


def test_names_of_scores(tmp_path):
    """Beside entity F1, the mean of the rows' own F1 has its own name wherever it is shown."""
    from tutelage.recipe.schema import row_metric
    from tutelage.utils.format import metric_words

    assert [metric_words(row_metric(name)) for name in ("entity_f1", "macro_f1", "accuracy", "token_f1", None)] == [
        *("mean row F1", "accuracy", "accuracy", "token F1", "score"),
    ]
    run = scored_run(tmp_path, teacher=0.9, anchor=0.6, student=0.8)
    path = run / "evaluate/scores.json"
    scores = json.loads(path.read_text())
    for number, table in enumerate(scores["models"].values()):
        table["entity_f1"] = {"value": 0.5 + number / 100, "low": 0.4, "high": 0.6}
    write(path, scores | {"task": "ner", "metric": "entity_f1"})
    assert "Paired by row, its mean row F1 is" in card_text(run)
