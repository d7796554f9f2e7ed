"""What tests of rows in share: a recipe over files written for one test."""

from __future__ import annotations

import json

from tutelage.data.readers import read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.errors import Place
from tutelage.recipe.schema import Data, Recipe, Task

CLASSIFY, NER, QA = Task(type="classification"), Task(type="ner"), Task(type="qa")


def example(row, task=QA, labels=None, need_answer=True, **data):
    data = Data(**data)
    return example_from_row(
        row, place=Place("f", 1), split="train", task=task, data=data, labels=labels, need_answer=need_answer
    )


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows([str(path)])


def recipe(folder, task=CLASSIFY, **data):
    model = {"model_name_or_path": "m"}
    return Recipe(
        name="r", output_dir="o", task=task, data={"dataset": str(folder)} | data, teacher=model, student=model
    )


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def labelled(*texts, label="a"):
    return [{"text": text, "label": label} for text in texts]
