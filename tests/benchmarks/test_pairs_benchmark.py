"""`benchmarks.pairs`: the recipe it writes is valid, and rows that lose their gold are those of the training split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import pairs
from helpers.project import color_rows, write_rows
from tutelage.recipe.load import load_recipe


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "colors"
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        write_rows(folder / f"{split}.jsonl", [{"task": "classification", **row} for row in color_rows(split, count)])
    return folder


def test_rows_with_and_without_gold_and_steps(tmp_path, data, monkeypatch):
    """8 of 12 rows keep their gold; 4 stages over all 12 make 10 steps of 8 rows."""
    summary = {"recipes": [{"name": "colors"}]}
    monkeypatch.setattr(pairs.subprocess, "run", lambda command, **options: commands.append(command))
    monkeypatch.setattr(pairs, "read_json", lambda path: summary)
    monkeypatch.setattr(
        "sys.argv",
        ["pairs", str(data), "--teacher", "a/b-1B", "--student", "a/c-1B", "--folder", str(tmp_path / "out"),
         "--gold", "8", "--unlabelled", "100", "--steps", "10", "--methods", "sft,td"],
    )  # fmt: skip
    commands: list[list[str]] = []
    pairs.main()
    recipe = load_recipe(tmp_path / "out/colors-8-100.yaml").recipe
    assert (recipe.data.max_train_rows, recipe.data.max_unlabelled_rows) == (8, 4)
    assert recipe.distill.num_stages * recipe.distill.epochs_per_stage * 12 / 8 == pytest.approx(10, abs=1e-3)
    assert yaml.safe_load((tmp_path / "out/colors-8-100.yaml").read_text())["data"]["overlap"] == "drop"
    assert commands[0][3:] == ["compare", str(tmp_path / "out/colors-8-100.yaml"), "--methods", "sft,td",
                               "--seeds", "1", "--anyway"]  # fmt: skip
    assert json.loads((tmp_path / "out/results.jsonl").read_text())["summary"] == {"name": "colors"}
