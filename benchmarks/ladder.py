"""A cheap pair of models for a data set: trained from nothing, so that methods can be compared over many seeds in
minutes.

    python -m benchmarks.ladder DATA FOLDER [--seed 0]     # DATA holds train, validation and test.jsonl of prompt and
    completion tutelage compare FOLDER/recipe.yaml --methods sft,td,scd --seeds 10 --jobs 2

Writes FOLDER/models (a Llama of 4 layers x 192 and one of 2 x 64, random weights, a BPE tokenizer of 4,000 entries
learned from the training rows) and FOLDER/recipe.yaml. What the order of methods is on such a pair need not be their
order on pretrained models: benchmarks/RESULTS.md says which numbers come from which.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import yaml

from tutelage.demo import models
from tutelage.utils.files import read_jsonl

TEACHER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
STUDENT = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
INIT = {"teacher": 0.05, "student": 0.1}
"""Standard deviations of the random weights: narrow models leave a start of 0.02 too slowly for trainings this
short."""


def texts(rows: Path) -> Iterator[str]:
    """What the tokenizer learns from."""
    for row in read_jsonl(rows):
        yield row["prompt"]
        yield f" {row['completion']}"


def write(
    data: Path, folder: Path, *, seed: int, teacher_epochs: float, epochs_per_stage: float, vocabulary: int
) -> Path:
    """Models and recipe; returns the recipe's path."""
    shapes = {
        "teacher": TEACHER | {"initializer_range": INIT["teacher"]},
        "student": STUDENT | {"initializer_range": INIT["student"]},
    }
    models.build_models(folder / "models", texts(data / "train.jsonl"), seed=seed, vocabulary=vocabulary, shapes=shapes)
    first = next(read_jsonl(data / "train.jsonl"))
    recipe = {
        "name": data.name,
        "output_dir": str(folder / "run"),
        "task": {"type": first["task"]},
        "data": {"dataset": str(data), "max_length": 320, "too_long": "drop", "overlap": "drop"},
        "teacher": {"model_name_or_path": str(folder / "models/teacher")},
        "student": {"model_name_or_path": str(folder / "models/student")},
        "trainer": {"per_device_train_batch_size": 16, "bf16": False},
        "teach": {
            "num_checkpoints": 4,
            "trainer": {"num_train_epochs": teacher_epochs, "learning_rate": 1e-3, "weight_decay": 0.1},
        },
        "distill": {"num_stages": 4, "epochs_per_stage": epochs_per_stage, "trainer": {"learning_rate": 3e-3}},
        "cache": {"batch_size": 64},
        "evaluate": {"batch_size": 64},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train, validation and test.jsonl")
    parser.add_argument("folder", type=Path, help="where models and recipe go")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--teacher-epochs", type=float, default=6.0)
    parser.add_argument("--epochs-per-stage", type=float, default=1.5)
    parser.add_argument("--vocabulary", type=int, default=4000, help="entries of the tokenizer")
    given = parser.parse_args()
    print(
        write(
            given.data, given.folder, seed=given.seed, teacher_epochs=given.teacher_epochs,
            epochs_per_stage=given.epochs_per_stage, vocabulary=given.vocabulary,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
