"""A whole small project for tests: rows on disk, two tiny models, a recipe; and the command, called in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny import save_pair
from tutelage import SCDConfig, SCDTrainer
from tutelage.compare.cells import Cell
from tutelage.compare.executors import Outcome

LABELS = ("red", "green", "blue")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def color_rows(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{split}-{n}", "text": f"{split} thing {n} is {LABELS[n % 3]}", "label": LABELS[n % 3]}
        for n in range(count)
    ]


def make_project(folder: Path, **changes: Any) -> Path:
    """Write data, models and recipe.yaml into `folder`; returns the recipe. changes: sections merged over the
    recipe's."""
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        write_rows(folder / "data" / f"{split}.jsonl", color_rows(split, count))
    teacher, student = save_pair(folder / "models")
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "task": {"type": "classification", "max_new_tokens": 6},
        "data": {"dataset": str(folder / "data"), "template": "{text}:"},
        "teacher": {"model_name_or_path": str(teacher)},
        "student": {"model_name_or_path": str(student)},
        "trainer": {"per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 0.003, "bf16": False},
        "teach": {"num_checkpoints": 2, "trainer": {"num_train_epochs": 2}},
        "cache": {"dtype": "float32", "shard_rows": 8},
        "distill": {
            **{"num_stages": 2, "epochs_per_stage": 1.0, "probe_rows": 8, "save_steps": 2, "select": None},
            "schedule": {"advance": False},
        },
        "evaluate": {"resamples": 100},
    }
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


class Inline:
    """In place of `executors.LocalExecutor`: cells in this process, one after another."""

    threads = 1

    def __init__(self, task: Any, logs: Path, jobs: int = 1) -> None:
        self.task = task

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        for cell in cells:
            try:
                self.task(cell)
                yield Outcome(cell, 0.0)
            except Exception as error:
                yield Outcome(cell, 0.0, f"{type(error).__name__}: {error}")


class Command:
    """Calls the `tutelage` command; keeps exit code, standard output and standard error.

    The tiny models of `make_project` learn nothing: commands that would stop for it get --anyway, unless `may_stop`.
    """

    may_stop = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: Any) -> int:
        from tutelage.cli.main import MAY_STOP, main

        self.monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, words)])
        if words[0].replace("-", "_") in ("run", "compare", *MAY_STOP) and not self.may_stop:
            sys.argv.append("--anyway")
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main()
        self.out, self.err = self.capsys.readouterr()
        return leaving.value.code or 0


def prompt_rows(split: str, count: int) -> list[dict[str, str]]:
    """The rows of `make_project` as `SCDTrainer` takes them."""
    return [
        {"id": row["id"], "prompt": row["text"] + ":", "completion": row["label"]} for row in color_rows(split, count)
    ]


def trainer_for(
    folder: Path, output: Path, *, unlabelled: Sequence[str] = (), teacher_processing_class: Any = None, **changes: Any
) -> SCDTrainer:
    """A trainer for the finished run in `folder`, with the settings of its recipe. unlabelled: texts without a label.
    changes: to the settings."""
    settings = {
        "num_stages": 2,
        "epochs_per_stage": 1.0,
        "probe_rows": 8,
        "advance": False,
        "save_every_steps": 2,
        "cache_dtype": "float32",
        "per_device_train_batch_size": 4,
        "learning_rate": 0.003,
        "use_cpu": True,
    }
    return SCDTrainer(
        model=str(folder / "models/student"),
        teacher_checkpoints=folder / "run/teach",
        args=SCDConfig(output_dir=str(output), **{**settings, **changes}),
        train_dataset=prompt_rows("train", 12),
        eval_dataset=prompt_rows("validation", 6),
        unlabelled_dataset=[{"prompt": f"{text}:"} for text in unlabelled] or None,
        teacher_processing_class=teacher_processing_class,
    )


def run_to_the_end(recipe: Path) -> None:
    """`tutelage run RECIPE`, for fixtures that live longer than a test."""
    from tutelage.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["tutelage", "run", str(recipe), "--anyway"])
        with pytest.raises(SystemExit) as leaving:
            main()
    assert not leaving.value.code
