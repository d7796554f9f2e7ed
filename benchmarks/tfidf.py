"""Scores and CPU seconds of TF-IDF with logistic regression: `python -m benchmarks.tfidf DATA [--json FILE]`.

DATA holds a folder for each data set, with train.jsonl, validation.jsonl and test.jsonl (`prompt`, `completion`, and
`labels`, `language` where a row has them). Trained on a seeded sample of 200, 500, 1,000 and 2,000 rows, and on all
where there are fewer; scored on all test rows. `--curve` asks how often `doctor` is right about the gain of twice as
many rows: it predicts from half of a sample what all of it scores, on validation rows. `--penalties` scores other
values of the one setting, on validation rows. `--repeat 10000` repeats the rows of a set to that number, for the
seconds that many take; its score says nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine_class
from tutelage.data.near_duplicates import distinct_texts
from tutelage.records import Example
from tutelage.tasks import tfidf
from tutelage.tasks.classification import Classification
from tutelage.tasks.learning_curve import DIVISORS, predict
from tutelage.utils.files import read_jsonl

SETS = ("banking77", "intent_3i4k", "xsid_intent", "jmed_crade_short", "jmed_rrtnm", "pubmedqa_short")
SIZES = (200, 500, 1000, 2000)
RESAMPLES = 1000
DOUBLED, SEEDS = (100, 200, 400, 800, 1600), 4
"""Sizes of the samples whose half predicts the whole, besides all rows; and samples of each."""


def rows_of(folder: Path, split: str) -> list[Example]:
    """The rows of a split of a data set."""
    return [
        Example(
            f"{split}-{number}",
            split,
            row["prompt"],
            row["completion"],
            [row["completion"]],
            row.get("labels"),
            row.get("language"),
        )
        for number, row in enumerate(read_jsonl(folder / f"{split}.jsonl"))
    ]


def cases(rows: Sequence[Example], sizes: Sequence[int]) -> Iterator[list[Example]]:
    """Seeded samples of the training rows; all of them once where a size exceeds their number."""
    for size in dict.fromkeys(min(size, len(rows)) for size in sizes):
        yield random.Random(0).sample(list(rows), size)


def measure(training: Sequence[Example], asked: Sequence[Example]) -> dict[str, Any]:
    """Accuracy and macro-F1 with their intervals, seconds of CPU time, rows and features."""
    task = Classification()
    start = time.process_time()
    found = tfidf.tfidf_answers(training, asked, task, distinct_texts([*training, *asked]))
    seconds = time.process_time() - start
    metrics = task.metrics(found.answers, asked, resamples=RESAMPLES)
    scores = {name: metrics[name].as_record() for name in ("accuracy", "macro_f1")}
    guess = task.baseline([row.answer for row in training], asked).score
    sizes = {"training_rows": found.training_rows, "features": found.features}
    return {**scores, "guess": guess, "seconds": seconds, **sizes, "rows": len(asked)}


def measure_set(
    folder: Path, sizes: Sequence[int], penalties: Sequence[float], repeat: int
) -> Iterator[dict[str, Any]]:
    """The records of a data set."""
    training = rows_of(folder, "train")
    if repeat:
        training = [training[number % len(training)] for number in range(repeat)]
    asked = {split: rows_of(folder, split) for split in ("validation", "test")}
    for sample in cases(training, [repeat] if repeat else sizes):
        for penalty in penalties or [tfidf.INVERSE_PENALTY]:
            tfidf.INVERSE_PENALTY = penalty
            split = "validation" if penalties else "test"
            yield {"set": folder.name, "split": split, "C": penalty, **measure(sample, asked[split])}


def measure_curve(folder: Path) -> Iterator[dict[str, Any]]:
    """For each sample: what its half predicts, and what the whole gains."""
    training, asked = rows_of(folder, "train"), rows_of(folder, "validation")
    texts = distinct_texts([*training, *asked])
    text_of = {row.id: text for row, text in zip(training, texts, strict=False)}
    held_out, task = texts[len(training) :], Classification()

    def right(part: Sequence[Example]) -> list[float]:
        found = tfidf.tfidf_answers(part, asked, task, [text_of[row.id] for row in part] + held_out)
        return [task.score(answer, row) for answer, row in zip(found.answers, asked, strict=True)]

    for total in [size for size in DOUBLED if size < 0.7 * len(training)] + [len(training)]:
        for seed in range(SEEDS):
            sample, half = random.Random(seed).sample(training, total), total // 2
            sizes = [*(half // divisor for divisor in DIVISORS), half]
            scores = np.array([right(sample[:size]) for size in sizes])
            found, gain = predict(sizes, scores), float(np.mean(right(sample)) - scores[-1].mean())
            labels = len({row.answer for row in sample[:half]})
            yield {"set": folder.name, "rows": half, "labels": labels, "seed": seed, "gain": gain, **asdict(found)}


def curve_table(records: Sequence[dict[str, Any]]) -> Table:
    """A line for each data set and number of rows: means over its samples, and how often the interval was right."""
    view = Table()
    for heading in ("data", "rows", "of a label", "gain", "power law", "last gain", "interval", "holds the gain"):
        view.add_column(heading, justify="left" if heading == "data" else "right")
    for name, rows in dict.fromkeys((record["set"], record["rows"]) for record in records):
        own = [record for record in records if (record["set"], record["rows"]) == (name, rows)]
        keys = ("labels", "gain", "power_law", "last", "low", "high")
        mean = {key: sum(record[key] for record in own) / len(own) for key in keys}
        held = sum(record["low"] <= record["gain"] <= record["high"] for record in own)
        numbers = [f"{mean[key]:+.3f}" for key in ("gain", "power_law", "last")]
        span = f"{mean['low']:+.3f} to {mean['high']:+.3f}"
        view.add_row(name, f"{rows:,}", f"{rows / mean['labels']:.1f}", *numbers, span, f"{held} of {len(own)}")
    return view


def table(records: Sequence[dict[str, Any]]) -> Table:
    """A line for each record."""
    view = Table()
    for heading in ("data", "split", "rows", "C", "accuracy", "macro-F1", "no prompt read", "features", "CPU s"):
        view.add_column(heading, justify="left" if heading in ("data", "split") else "right")
    for record in records:
        scores = [
            f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
            for score in (record["accuracy"], record["macro_f1"])
        ]
        head = [record["set"], record["split"], f"{record['training_rows']:,}", f"{record['C']:g}"]
        view.add_row(*head, *scores, f"{record['guess']:.3f}", f"{record['features']:,}", f"{record['seconds']:.1f}")
    return view


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the data sets.")],
    sets: Annotated[str, typer.Option(help="Names of data sets, separated by commas.")] = ",".join(SETS),
    curve: Annotated[bool, typer.Option("--curve", help="Predict the gain of twice as many rows.")] = False,
    penalties: Annotated[str, typer.Option(help="Values of C to score on validation rows, e.g. 3,10,30,100.")] = "",
    repeat: Annotated[int, typer.Option(min=0, help="Repeat the training rows to this number.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")] = None,
) -> None:
    """Scores and seconds of TF-IDF with logistic regression."""
    console, records = Console(width=140), []
    console.print(machine_class(), highlight=False)
    for name in sets.split(","):
        values = [float(value) for value in penalties.split(",") if value]
        records += measure_curve(data / name) if curve else measure_set(data / name, SIZES, values, repeat)
        if json_file:  # after every set: a run that is stopped keeps what it has
            json_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    console.print(curve_table(records) if curve else table(records))


if __name__ == "__main__":
    typer.run(main)
