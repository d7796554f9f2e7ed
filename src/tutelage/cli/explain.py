"""`tutelage explain`: one row's story. What it asks, what each checkpoint made of it, how much of it followed the
teacher in each stage, and what every model answers.

`row_story` gathers it from the files of a run; `explain` prints it. Training rows have losses and weights, test rows
answers, and validation rows the losses of all models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.records import BASE_MODELS
from tutelage.report.page import words
from tutelage.run.live_reader import dig, is_run, read_or_none
from tutelage.utils.console import print_table, visible
from tutelage.utils.files import read_jsonl
from tutelage.utils.format import number

ALMOST = 0.1
"""A weight below this, or above 1 minus this, is said to follow almost one side alone."""
MOST_TEXT = 4000
"""Characters of a prompt that are printed."""


def row_story(run: Path, id: str) -> dict[str, Any]:
    """What a run knows of a row: JSON-able.

    `row` (as in prepare/rows.jsonl), `best` (name of T*), `losses` (checkpoint or model: nats an answer token),
    `cross_fit` (the same from models that were not trained on the row; with `fold`), `weights` (student: its lines of
    weights.jsonl), `stages` (student: its lines of validation_rows.jsonl), `answers` (model: its line of
    predictions.jsonl). Raises DataError where there is no such row, with the ids that are nearest.
    """
    row = _row(run, id)
    checkpoints, models = _losses(run, row)
    return {
        "row": row,
        "best": dig(read_or_none(run / "teach/checkpoints.json"), "best"),
        "losses": checkpoints | models,
        "cross_fit": next(_lines_of(run / "cross_fit/sample_loss.jsonl", id), None),
        "weights": _by_student(run, "weights.jsonl", id),
        "stages": _by_student(run, "validation_rows.jsonl", id),
        "answers": _answers(run, id),
    }


def _row(run: Path, id: str) -> dict[str, Any]:
    path, ids = run / "prepare" / "rows.jsonl", []
    if not is_run(run) or not path.is_file():
        raise DataError(
            f"{run} has no prepare/rows.jsonl: name a run folder whose rows are prepared (`tutelage ls` lists runs)"
        )
    for line in read_jsonl(path):
        if line["id"] == id:
            return line
        ids.append(line["id"])
    folded = {other.casefold(): other for other in ids}
    near = [folded[name] for name in get_close_matches(id.casefold(), folded, 5, 0.5)]
    near = near or [other for other in ids if id and id.casefold() in other.casefold()][:5]
    told = "near it" if near else "its ids are like"
    raise DataError(f"no row of {run} has the id {visible(id)!r}; {told}: {', '.join(map(visible, near or ids[:3]))}")


def _lines_of(path: Path, id: str) -> Iterator[dict[str, Any]]:
    """Lines of a JSON-lines file that are of a row. Others are passed over unread: such files have a line for every
    row."""
    if not path.is_file():
        return
    needles = (json.dumps(id, ensure_ascii=False), json.dumps(id))
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if any(needle in line for needle in needles):
                try:
                    found = json.loads(line)
                except ValueError:  # the last line of a file that is being written
                    continue
                if found.get("id") == id:
                    yield found


def _sorted(run: Path, pattern: str) -> list[Path]:
    return sorted(run.glob(pattern))


def _by_student(run: Path, file: str, id: str) -> dict[str, list[dict[str, Any]]]:
    """Lines of the row in a file that each student has, of the students that have some."""
    paths = {f"{path.parent.parent.name}/{path.parent.name}": path for path in _sorted(run, f"distill/*/*/{file}")}
    return {student: lines for student, path in paths.items() if (lines := [*_lines_of(path, id)])}


def _losses(run: Path, row: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Losses of the row by checkpoint, in the order of training, and by the other models."""
    id, split = row["id"], row["split"]
    taught = dig(read_or_none(run / "teach/checkpoints.json"), "checkpoints", default=[])
    names = [c["name"] for c in taught] or [path.name for path in _sorted(run, "cache/checkpoint-*")]
    if split == "validation":
        checkpoints = _on_validation(run, id, names)
    else:
        seen = {name: next(_lines_of(run / "cache" / name / "sample_loss.jsonl", id), {}).get("nll") for name in names}
        checkpoints = {name: loss for name, loss in seen.items() if loss is not None}
    models: dict[str, float] = {}
    if anchor := next(_lines_of(run / "anchor/sample_loss.jsonl", id), None):
        models["anchor"] = anchor["nll"]
    for path in _sorted(run, "evaluate/**/validation_loss.jsonl") if split == "validation" else ():
        if line := next(_lines_of(path, id), None):
            models[path.parent.relative_to(run / "evaluate").as_posix()] = line["nll"]
    return checkpoints, models


def _on_validation(run: Path, id: str, names: list[str]) -> dict[str, float]:
    """Mean losses of the checkpoints on a validation row, out of their losses on the answer tokens of all of them."""
    from safetensors.numpy import load_file

    index, found = run / "prepare/tokens/validation.index.safetensors", {}
    ids = [line["id"] for line in read_jsonl(run / "prepare/rows.jsonl") if line["split"] == "validation"]
    lengths = load_file(index)["answers"] if index.is_file() else []
    if len(lengths) != len(ids):
        return found
    place = ids.index(id)
    start = int(lengths[:place].sum())
    for name in names:
        path = run / f"teach/validation/{name}.safetensors"
        tokens = load_file(path)["tokens"] if path.is_file() else []
        if len(tokens) == int(lengths.sum()):
            found[name] = float(tokens[start : start + int(lengths[place])].mean())
    return found


def _answers(run: Path, id: str) -> dict[str, dict[str, Any]]:
    """Answers of every model that was scored, those of a comparison included: base models first."""
    found = {line["model"]: line for line in _lines_of(run / "evaluate/predictions.jsonl", id)}
    for path in _sorted(run, "evaluate/*/**/predictions.jsonl"):
        for line in _lines_of(path, id):
            found.setdefault(line["model"], line)
    base = [name for name in BASE_MODELS if name in found]
    return {name: found[name] for name in (*base, *sorted(found.keys() - set(base)))}


# --- printed ---


def explain(run: Path, id: str) -> None:
    """Print the story of a row. Raises DataError as `row_story`."""
    story = row_story(run, id)
    row = story["row"]
    about = [row["split"], *(f"{key} {row[key]}" for key in ("language", "subdomain") if row.get(key))]
    print(f"row {visible(id)} of {visible(run)}: {visible(', '.join(about))}\n")
    print(f"{_prompt(row['prompt'])}\n")
    accepted = [answer for answer in row.get("answers") or [] if answer != row["answer"]]
    print(_prompt(f"gold: {row['answer']}").replace("\n", "\n    ").strip())
    if accepted:
        print(f"also accepted: {visible('; '.join(accepted))}")
    if row.get("labels"):
        print(f"allowed: {visible(', '.join(row['labels']))}")
    print()
    for sentence in sentences(story):
        print(visible(sentence))
    for title, head, lines in (*_loss_table(story), *_weight_table(story), *_stage_table(story), *_answer_table(story)):
        print(f"\n{title}")
        print_table("", head, lines)


def _prompt(prompt: str | list[dict[str, str]]) -> str:
    """The prompt as it is read, line by line; of a conversation with who speaks."""
    turns = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    text = "\n".join(
        f"[{turn['role']}] {turn['content']}" if turn.get("role") else str(turn["content"]) for turn in turns
    )
    more = f"\n  ... and {len(text) - MOST_TEXT:,} characters more" if len(text) > MOST_TEXT else ""
    return "\n".join(f"  {line}" for line in visible(text[:MOST_TEXT], lines=True).split("\n")) + more


def sentences(story: dict[str, Any]) -> list[str]:
    """What happened to the row, in words, as far as the run shows it."""
    found, losses, best = [], story["losses"], story["best"]
    path = [name for name in losses if name.startswith("checkpoint-")]
    if len(path) > 1:
        least = min(path, key=lambda name: losses[name])
        found.append(
            f"The teacher's loss on it goes from {number(losses[path[0]])} at {path[0]} to {number(losses[path[-1]])} at {path[-1]}"
            f" nats a token; least at {least}{', which is T*' if least == best else f' (T* is {best})'}."
        )
    if best in losses and "anchor" in losses:
        ahead = "plain fine-tuning of the student" if losses["anchor"] < losses[best] else "T*"
        found.append(
            f"T* is at {number(losses[best])}, the plainly fine-tuned student at {number(losses['anchor'])}: {ahead} is ahead."
        )
    for student, lines in story["weights"].items():
        if "-aw" in student and student.endswith("seed-0"):
            found.append(f"{student}: {_followed([line['weight'] for line in lines])}.")
    return [*found, *_verdict(story["answers"])]


def _followed(weights: list[float]) -> str:
    mean = sum(weights) / len(weights)
    share = f"on average {mean:.0%} of its loss follows the teacher".replace("%", " %")
    if mean < ALMOST:
        return f"{share}: almost all of it follows the gold answer, because the anchor's loss is far below the checkpoint's"
    if mean > 1 - ALMOST:
        return f"{share}: the anchor's loss is far above the checkpoint's"
    return share


def _verdict(answers: dict[str, dict[str, Any]]) -> list[str]:
    """Who of teacher, plain fine-tuning and distilled students is right."""
    ours = {name: line for name, line in answers.items() if "/" in name}
    if "teacher" not in answers or not ours:
        return []
    right = sum(line["score"] >= 1 for line in ours.values())
    teacher = (
        "right" if answers["teacher"]["score"] >= 1 else "wrong" if answers["teacher"]["score"] <= 0 else "partly right"
    )
    of = (
        f"{right} of {len(ours)} distilled students are"
        if len(ours) > 1
        else f"{next(iter(ours))} is{'' if right else ' not'}"
    )
    return [f"The teacher is {teacher}; {of} right."]


Table = tuple[str, list[str], list[list[str]]]


def _loss_table(story: dict[str, Any]) -> Iterator[Table]:
    fitted = story["cross_fit"] or {}
    out = dict(fitted.get("teacher") or {}) | ({"anchor": fitted["anchor"]} if "anchor" in fitted else {})
    names = list(dict.fromkeys([*story["losses"], *out]))
    if not names:
        return
    head, lines = ["model", "loss on gold"], []
    for name in names:
        label = f"{name} (T*)" if name == story["best"] else name
        lines.append([label, number(story["losses"].get(name)), *([number(out.get(name))] if out else [])])
    yield "losses, nats an answer token", [*head, *(["not trained on it"] if out else [])], lines


def _weight_table(story: dict[str, Any]) -> Iterator[Table]:
    """A column for each stage: how much of the row's loss follows which checkpoint. Seeds with the same weights share a
    line."""
    stages = sorted({line["stage"] for lines in story["weights"].values() for line in lines})
    if not stages:
        return
    alike: dict[tuple[str, ...], list[str]] = {}
    for student, lines in story["weights"].items():
        by_stage = {line["stage"]: line for line in lines}
        cells = (student.rpartition("/")[0], *(_weight(by_stage.get(stage)) for stage in stages))
        alike.setdefault(cells, []).append(student)
    rows = [
        [names[0] if len(names) == 1 else f"{cells[0]} ({len(names)} seeds)", *cells[1:]]
        for cells, names in alike.items()
    ]
    yield (
        "weight of the teacher in each stage, and the checkpoint",
        ["student", *(f"stage {stage}" for stage in stages)],
        rows,
    )


def _weight(line: dict[str, Any] | None) -> str:
    """0.152 of checkpoint 600."""
    return f"{line['weight']:.3f} of {line['checkpoint'].removeprefix('checkpoint-')}" if line else ""


def _stage_table(story: dict[str, Any]) -> Iterator[Table]:
    """What the row cost each student after each stage."""
    stages = sorted({line["stage"] for lines in story["stages"].values() for line in lines})
    rows = []
    for student, lines in story["stages"].items():
        by_stage = {line["stage"]: line["nll"] for line in lines}
        rows.append([student, *(number(by_stage.get(stage)) for stage in stages)])
    if rows:
        yield "loss after each stage", ["student", *(f"stage {stage}" for stage in stages)], rows


def _answer_table(story: dict[str, Any]) -> Iterator[Table]:
    if not story["answers"]:
        return
    rows = []
    for name, line in story["answers"].items():
        read, raw = (words(line.get(key), 60) for key in ("prediction", "raw"))
        plain = isinstance(line.get("prediction"), list) or read == raw
        numbers = [number(line.get("score"), 2), number(line.get("nll")), number(line.get("confidence"), 2)]
        rows.append([name, *numbers, read if plain else f"{read}, wrote: {raw}"])
    yield "answers", ["model", "score", "loss", "confidence", "answer"], rows
