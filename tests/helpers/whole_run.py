"""A finished run with everything in it that is not a trained number, and text that tries to break out."""

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from helpers.fake_run import make_fake_run, write

STUDENTS = ("scd-aw/seed-0", "td/seed-0")
HOSTILE = "[bold]x\x1b[31m\u202egnp.exe\r\n"


def whole_run(folder: Path, rows: int = 60) -> Path:
    """A finished run with everything in it that is not a trained number."""
    run = make_fake_run(folder, rows=rows)
    recipe = {
        "name": "demo",
        "output_dir": str(run),
        "task": {"type": "classification"},
        "data": {"dataset": str(folder / "rows"), "template": "{text}\nDepartment:"},
        "teacher": {"model_name_or_path": "big/teacher-1b"},
        "student": {"model_name_or_path": str(folder / "small-student")},
        "distill": {"methods": ["scd-aw", "td"], "seeds": [0], "num_stages": 4, "epochs_per_stage": 2.0},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    taught = json.loads((run / "teach/checkpoints.json").read_text())
    for checkpoint in taught["checkpoints"]:
        checkpoint["folder"] = str(run / "teach" / checkpoint["name"])
        model(run / "teach" / checkpoint["name"], 24)
        write(run / "cache" / checkpoint["name"] / "store.json", {})
        (run / "cache" / checkpoint["name"] / "shard-00000.safetensors").write_bytes(b"x" * 1000)
    write(run / "teach/checkpoints.json", taught)
    write(run / "prepare/data.json", {"labels": ["fever", "cough"], "lengths": {"train": {"rows": 300}}})
    model(run / "anchor", 6)
    for name in STUDENTS:
        model(run / "distill" / name, 6)
        usage = {
            "task": {"type": "classification", "labels": ["fever", "cough"], "decoding": "generate"},
            "choice": False,
        }
        data = {
            "dataset": str(folder / "rows"),
            "template": "{text}\nDepartment:",
            "train": None,
            "chat_template": False,
        }
        write(run / "distill" / name / "tutelage.json", {**usage, "data": data, "max_new_tokens": 7, "run": "demo"})
    for name in ("teacher", "student", "anchor", *STUDENTS):
        scores = json.loads((run / "evaluate/scores.json").read_text())["models"][name]
        write(run / "evaluate" / name / "scores.json", scores)
        lines = (run / "evaluate/predictions.jsonl").read_text().splitlines(keepends=True)
        (run / "evaluate" / name / "predictions.jsonl").write_text(
            "".join(x for x in lines if json.loads(x)["model"] == name)
        )
        finish(run, f"evaluate/{name}")
    (run / "report").mkdir()
    (run / "report/index.html").write_text("<p>")
    finish(run, "report", finished="2026-01-01T00:00:09")
    prepared = json.loads((run / "prepare/manifest.json").read_text())
    inputs = {"teacher model": "big/teacher-1b@main", "student model": "0123456789abcdef", "data files": {}}
    write(run / "prepare/manifest.json", {**prepared, "inputs": inputs})
    return run


def model(folder: Path, size: int) -> None:
    write(folder / "config.json", {})
    save_file({"w": np.zeros((size, 10), dtype=np.float32)}, str(folder / "model.safetensors"))


def finish(run: Path, name: str, **more: object) -> None:
    write(run / name / "manifest.json", {"inputs": {}, "seconds": 2.0, "finished": "2026-01-01T00:00:06", **more})
