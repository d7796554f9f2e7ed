"""What training did to rows, read from a run folder: losses that weights were made of, weights, losses on validation
rows by stage.

`diagnose` writes it as `training` of summary.json. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.slices import by_value
from tutelage.method.risk_split import split_risk
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, read_jsonl

CHANGED = 0.1
"""Nats a token by which a row's loss must change to count: its answer's tokens a tenth more or less likely. Passes in
bfloat16, or beside other rows, differ by a hundredth and less."""
NAMED = 20
"""Most rows whose ids are given."""


def training(folder: Path) -> dict[str, Any]:
    """The anchor against each checkpoint on the training rows, and of each student its stages; JSON-able, see
    docs/artifacts.md."""
    about = {row["id"]: row for row in read_jsonl(folder / "prepare" / "rows.jsonl") if row["split"] == "train"}
    anchor = _losses(folder / "anchor" / "sample_loss.jsonl")
    checkpoints = {}
    for path in sorted(folder.glob("cache/*/sample_loss.jsonl")):
        teacher = _losses(path)
        ids = [id for id in teacher if id in anchor and id in about]
        if ids:
            checkpoints[path.parent.name] = asdict(split_risk([anchor[id] for id in ids], [teacher[id] for id in ids]))
    students = {}
    for path in sorted(folder.glob("distill/*/*/stages.json")):
        name = f"{path.parent.parent.name}/{path.parent.name}"
        students[name] = {"stages": [_stage(record) for record in read_json(path)]}
        manifest = path.parent / MANIFEST
        students[name]["kept_stage"] = read_json(manifest).get("kept_stage") if manifest.is_file() else None
        students[name] |= _weights(path.parent / "weights.jsonl", about, students[name]["stages"])
        held_out = path.parent / "validation_rows.jsonl"
        lines = read_jsonl(held_out) if held_out.is_file() else ()
        students[name]["rows_by_stage"] = rows_by_stage(lines, students[name]["kept_stage"])
    return {"checkpoints": checkpoints, "students": students}


def _losses(path: Path) -> dict[str, float]:
    lines = read_jsonl(path) if path.is_file() else ()
    return {line["id"]: line["nll"] for line in lines if line["split"] == "train"}


def _stage(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ("stage", "chosen", "validation")}


def _weights(path: Path, about: Mapping[str, Mapping[str, Any]], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds to each stage the split of the losses that its weights were made of; returns mean weights by slice of the
    training rows.

    Nothing for constant weights: their file says only what the other files do.
    """
    lines = read_jsonl(path) if path.is_file() else iter(())
    first = next(lines, None)
    if first is None or first["anchor_nll"] is None:
        return {}
    by_stage: dict[int, list[dict[str, Any]]] = {}
    for line in chain([first], lines):
        by_stage.setdefault(line["stage"], []).append(line)
    for stage in stages:
        mine = by_stage.get(stage["stage"], [])
        if mine:
            stage["train"] = asdict(
                split_risk([line["anchor_nll"] for line in mine], [line["teacher_nll"] for line in mine])
            )
            weights = np.array([line["weight"] for line in mine])
            low, middle, high = np.quantile(weights, [0.05, 0.5, 0.95]).tolist()
            stage["weight"] = {"mean": float(weights.mean()), "p05": low, "median": middle, "p95": high}
    ids = [line["id"] for line in next(iter(by_stage.values()))]
    keys = {key: [(about.get(id) or {}).get(key) for id in ids] for key in ("subdomain", "language", "answer")}
    slices = [
        one
        for key, values in keys.items()
        for one in by_value("label" if key == "answer" else key, values)
        if _repeats(values)
    ]
    tables = {number: np.array([line["weight"] for line in mine]) for number, mine in by_stage.items()}
    return {
        "weights": [
            {
                "key": one.key, "value": one.value, "rows": len(one.places),
                "by_stage": {str(number): float(table[one.places].mean()) for number, table in tables.items()},
            }
            for one in slices
        ]
    }  # fmt: skip


def _repeats(values: Sequence[str | None]) -> bool:
    """Whether values are kinds that rows share, as labels are, not texts of their own."""
    return len(set(values)) <= max(2, len(values) // 5)


def rows_by_stage(lines: Iterable[Mapping[str, Any]], kept: int | None) -> dict[str, Any] | None:
    """What each stage did to the same validation rows; None without lines.

    lines: of validation_rows.jsonl. kept: the stage whose student was kept; None: the last. Rows without a finite loss
    in every stage are left out. Returns `rows`, `threshold`, `stages` (`stage`, mean `nll` and `score`, and how many
    rows got `better` or
    `worse` than after the stage before, by more than the threshold) and `forgotten`: rows on which the kept student is
    worse than some stage before it had been, by more than the threshold (`stage`, `count`, up to 20 `ids`, the furthest
    first).
    """
    by_stage: dict[int, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_stage.setdefault(line["stage"], {})[line["id"]] = line
    numbers = sorted(by_stage)
    ids = [id for id in by_stage[numbers[0]] if all(_finite(by_stage[n].get(id)) for n in numbers)] if numbers else []
    if not ids:
        return None
    nll = np.array([[by_stage[n][id]["nll"] for id in ids] for n in numbers])
    scores = [[by_stage[n][id]["score"] for id in ids] for n in numbers]
    stages = []
    for place, number in enumerate(numbers):
        change = nll[place] - nll[place - 1] if place else None
        stages.append({
            "stage": number,
            "nll": float(nll[place].mean()),
            "score": None if None in scores[place] else float(np.mean(scores[place])),
            "better": None if change is None else int((change < -CHANGED).sum()),
            "worse": None if change is None else int((change > CHANGED).sum()),
        })  # fmt: skip
    last = numbers.index(kept) if kept in numbers else len(numbers) - 1
    forgotten = {"stage": numbers[last], **_forgotten(ids, nll[: last + 1])}
    return {"rows": len(ids), "threshold": CHANGED, "stages": stages, "forgotten": forgotten}


def _finite(line: Mapping[str, Any] | None) -> bool:
    return line is not None and line["nll"] is not None and math.isfinite(line["nll"])


def _forgotten(ids: Sequence[str], nll: np.ndarray) -> dict[str, Any]:
    """Rows whose loss after the last stage is above the lowest that they had. nll: [stages, rows]."""
    above = nll[-1] - nll.min(axis=0)
    order = [place for place in np.argsort(-above, kind="stable").tolist() if above[place] > CHANGED]
    return {"count": len(order), "ids": [ids[place] for place in order[:NAMED]]}
