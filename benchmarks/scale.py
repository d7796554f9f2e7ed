"""Seconds a row and peak memory of every stage as rows grow: `python -m benchmarks.scale [--quick] [--json FILE]`.

The real stages run through the command, `python -m tutelage STAGE RECIPE`, each in a process of its own, on 1,000,
10,000 and 100,000 training rows (`--quick`: the first two) of 40 to 80 tokens; validation and test keep 100 rows each.
Models are tiny, so that what grows with the rows shows, and not what a model weighs. Teacher (two checkpoints) and
anchor are given; one stage of one epoch is distilled, method scd-aw.

Memory is read from outside, from /proc/PID/status every 10 ms:

    peak_mb   VmHWM, the kernel's own record of the highest resident memory; pages of mapped files that were touched are
              in it, although the kernel takes them back when memory is short
    anon_mb   the highest RssAnon that was seen: memory that only the process itself can give back

`startup` is a process that imports the stage and ends. Ratios of peaks are given as they are and with startup
subtracted. About 8 minutes on 2 cores, `--quick` 2. 100,000 rows take about 1 GB (estimated) in the folder for
temporary files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.endtoend import random_words, save_models, write_recipe, write_rows
from benchmarks.machine import machine_class, versions
from benchmarks.shapes import Shape
from tutelage.cli.main import MAY_STOP

TEACHER = Shape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocabulary=1024)
STUDENT = Shape(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=1024)
CHECKPOINTS = 2
ROWS, QUICK_ROWS = (1_000, 10_000, 100_000), (1_000, 10_000)
HELD_OUT = 100
"""Rows of validation, and of test, by default."""
LABELS, LABEL_TOKENS = 16, 2
PROMPT_TOKENS = (38, 78)

STAGES = ("prepare", "teach", "anchor", "cache", "distill", "evaluate", "report")
POLL_SECONDS = 0.01
FIELDS = {"peak_mb": "VmHWM", "anon_mb": "RssAnon"}


def make_project(folder: Path, rows: int, held_out: int = HELD_OUT) -> Path:
    """Data, models and recipe; returns the recipe."""
    draw, vocabulary = np.random.default_rng(0), STUDENT.vocabulary
    labels = [random_words(draw, LABEL_TOKENS, vocabulary) for _ in range(LABELS)]
    for seed, (split, count) in enumerate({"train": rows, "validation": held_out, "test": held_out}.items(), start=1):
        lengths = draw.integers(*PROMPT_TOKENS, count)
        write_rows(folder / "data" / f"{split}.jsonl", split, lengths, labels, vocabulary, seed)
    save_models(folder / "models", TEACHER, STUDENT, CHECKPOINTS)
    return write_recipe(
        folder,
        CHECKPOINTS,
        trainer={"per_device_train_batch_size": 32, "use_cpu": True, "logging_steps": 100},
        cache={"batch_size": 64},
        distill={"methods": ["scd-aw"], "select": None, "num_stages": 1, "epochs_per_stage": 1.0},
        evaluate={"batch_size": 64},
    )


def watch(command: Sequence[str]) -> dict[str, float]:
    """Seconds and memory of a process, watched from outside. Raises RuntimeError with its last words if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    peak = dict.fromkeys(FIELDS, 0.0)
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                for name, value in memory_of(process.pid).items():
                    peak[name] = max(peak[name], value)
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # it ends with us; one that has ended is past that
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            words = output.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{words}")
    return {"seconds": seconds, **peak}


def memory_of(pid: int) -> dict[str, float]:
    """MB of a running process by the kernel's count; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(tuple(FIELDS.values()))}
    return {name: kib[field] * 1024 / 1e6 for name, field in FIELDS.items() if field in kib}


def startup(stage: str) -> dict[str, float]:
    """Seconds and memory of a process that does nothing but start."""
    return watch([sys.executable, "-c", f"import tutelage.cli.main, tutelage.stages.{stage}"])


def run_rows(rows: int, held_out: int, stages: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """A record for each stage, in order, at one number of training rows."""
    found = []
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        status.update(f"{rows:,} rows: writing")
        recipe = make_project(Path(folder), rows, held_out)
        for stage in stages:
            status.update(f"{rows:,} rows: {stage}")
            anyway = ["--anyway"] if stage in MAY_STOP else []  # speed does not depend on what a teacher learned
            seen = watch([sys.executable, "-m", "tutelage", stage, *anyway, str(recipe)])
            found.append({"rows": rows, "stage": stage, **seen, "seconds_a_row": seen["seconds"] / rows})
    return found


def summary(
    records: Sequence[dict[str, Any]], starts: dict[str, dict[str, float]]
) -> dict[str, dict[str, float | None]]:
    """For every stage, the largest number of rows against the smallest.

    peak, anon: ratio of the two; less startup: the same after startup is subtracted from both. seconds a row: ratio of
    the seconds beyond startup, by rows.
    """
    found = {}
    for stage, start in starts.items():
        lines = sorted((line for line in records if line["stage"] == stage), key=lambda line: line["rows"])
        few, many = lines[0], lines[-1]
        ratios = {}
        for name, key in (("peak", "peak_mb"), ("anon", "anon_mb")):
            ratios[name] = many[key] / few[key]
            ratios[f"{name} less startup"] = ratio(many[key] - start[key], few[key] - start[key])
        each = [(line["seconds"] - start["seconds"]) / line["rows"] for line in (many, few)]
        found[stage] = ratios | {"seconds a row less startup": ratio(*each)}
    return found


def ratio(above: float, below: float) -> float | None:
    """None where what is left below is nothing."""
    return above / below if below > 0 else None


def rows_table(records: Sequence[dict[str, Any]], starts: dict[str, dict[str, float]]) -> Table:
    """Every process that ran."""
    view = Table(title="stages by training rows")
    for heading in ("stage", "rows", "s", "ms a row", "peak MB", "anonymous MB"):
        view.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, start in starts.items():
        view.add_row(
            stage, "startup", f"{start['seconds']:.1f}", "", f"{start['peak_mb']:,.0f}", f"{start['anon_mb']:,.0f}"
        )
        for line in (line for line in records if line["stage"] == stage):
            times = f"{line['seconds']:.1f}", f"{line['seconds_a_row'] * 1e3:.2f}"
            view.add_row("", f"{line['rows']:,}", *times, f"{line['peak_mb']:,.0f}", f"{line['anon_mb']:,.0f}")
    return view


def summary_table(found: dict[str, dict[str, float | None]], counts: Sequence[int]) -> Table:
    """A line a stage, a column a ratio."""
    names = list(next(iter(found.values())))
    view = Table(title=f"{max(counts):,} rows against {min(counts):,}: ratios")
    for heading in ("stage", *names):
        view.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, ratios in found.items():
        view.add_row(stage, *("-" if ratios[name] is None else f"{ratios[name]:.3f}" for name in names))
    return view


def main(
    quick: Annotated[bool, typer.Option("--quick", help="1,000 and 10,000 rows.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")] = None,
    rows: Annotated[list[int] | None, typer.Option(min=50, help="This many rows; may be given more than once.")] = None,
    last: Annotated[str, typer.Option(help=f"Stop after this stage: {', '.join(STAGES)}.")] = STAGES[-1],
    held_out: Annotated[int, typer.Option(min=50, help="Rows of validation, and of test.")] = HELD_OUT,
) -> None:
    """Seconds a row and peak memory of every stage, as training rows grow."""
    if not Path("/proc/self/status").is_file():
        raise SystemExit(
            "memory is read from /proc/PID/status, which this system has not got: run the benchmark on Linux"
        )
    if last not in STAGES:
        raise typer.BadParameter(f"{last} is none of {', '.join(STAGES)}", param_hint="--last")
    console = Console()
    about = {"machine": machine_class(), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['machine']}; {packages}", highlight=False)
    counts = sorted(set(rows)) if rows else list(QUICK_ROWS if quick else ROWS)
    stages = STAGES[: STAGES.index(last) + 1]
    starts = {stage: startup(stage) for stage in stages}
    records: list[dict[str, Any]] = []
    for count in counts:
        records += run_rows(count, held_out, stages, console)
        found = {"startup": starts, "records": records, "ratios": summary(records, starts), **about}
        if json_file:  # after every number of rows: a run that is stopped keeps what it has
            json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(rows_table(records, starts))
    if len(counts) > 1:
        console.print(summary_table(found["ratios"], counts))


if __name__ == "__main__":
    typer.run(main)
