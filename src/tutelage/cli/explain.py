"""`tutelage explain`: everything that a run knows about one row.

`row_story` collects it from the run's files, `explain` prints it. Training rows have losses by checkpoint and weights
by stage, test rows have answers, validation rows have losses of all models, rows without gold the answer of T*.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.errors import DataError
from tutelage.records import BASE_MODELS
from tutelage.report.page import words
from tutelage.run.live_reader import dig, read_or_none
from tutelage.run.manifest import is_run
from tutelage.utils.console import out, print_table, visible
from tutelage.utils.files import read_jsonl
from tutelage.utils.format import number, percent
from tutelage.utils.integrity import check_run

ALMOST = 0.1
"""A mean weight below this, or above 1 minus this, is reported as following one side almost alone."""
MOST_TEXT = 4000
"""Characters of a prompt that are printed."""

READ = (
    *("prepare/rows.jsonl", "teach/checkpoints.json", "teach/validation/*.jsonl", "cache/*/sample_loss.jsonl"),
    *("anchor/sample_loss.jsonl", "cross_fit/sample_loss.jsonl", "evaluate/**/*.jsonl"),
    *("distill/*/*/weights.jsonl", "distill/*/*/validation_rows.jsonl"),
    *("prepare/unlabelled.jsonl", "silver/answers.jsonl"),
)
"""Patterns of the files that tell about a row."""
Line = dict[str, Any]
"""An object of a JSON-lines file of the run."""


@dataclass(frozen=True)
class RowStory:
    """What a run knows about a row."""

    row: Line
    """As in prepare/rows.jsonl."""
    best: str | None
    """Name of the best teacher checkpoint T*."""
    losses: dict[str, float]
    """By checkpoint, in the order of training, then by model: nats per answer token."""
    cross_fit: Line | None
    """Out-of-fold losses: its line of cross_fit/sample_loss.jsonl."""
    weights: dict[str, list[Line]]
    """By student: the row's lines of weights.jsonl."""
    stages: dict[str, list[Line]]
    """By student: the row's lines of validation_rows.jsonl."""
    answers: dict[str, Line]
    """By model, base models first: the row's line of predictions.jsonl."""
    silver: Line | None = None
    """Of a row without gold: its line of silver/answers.jsonl."""


class Table(NamedTuple):
    """A table to print."""

    title: str
    head: list[str]
    rows: list[list[str]]


# --- collecting ---


def row_story(run: Path, id: str) -> RowStory:
    """What a run knows about a row. Raises DataError if there is no such row, with similar ids."""
    check_run(run, READ)
    row = _row(run, id)
    return RowStory(
        row=row,
        best=dig(read_or_none(run / "teach/checkpoints.json"), "best"),
        losses=_checkpoint_losses(run, row) | _model_losses(run, row),
        cross_fit=next(_lines_of(run / "cross_fit/sample_loss.jsonl", id), None),
        weights=_by_student(run, "weights.jsonl", id),
        stages=_by_student(run, "validation_rows.jsonl", id),
        answers=_answers(run, id),
        silver=next(_lines_of(run / "silver/answers.jsonl", id), None),
    )


def _row(run: Path, id: str) -> Line:
    path, ids = run / "prepare" / "rows.jsonl", []
    if not is_run(run) or not path.is_file():
        raise DataError(
            f"{run} has no prepare/rows.jsonl: name a run folder whose rows are prepared (`tutelage ls` lists runs)"
        )
    unlabelled = run / "prepare" / "unlabelled.jsonl"
    for line in itertools.chain(read_jsonl(path), read_jsonl(unlabelled) if unlabelled.is_file() else ()):
        if line["id"] == id:
            return line
        ids.append(line["id"])
    folded = {other.casefold(): other for other in ids}
    similar = [folded[name] for name in get_close_matches(id.casefold(), folded, 5, 0.5)]
    similar = similar or [other for other in ids if id and id.casefold() in other.casefold()][:5]
    label = "similar ids" if similar else "its ids look like"
    raise DataError(f"{run} has no row {visible(id)!r}; {label}: {', '.join(map(visible, similar or ids[:3]))}")


def _lines_of(path: Path, id: str) -> Iterator[Line]:
    """Lines of a JSON-lines file that belong to a row. Other lines are not parsed: such files have one for every
    row."""
    if not path.is_file():
        return
    needles = (json.dumps(id, ensure_ascii=False), json.dumps(id))
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if any(needle in text for needle in needles):
                try:
                    line = json.loads(text)
                except ValueError:  # the last line of a file that is being written
                    continue
                if line.get("id") == id:
                    yield line


def _by_student(run: Path, file: str, id: str) -> dict[str, list[Line]]:
    """The row's lines in a file that each student has, by student; students without lines are left out."""
    by_student = {}
    for path in sorted(run.glob(f"distill/*/*/{file}")):
        if lines := list(_lines_of(path, id)):
            by_student[f"{path.parent.parent.name}/{path.parent.name}"] = lines
    return by_student


def _checkpoint_losses(run: Path, row: Line) -> dict[str, float]:
    """Losses of the row by checkpoint, in the order of training."""
    checkpoints = dig(read_or_none(run / "teach/checkpoints.json"), "checkpoints", default=[])
    names = [checkpoint["name"] for checkpoint in checkpoints]
    names = names or [path.name for path in sorted(run.glob("cache/checkpoint-*"))]
    pattern = "teach/validation/{}.jsonl" if row["split"] == "validation" else "cache/{}/sample_loss.jsonl"
    lines = {name: next(_lines_of(run / pattern.format(name), row["id"]), None) for name in names}
    return {name: line["nll"] for name, line in lines.items() if line}


def _model_losses(run: Path, row: Line) -> dict[str, float]:
    """Losses of the row by model, the teacher's checkpoints aside."""
    losses: dict[str, float] = {}
    if line := next(_lines_of(run / "anchor/sample_loss.jsonl", row["id"]), None):
        losses["anchor"] = line["nll"]
    for path in sorted(run.glob("evaluate/**/validation_loss.jsonl")) if row["split"] == "validation" else ():
        if line := next(_lines_of(path, row["id"]), None):
            losses[path.parent.relative_to(run / "evaluate").as_posix()] = line["nll"]
    return losses


def _answers(run: Path, id: str) -> dict[str, Line]:
    """Answers of every scored model, those of a comparison included, base models first."""
    answers = {line["model"]: line for line in _lines_of(run / "evaluate/predictions.jsonl", id)}
    for path in sorted(run.glob("evaluate/*/**/predictions.jsonl")):
        for line in _lines_of(path, id):
            answers.setdefault(line["model"], line)
    base = [name for name in BASE_MODELS if name in answers]
    return {name: answers[name] for name in (*base, *sorted(answers.keys() - set(base)))}


# --- printing ---


def explain(run: Path, id: str) -> None:
    """Print what a run knows about a row. Raises DataError as `row_story`."""
    story = row_story(run, id)
    row = story.row
    about = [row["split"], *(f"{key} {row[key]}" for key in ("language", "subdomain") if row.get(key))]
    out(f"row {visible(id)} of {run}: {visible(', '.join(about))}\n")
    out(f"{_prompt(row['prompt'])}\n")
    answer = f"gold: {row['answer']}" if story.silver is None else f"no gold; T* answers: {story.silver['raw']}"
    out(_prompt(answer).replace("\n", "\n    ").strip())
    if accepted := [answer for answer in row.get("answers") or [] if answer != row["answer"]]:
        out(f"also accepted: {visible('; '.join(accepted))}")
    if row.get("labels"):
        out(f"allowed: {visible(', '.join(row['labels']))}")
    out()
    for sentence in sentences(story):
        out(visible(sentence))
    for table in (*_loss_table(story), *_weight_table(story), *_stage_table(story), *_answer_table(story)):
        out(f"\n{table.title}")
        print_table("", table.head, table.rows)


def _prompt(prompt: str | list[dict[str, str]]) -> str:
    """The prompt line by line; a conversation with its roles."""
    turns = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    text = "\n".join(
        f"[{turn['role']}] {turn['content']}" if turn.get("role") else str(turn["content"]) for turn in turns
    )
    more = f"\n  ... and {len(text) - MOST_TEXT:,} more characters" if len(text) > MOST_TEXT else ""
    return "\n".join(f"  {line}" for line in text[:MOST_TEXT].split("\n")) + more


def sentences(story: RowStory) -> list[str]:
    """What happened to the row, in sentences, as far as the run's files tell."""
    losses, best = story.losses, story.best
    lines = [*_path_of_losses(losses, best), *_used(story.silver)]
    if best in losses and "anchor" in losses:
        winner = "anchor" if losses["anchor"] < losses[best] else "teacher"
        lines.append(
            f"T* has loss {number(losses[best])} and the anchor (the student fine-tuned without a teacher)"
            f" {number(losses['anchor'])}: the {winner} is better on this row."
        )
    for student, stage_lines in story.weights.items():
        if "-aw" in student and student.endswith("seed-0"):
            lines.append(f"{student}: {_followed([line['weight'] for line in stage_lines])}.")
    return [*lines, *_who_is_right(story.answers)]


def _used(silver: Line | None) -> Iterator[str]:
    """What became of a row without gold."""
    if silver is None:
        return
    sure = f"T* is {percent(silver['confidence'])} sure of its answer" if silver["confidence"] is not None else ""
    why = {
        "invalid": "the answer cannot be parsed",
        "unfinished": "the answer does not end within the tokens that it may have (task.max_new_tokens)",
        "unsure": "that is below silver.min_confidence",
        "too_long": "prompt and answer are longer than data.max_length, or than a model has positions for",
    }
    if left_out := silver.get("left_out"):
        yield f"{sure}; the row is left out: {why[left_out]}."
    else:
        yield f"{sure}; students learn this row from the teacher alone, with weight 1."


def _path_of_losses(losses: dict[str, float], best: str | None) -> Iterator[str]:
    """How the loss changes from the first checkpoint to the last."""
    checkpoints = [name for name in losses if name.startswith("checkpoint-")]
    if len(checkpoints) > 1:
        first, last, lowest = checkpoints[0], checkpoints[-1], min(checkpoints, key=losses.__getitem__)
        relation = "which is T*" if lowest == best else f"while T* is {best}"
        yield (
            f"The teacher's loss in nats per token goes from {number(losses[first])} at {first} to"
            f" {number(losses[last])} at {last}; the lowest is at {lowest}, {relation}."
        )


def _followed(weights: list[float]) -> str:
    """What the weights of a student's stages mean."""
    mean = sum(weights) / len(weights)
    text = f"on average {percent(mean)} of its loss follows the teacher"
    if mean < ALMOST:
        return f"{text}, because the anchor's loss is far below the checkpoint's; the rest follows the gold answer"
    if mean > 1 - ALMOST:
        return f"{text}, because the anchor's loss is far above the checkpoint's"
    return text


def _who_is_right(answers: dict[str, Line]) -> list[str]:
    """Whether the teacher and the distilled students answer correctly."""
    students = {name: line for name, line in answers.items() if "/" in name}
    if "teacher" not in answers or not students:
        return []
    right = sum(line["score"] >= 1 for line in students.values())
    score = answers["teacher"]["score"]
    teacher = "right" if score >= 1 else "wrong" if score <= 0 else "partly right"
    if len(students) > 1:
        return [f"The teacher is {teacher}; {right} of {len(students)} distilled students are right."]
    return [f"The teacher is {teacher}; {next(iter(students))} is {'' if right else 'not '}right."]


def _loss_table(story: RowStory) -> Iterator[Table]:
    cross_fit = story.cross_fit or {}
    out_of_fold = dict(cross_fit.get("teacher") or {})
    out_of_fold |= {"anchor": cross_fit["anchor"]} if "anchor" in cross_fit else {}
    rows = []
    for name in dict.fromkeys([*story.losses, *out_of_fold]):
        label = f"{name} (T*)" if name == story.best else name
        cells = [label, number(story.losses.get(name))]
        rows.append([*cells, number(out_of_fold.get(name))] if out_of_fold else cells)
    if rows:
        head = ["model", "loss", *(["out of fold"] if out_of_fold else [])]
        yield Table("losses on the gold answer, nats per token", head, rows)


def _weight_table(story: RowStory) -> Iterator[Table]:
    """The teacher's weight and the checkpoint in each stage. Seeds with the same weights share a line."""
    stages = sorted({line["stage"] for lines in story.weights.values() for line in lines})
    if not stages:
        return
    students_by_cells: dict[tuple[str, ...], list[str]] = {}
    for student, lines in story.weights.items():
        by_stage = {line["stage"]: line for line in lines}
        cells = (student.rpartition("/")[0], *(_weight(by_stage.get(stage)) for stage in stages))
        students_by_cells.setdefault(cells, []).append(student)
    rows = [
        [students[0] if len(students) == 1 else f"{cells[0]} ({len(students)} seeds)", *cells[1:]]
        for cells, students in students_by_cells.items()
    ]
    head = ["student", *(f"stage {stage}" for stage in stages)]
    yield Table("weight of the teacher in each stage, and the checkpoint", head, rows)


def _weight(line: Line | None) -> str:
    """0.152 of checkpoint 600."""
    return f"{line['weight']:.3f} of {line['checkpoint'].removeprefix('checkpoint-')}" if line else ""


def _stage_table(story: RowStory) -> Iterator[Table]:
    """The row's loss after each stage of each student."""
    stages = sorted({line["stage"] for lines in story.stages.values() for line in lines})
    rows = []
    for student, lines in story.stages.items():
        by_stage = {line["stage"]: line["nll"] for line in lines}
        rows.append([student, *(number(by_stage.get(stage)) for stage in stages)])
    if rows:
        yield Table("loss after each stage", ["student", *(f"stage {stage}" for stage in stages)], rows)


def _answer_table(story: RowStory) -> Iterator[Table]:
    rows = []
    for name, line in story.answers.items():
        parsed, raw = (words(line.get(key), 60) for key in ("prediction", "raw"))
        same = isinstance(line.get("prediction"), list) or parsed == raw
        numbers = [number(line.get("score"), 2), number(line.get("nll")), number(line.get("confidence"), 2)]
        rows.append([name, *numbers, parsed if same else f"{parsed}, written as: {raw}"])
    if rows:
        yield Table("answers", ["model", "score", "loss", "confidence", "answer"], rows)
