"""Methods on a pretrained pair: few rows with gold, many without, and the comparison of `tutelage compare`.

    python -m benchmarks.pairs DATA... --teacher MODEL --student MODEL --folder OUT --gold 500 --unlabelled 1500 \\
        --methods sft,seqkd,td,ccd,scd-aw --seeds 1 --steps 400

DATA are folders with train, validation and test.jsonl. Of the training rows a seeded sample keeps its gold; all others
are `data.unlabelled`, whose answers nothing reads. Every data set gets the same number of optimizer steps. The same
command continues after an interruption and skips what is finished; OUT/results.jsonl gets a line for each comparison:
the settings and the section of summary.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import machine_class, versions
from tutelage.utils.files import read_json, read_jsonl

BATCH = 8
STAGES = 4


def recipe(data: Path, run: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The recipe of one data set; defaults are those of `tutelage` but for sizes and rates."""
    first = next(read_jsonl(data / "train.jsonl"))
    train = sum(1 for _ in read_jsonl(data / "train.jsonl"))
    gold = min(given.gold, train)
    unlabelled = min(given.unlabelled, train - gold)
    rows: dict[str, Any] = {"max_train_rows": gold}
    if unlabelled:
        file = given.unlabelled_file or data / "train.jsonl"
        rows |= {"unlabelled": str(file), "max_unlabelled_rows": unlabelled}
    return {
        "name": data.name,
        "output_dir": str(run),
        "seed": given.sample_seed,
        "task": {"type": first["task"], "decoding": given.decoding},
        "data": {
            "dataset": str(data),
            "max_length": 512,
            "too_long": "drop",
            "overlap": "drop",
            "max_validation_rows": given.validation_rows,
            "max_test_rows": given.test_rows,
            **rows,
        },
        "teacher": {"model_name_or_path": given.teacher},
        "student": {"model_name_or_path": given.student},
        "trainer": {"per_device_train_batch_size": BATCH},
        "teach": {"checkpoints": str(given.checkpoints)}
        if given.checkpoints
        else {
            "num_checkpoints": STAGES,
            "trainer": {"num_train_epochs": given.teacher_epochs, "learning_rate": given.teacher_rate},
        },
        "anchor": {"keep": "loss"},
        "distill": {
            "num_stages": STAGES,
            "epochs_per_stage": round(given.steps * BATCH / STAGES / (gold + unlabelled), 4),
            "stage_reset": False,
            "select_by": "loss",
            "trainer": {"learning_rate": given.rate},
        },
    }


def compare(data: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The section of summary.json of one data set."""
    name = f"{data.name}-{given.gold}-{given.unlabelled}{given.suffix}"
    path = given.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe(data, given.folder / name, given), allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "tutelage", "compare", str(path), "--methods", given.methods]
    command += ["--seeds", str(given.seeds), "--anyway"]
    subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return read_json(given.folder / name / "compare" / "summary.json")["recipes"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+", help="folders with train, validation and test.jsonl")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where recipes, runs and results.jsonl go")
    parser.add_argument("--gold", type=int, default=500, help="training rows that keep their gold")
    parser.add_argument("--unlabelled", type=int, default=1500, help="most training rows without it")
    parser.add_argument(
        "--unlabelled-file", type=Path, help="rows without gold; default: the rest of the training rows"
    )
    parser.add_argument("--suffix", default="", help="of the run's name")
    parser.add_argument("--methods", default="sft,seqkd,td,ccd,scd-aw")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400, help=f"optimizer steps of a student, of {BATCH} rows")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of all students")
    parser.add_argument("--teacher-rate", type=float, default=2e-4)
    parser.add_argument("--teacher-epochs", type=float, default=4)
    parser.add_argument(
        "--checkpoints", type=Path, help="a fine-tuned teacher's folder of checkpoints, not to train one"
    )
    parser.add_argument("--decoding", choices=["generate", "labels"], default="generate")
    parser.add_argument("--validation-rows", type=int, default=200)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--sample-seed", type=int, default=0, help="which rows keep their gold")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for data in given.data:
        section = compare(data, given)
        settings = {key: str(value) for key, value in vars(given).items() if key != "data"}
        line = {"data": data.name, "settings": settings, "machine": machine_class(), "versions": versions()}
        line["summary"] = section
        with (given.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
