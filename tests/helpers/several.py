"""A small run with every stage, to be shared by several processes, and what of two runs has to be the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.project import color_rows, make_project, write_rows
from helpers.tiny import byte_tokenizer, tiny_model

ROWS, STEP = 13, 6
METHODS = ["scd-aw-cf", "taid", "seqkd"]
TIMES = ("seconds", "runtime", "per_second", "answering", "flos", "train_batch_size", "memory", "finished")
OF_THE_TRAINER = ("epoch", "train_loss")
"""transformers counts epochs in batches, of which a step may have more on fewer processes, and its train_loss is of the
steps since a restart. The loss of every step is compared."""


def project(folder: Path, processes: int, **more: Any) -> Path:
    """A recipe with every stage, a teacher with adapters and a student with tied embeddings. STEP rows make a step, if
    it is begun with this many processes. more: sections in place of these."""
    changes: dict[str, Any] = {
        "task": {"type": "classification", "decoding": "labels"},
        "data": {"unlabelled": str(folder / "unlabelled.jsonl")},
        "teacher": {"lora": {"r": 2, "lora_dropout": 0.0}},
        "trainer": {"per_device_train_batch_size": STEP // processes, "logging_steps": 1},
        "cache": {"batch_size": 2, "shard_rows": 4},
        "cross_fit": {"folds": 2},
        "distill": {"methods": METHODS, "keep": "best"},
        "evaluate": {"batch_size": 2},
    }
    recipe = make_project(folder, **{**changes, **more})
    for split in ("train", "validation", "test"):
        write_rows(folder / "data" / f"{split}.jsonl", color_rows(split, ROWS))
    write_rows(folder / "unlabelled.jsonl", [{"id": f"u{n}", "text": f"new thing {n}"} for n in range(7)])
    tiny_model(1, tie_word_embeddings=True).save_pretrained(folder / "models/student")
    byte_tokenizer().save_pretrained(folder / "models/student")
    return recipe


def numbers(folder: Path) -> dict[str, Any]:
    """Every value in every JSON file of a run, by file and key, but times and places."""
    found = {}
    for path in sorted((folder / "run").rglob("*.json*")):
        name = path.relative_to(folder / "run").as_posix()
        if path.name in ("manifest.json", "checksums.json", "adapter_config.json", "store.json"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for number, line in enumerate(lines):
            found |= {f"{name}:{number}{key}": value for key, value in leaves(json.loads(line))}
    return {key: value for key, value in found.items() if not any(word in key for word in (*TIMES, *OF_THE_TRAINER))}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def same(one: Path, other: Path) -> None:
    """Losses within 1e-5, and everything else equal: names of checkpoints, choices, answers, numbers of steps."""
    before, now = numbers(one), numbers(other)
    assert before.keys() == now.keys()
    for key, value in now.items():
        value = value.replace(str(other), str(one)) if isinstance(value, str) else value
        assert value == (pytest.approx(before[key], rel=1e-5, abs=1e-5) if isinstance(value, float) else before[key]), (
            key
        )
