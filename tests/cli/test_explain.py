"""What is shown about one row, from the files of a run, and that its text is inert."""

import json
from pathlib import Path

import pytest

from helpers.fake_run import CHECKPOINTS, INJECTION, write
from helpers.whole_run import whole_run
from tutelage.cli.explain import RowStory, explain, row_story, sentences
from tutelage.errors import DataError
from tutelage.utils.files import write_jsonl

TRAIN, VALIDATION = "t7", "v1"
PROMPT = "headache [bold]now[/bold]\x1b[2J\u202e\nDepartment:"


def explained_run(folder: Path) -> Path:
    """A run whose row t7 has losses that fall from checkpoint to checkpoint."""
    run = whole_run(folder)
    rows = [json.loads(line) for line in (run / "prepare/rows.jsonl").read_text().splitlines()]
    about = {
        "answer": "fever",
        "answers": ["fever", "high fever"],
        "labels": ["fever", "cough"],
        "language": "en",
        "subdomain": "x",
    }
    rows += [{"id": TRAIN, "split": "train", "prompt": PROMPT, **about}]
    rows += [
        {"id": f"v{n}", "split": "validation", "prompt": [{"role": "user", "content": "why?"}], **about}
        for n in range(3)
    ]
    write_jsonl(run / "prepare/rows.jsonl", rows)
    for index, name in enumerate(CHECKPOINTS):
        lines = [{"id": id, "split": "train", "nll": 0.8 / 2**index, "tokens": 2} for id in ("t77", TRAIN)]
        write_jsonl(run / "cache" / name / "sample_loss.jsonl", lines)
        line = {"id": VALIDATION, "split": "validation", "nll": 2.0 + index, "tokens": 2}
        write_jsonl(run / f"teach/validation/{name}.jsonl", [{**line, "id": "v0", "nll": 9.0}, line])
    write_jsonl(run / "anchor/sample_loss.jsonl", [{"id": TRAIN, "split": "train", "nll": 0.05, "tokens": 2}])
    write_jsonl(
        run / "evaluate/td/seed-0/validation_loss.jsonl",
        [{"id": VALIDATION, "split": "validation", "nll": 0.5, "tokens": 2}],
    )
    teacher = {name: 0.5 for name in CHECKPOINTS}
    write_jsonl(run / "cross_fit/sample_loss.jsonl", [{"id": TRAIN, "fold": 1, "anchor": 0.7, "teacher": teacher}])
    return run


def test_a_training_row_has_losses_and_weights(tmp_path):
    story = row_story(explained_run(tmp_path), TRAIN)
    assert story.losses == {**dict(zip(CHECKPOINTS, (0.8, 0.4, 0.2, 0.1), strict=True)), "anchor": 0.05}
    assert story.cross_fit["anchor"] == 0.7 and story.best == "checkpoint-360"
    lines = story.weights["scd-aw/seed-0"]
    followed = ["checkpoint-120", "checkpoint-120", "checkpoint-240", "checkpoint-360"]
    assert [(line["stage"], line["checkpoint"]) for line in lines] == list(enumerate(followed, start=1))
    assert {line["id"] for line in lines} == {TRAIN} and story.answers == {}


def test_a_test_row_has_the_answers_of_every_model(tmp_path):
    run = explained_run(tmp_path)
    write_jsonl(
        run / "evaluate/scd/seed-3/predictions.jsonl",
        [{"id": "row-0001", "model": "scd/seed-3", "score": 1.0, "raw": "x"}],
    )
    answers = row_story(run, "row-0001").answers
    assert list(answers) == ["teacher", "student", "anchor", "scd-aw/seed-0", "scd/seed-3", "td/seed-0"]
    assert all(line["id"] == "row-0001" for line in answers.values())


def test_a_validation_row_has_the_losses_of_checkpoints_and_students(tmp_path):
    losses = row_story(explained_run(tmp_path), VALIDATION).losses
    assert losses == {**dict(zip(CHECKPOINTS, (2.0, 3.0, 4.0, 5.0), strict=True)), "td/seed-0": 0.5}


def test_a_validation_row_has_its_loss_after_each_stage(tmp_path, capsys):
    run = explained_run(tmp_path)
    lines = [
        {"id": id, "stage": stage, "nll": 1.5 / stage, "score": 0.0} for stage in (1, 2) for id in ("v0", VALIDATION)
    ]
    write_jsonl(run / "distill/scd/seed-0/validation_rows.jsonl", lines)
    explain(run, VALIDATION)
    assert "scd/seed-0\t1.500\t0.750" in capsys.readouterr().out


def test_the_story_in_words(tmp_path):
    story = row_story(explained_run(tmp_path), TRAIN)
    for student in story.weights:
        for line in story.weights[student]:
            line["weight"] = 0.02
    text = " ".join(sentences(story))
    assert "from 0.800 at checkpoint-120 to 0.100 at checkpoint-480" in text
    assert "T* has loss 0.200 and the anchor" in text and "0.050: the anchor is better on this row" in text
    assert (
        "scd-aw/seed-0: on average 2 % of its loss follows the teacher, because the anchor's loss is far below" in text
    )
    assert "td/seed-0" not in text  # constant weights tell nothing of the row


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ((0.0, 1.0, 1.0), "The teacher is wrong; 2 of 2 distilled students are right."),
        ((1.0, 0.0, 1.0), "The teacher is right; 1 of 2 distilled students are right."),
        ((0.5, 0.0), "The teacher is partly right; a/seed-0 is not right."),
    ],
)
def test_who_is_right_is_said(scores, says):
    answers = dict(zip(("teacher", "a/seed-0", "b/seed-0"), ({"score": score} for score in scores), strict=False))
    story = RowStory(row={}, best=None, losses={}, cross_fit=None, weights={}, stages={}, answers=answers)
    assert sentences(story) == [says]


def test_what_is_printed_is_inert_and_whole(tmp_path, capsys):
    explain(explained_run(tmp_path), TRAIN)
    out = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & set(out)
    for part in (
        "headache [bold]now[/bold]␛[2J⟨U+202E⟩\n  Department:",
        "gold: fever",
        "also accepted: high fever",
        "checkpoint-360 (T*)",
    ):
        assert part in out
    assert "0.500 of 360" in out  # td: half of the loss follows T*
    explain(tmp_path, INJECTION)
    assert INJECTION in capsys.readouterr().out  # a row whose id is markup


def test_an_unknown_id_is_refused_with_the_nearest(tmp_path):
    run = explained_run(tmp_path)
    with pytest.raises(DataError, match=r"has no row 'Row-0001'; similar ids: .*row-0001"):
        row_story(run, "Row-0001")
    with pytest.raises(DataError, match="its ids look like: "):
        row_story(run, "%")
    with pytest.raises(DataError, match="name a run folder"):
        row_story(tmp_path / "nowhere", "a")
    write(tmp_path / "empty/prepare/started.json", {})
    with pytest.raises(DataError, match=r"no prepare/rows.jsonl"):
        row_story(tmp_path / "empty", "a")


def test_a_file_that_is_being_written_is_read_as_far_as_it_goes(tmp_path):
    run = explained_run(tmp_path)
    with (run / "distill/td/seed-0/weights.jsonl").open("a") as file:
        file.write('{"id": "t7", "stage": 5, "wei')
    assert len(row_story(run, TRAIN).weights["td/seed-0"]) == 4
