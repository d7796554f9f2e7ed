"""A made-up comparison on disk: run folders with random answers and losses, and the lines of results.jsonl that fit
them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

LABELS = ("red", "green", "blue")


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_model(
    run: Path, model: str, rows: list[dict], ease: np.ndarray, skill: float, rng: np.random.Generator
) -> None:
    """Random predictions and losses of one model that has about `skill` of the rows right."""
    predictions, losses = [], []
    for row, easy in zip(rows, ease, strict=True):
        right = 0.6 * easy + 0.4 * rng.random() < skill
        nll = float(rng.gamma(1.0, 0.2 if right else 1.0))
        wrong = [None, *(label for label in LABELS if label != row["answer"])]
        said = row["answer"] if right else wrong[rng.integers(3)]
        if row["split"] == "test":
            line = {"id": row["id"], "model": model, "split": "test", "gold": row["answer"], "raw": said or "?"}
            predictions.append({**line, "prediction": said, "score": float(right), "nll": nll})
        else:
            losses.append({"id": row["id"], "split": "validation", "nll": nll, "tokens": 2})
    rng.shuffle(predictions)  # rows are joined by id, not by place
    write_lines(run / "evaluate" / model / "predictions.jsonl", predictions)
    write_lines(run / "evaluate" / model / "validation_loss.jsonl", losses)


def write_run(
    run: Path,
    name: str,
    metric: str,
    skills: Mapping[str, float],
    rng: np.random.Generator,
    rows: int = 240,
    held_out: int = 60,
) -> None:
    """A run folder. skills: of right answers, by model (teacher, anchor, METHOD/seed-K)."""
    splits = ["test"] * rows + ["validation"] * held_out
    made = [
        {"id": f"{split}-{n}", "split": split, "prompt": f"thing {n}", "answer": LABELS[int(3 * rng.random() ** 2)]}
        for n, split in enumerate(splits)
    ]
    write_lines(run / "prepare" / "rows.jsonl", [{**row, "answers": [row["answer"]]} for row in made])
    about = {"labels": list(LABELS), "choice": False}
    (run / "prepare" / "data.json").write_text(json.dumps(about), encoding="utf-8")
    recipe = {
        "name": name, "output_dir": str(run), "task": {"type": "classification", "metric": metric},
        "data": {"dataset": "somewhere", "template": "{text}:"},
        "teacher": {"model_name_or_path": "big"}, "student": {"model_name_or_path": "small"},
    }  # fmt: skip
    (run / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    ease = rng.random(len(made))
    for model, skill in skills.items():
        write_model(run, model, made, ease, skill, rng)


def cell_lines(run: Path, name: str, student: str, attempt: int = 1, trajectory: int = 0, **row: object) -> list[dict]:
    """Lines of a cell as `compare` keeps them: accuracy and loss on test, score and loss on validation; or one with an
    error."""
    method, seed = student.split("/seed-")
    cell = {"recipe": name, "run": str(run), "method": method, "seed": int(seed), "teacher_seed": trajectory}
    kept = row or {"status": "done", "seconds": 10.0 * (int(seed) + 1)}
    fixed = {**cell, "inputs": "abc", "attempt": attempt, **kept}
    if row:
        return [fixed]
    predictions = read_lines(run / "evaluate" / student / "predictions.jsonl")
    held_out = read_lines(run / "evaluate" / student / "validation_loss.jsonl")
    nll = sum(line["nll"] for line in held_out) / len(held_out)
    return [
        {**fixed, "split": "validation", "metric": "score", "value": round(np.exp(-nll), 2)},
        {**fixed, "split": "validation", "metric": "nll", "value": nll},
        {
            **fixed,
            "split": "test",
            "metric": "accuracy",
            "value": float(np.mean([line["score"] for line in predictions])),
        },
        {**fixed, "split": "test", "metric": "nll", "value": float(np.mean([line["nll"] for line in predictions]))},
    ]
