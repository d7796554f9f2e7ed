"""A made-up run folder with hostile text in it, and a page read back as a browser would."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tutelage.utils.files import write_jsonl

INJECTION = '<script>alert("x")</script>'
MARKUP = "</style><img src=https://evil.example/p.png onerror=alert(1)>{{ 7 * 7 }}"
LABELS = ("fever", "cough", "発熱", "두통")
LANGUAGES = ("en", "en", "ja", "ko")
CHECKPOINTS = ("checkpoint-120", "checkpoint-240", "checkpoint-360", "checkpoint-480")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def scored(values: np.ndarray) -> dict[str, float]:
    """Mean with a normal 95 % interval; the bootstrap's interval is tested elsewhere."""
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    return {"value": float(values.mean()), "low": float(values.mean()) - half, "high": float(values.mean()) + half}


def make_fake_run(
    folder: Path, *, rows: int = 400, skill: float = 0.805, seed: int = 0, confidences: bool = False
) -> Path:
    """A run folder as the stages leave it: teacher near 0.85, plain fine-tuning near 0.75, the student near `skill`.

    confidences: whether predictions carry the probability of the answer.
    """
    rng = np.random.default_rng(seed)
    ease = rng.random(rows)  # shared by all models, so that paired differences are smaller than unpaired ones
    skills = {"teacher": 0.85, "student": 0.02, "anchor": 0.75, "scd-aw/seed-0": skill, "td/seed-0": 0.765}
    ids = [f"row-{n:04d}" for n in range(rows)]
    ids[0] = INJECTION
    predictions, models = [], {}
    for model, level in skills.items():
        right = (0.75 * ease + 0.25 * rng.random(rows)) < level
        nll = np.where(right, rng.gamma(0.5, 0.12, rows), rng.gamma(2.0, 0.8, rows))
        if model != "teacher":
            nll[0] = 9.0 if model == "scd-aw/seed-0" else 1.0  # row 0 is far in the teacher's favour: it is shown
        for n, id in enumerate(ids):
            gold, other = LABELS[n % 4], LABELS[(n + 1) % 4]
            answer = (gold if right[n] else other) if n else MARKUP
            predictions.append({
                "id": id, "model": model, "split": "test", "gold": gold, "raw": answer, "prediction": answer,
                "score": float(right[n]), "nll": 0.0 if model == "teacher" and not n else float(nll[n]),
            })  # fmt: skip
            if confidences:
                predictions[-1]["confidence"] = float(np.exp(-nll[n])) if right[n] else 1 / (2 + n % 5)
        losses = np.array([row["nll"] for row in predictions[-rows:]])
        loss = float(losses.mean()) if model == "student" else scored(losses)  # both forms are allowed
        models[model] = {
            "accuracy": scored(right.astype(float)),
            "outside_rate": scored(~right & (ease > 0.97)),
            "nll": loss,
        }
    write_jsonl(folder / "evaluate" / "predictions.jsonl", predictions)
    head = {"task": "classification", "metric": "accuracy", "split": "test", "rows": rows}
    write(folder / "evaluate" / "scores.json", {**head, "models": models})
    subdomains = ("intake", INJECTION, "問診", "follow-up")
    about = [
        {"id": id, "split": "test", "prompt": "secret prompt", "answer": LABELS[n % 4], "answers": [LABELS[n % 4]],
         "labels": None, "language": LANGUAGES[n % 4], "subdomain": subdomains[n // 4 % 4]}
        for n, id in enumerate(ids)
    ]  # fmt: skip
    write_jsonl(
        folder / "prepare" / "rows.jsonl", [*about, {**about[1], "id": "t", "split": "train", "language": "zh"}]
    )
    _write_training(folder, rng)
    return folder


def _write_training(folder: Path, rng: np.random.Generator) -> None:
    scores = [(0.512, 1.403), (0.764, 0.741), (0.842, 0.553), (0.838, 0.549)]
    checkpoints = [
        {"name": c, "folder": f"elsewhere/{c}", "score": s, "nll": n}
        for c, (s, n) in zip(CHECKPOINTS, scores, strict=True)
    ]
    write(folder / "teach" / "checkpoints.json", {"best": "checkpoint-360", "by": "score", "checkpoints": checkpoints})
    far = [(0.20, 0.74, 1.00, 1.05), (0.18, 0.60, 0.92, 1.01), (0.30, 0.22, 0.31, 0.44), (0.52, 0.28, 0.12, 0.20)]
    near = (0.24, 0.07, 0.0, 0.02)
    stall = "checkpoint-120 was chosen again although the student is still 0.180 nats from it"
    stall += ": `distill.schedule.advance=true`"
    stages, weights = [], []
    for stage, (chosen, reach) in enumerate(zip((0, 0, 1, 2), far, strict=True), start=1):
        candidates = [
            {"checkpoint": c, "kl_best": a, "kl_student": b, "total": a + b}
            for c, a, b in zip(CHECKPOINTS, near, reach, strict=True)
        ]
        record = {
            "stage": stage,
            "chosen": CHECKPOINTS[chosen],
            "candidates": candidates,
            "reason": f"smallest sum in {stage}",
        }
        validation = {"score": 0.70 + 0.03 * stage, "nll": 0.9 - 0.08 * stage}
        stages.append({**record, "seconds": 61.5, "validation": validation, "stall": stall if stage == 2 else None})
        for n in range(300):
            anchor, teacher = rng.gamma(1.2, 0.3), rng.gamma(1.0, 0.9 / stage)
            weights.append({
                "id": f"t{n}", "stage": stage, "checkpoint": CHECKPOINTS[chosen], "anchor_nll": anchor,
                "teacher_nll": teacher, "weight": anchor / (anchor + teacher),
            })  # fmt: skip
    write(folder / "distill/scd-aw/seed-0/stages.json", stages)
    write_jsonl(folder / "distill/scd-aw/seed-0/weights.jsonl", weights)
    fixed = {
        "chosen": "checkpoint-360",
        "candidates": [],
        "reason": "T*, the best teacher on validation",
        "stall": None,
    }
    validation = {"score": 0.79, "nll": 0.7}
    td = [{"stage": stage, **fixed, "seconds": 60.0, "validation": validation} for stage in (1, 2, 3, 4)]
    write(folder / "distill/td/seed-0/stages.json", td)
    constant = [{**row, "weight": 0.5} for row in weights]
    write_jsonl(folder / "distill/td/seed-0/weights.jsonl", constant)
    recipe = f"name: demo\noutput_dir: runs/my demo\ntask: {{type: classification}}\n# {INJECTION}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    work = {
        "prepare": 2.31,
        "teach": 412.0,
        "anchor": 230.5,
        "cache": 75.2,
        "distill/scd-aw/seed-0": 3790.0,
        "distill/td/seed-0": 250.0,
    }
    for number, (name, seconds) in enumerate(work.items()):
        about = {"kept_stage": 4} if "distill" in name else {}
        versions = {"python": "3.11.9", "torch": "2.13.0" if number else "2.12.0"}
        write(
            folder / name / "manifest.json",
            {"seconds": seconds, "finished": f"2026-01-01T00:00:0{number}", "versions": versions, **about},
        )


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, visible text, ids of sections."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.hidden = False
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))
        self.sections = [attrs["id"] for tag, attrs in self.tags if tag == "section" and "id" in attrs]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(data)
