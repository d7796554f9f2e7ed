"""A whole SCD+AW run, three ways: `python -m benchmarks.endtoend [--quick] [--json FILE]`.

    cached   the stages `cache` and `distill` as the command runs them, cache building included
    live     the stage `distill` with LiveTeacher in place of CachedTeacher: a teacher's forward pass in every step, in
             every stage's choice, and over all rows for the losses that adaptive weighting needs
    trl_gkd  as many steps of TRL's GKDTrainer on the gold answers (lmbda 0) with forward KL (beta 0): one teacher, no
             choice, no weights; some steps are timed, and their median times the steps of the run is its total

N = 4 checkpoints, T = 2 epochs in each of 4 stages. Models are Llamas with random weights, between a test's size and
SmolLM2-135M; rows are random words, all of the same length, so that none of the three meets padding. Everything is
float32.

To be fair to `live`: it holds all N checkpoints in memory once they are loaded (one at a time, as a user would have to,
it would load anew for every choice), and measures each checkpoint's losses once. Its peak memory is that of N
checkpoints; `teacher_mb` says what one weighs.

Not counted in any of the three: preparing rows, the teacher's training, the anchor. Two validation rows are scored
after each stage and are part of `rest`, as are loading and saving models. The choice looks at 2 % as many rows as a
stage trains on, all epochs counted; its share of a stage grows with that, so it is printed beside it (`probe_share`).

Each of the three has a process of its own with all cores, one after another. Peak memory is the process's highest
resident memory (VmHWM), pages of mapped files included. About 15 minutes on 2 cores, `--quick` 5.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.utils import logging

from benchmarks.machine import cores, machine_class, memory_mb, versions
from benchmarks.shapes import EOS, FIRST_TEXT_ID, PAD, Batch, Shape, build_model
from benchmarks.step import Worker, run_variant
from benchmarks.variants import WARMUP_STEPS, Job
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels

TEACHER = Shape(hidden=512, layers=12, heads=8, kv_heads=4, intermediate=1408, vocabulary=32_768)
STUDENT = Shape(hidden=384, layers=6, heads=6, kv_heads=3, intermediate=1024, vocabulary=32_768)
LABELS = 16
METHOD, SEED = "scd-aw", 0


@dataclass(frozen=True)
class Size:
    """How much is done."""

    rows: int
    probe_rows: int
    """Rows on which checkpoints are compared: 2 % of rows x epochs, as the recipe has it by default from 400 rows
    on."""
    trl_steps: int
    """Timed steps of TRL, after two for warming up."""
    tokens: int = 100
    """Of every row, answer included."""
    answer_tokens: int = 8
    """Of those, with end-of-sequence."""
    batch: int = 8
    checkpoints: int = 4
    stages: int = 4
    epochs: int = 2
    teacher: Shape = TEACHER
    student: Shape = STUDENT

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.stages * self.epochs * -(-self.rows // self.batch)


FULL = Size(rows=400, probe_rows=16, trl_steps=20)
QUICK = Size(rows=96, probe_rows=4, trl_steps=8)


class Clock:
    """Seconds by part; a part within another counts for itself alone."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs in here belongs to `name`."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took


# --- the project: built once, by a process that then ends ---


def words_tokenizer(vocabulary: int) -> Any:
    """A token for each of the words w2, w3, ...; ids of end-of-sequence and padding as the benchmarks' models have
    them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{number}": number for number in range(FIRST_TEXT_ID, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def random_words(draw: np.random.Generator, count: int, vocabulary: int) -> str:
    """`count` tokens of text."""
    return " ".join(f"w{number}" for number in draw.integers(FIRST_TEXT_ID, vocabulary, count))


def write_rows(path: Path, split: str, lengths: np.ndarray, labels: list[str], vocabulary: int, seed: int) -> None:
    """A JSON-lines file of random rows, one prompt length after the other, one label after the other."""
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for place, length in enumerate(lengths):
            text, label = random_words(draw, int(length), vocabulary), labels[place % len(labels)]
            file.write(json.dumps({"id": f"{split}-{place}", "text": text, "label": label}) + "\n")


def save_models(folder: Path, teacher: Shape, student: Shape, checkpoints: int) -> None:
    """Write folder/student and folder/checkpoint-1, ...: random weights and the tokenizer."""
    logging.disable_progress_bar()
    names = [f"checkpoint-{number}" for number in range(1, checkpoints + 1)]
    tokenizer = words_tokenizer(student.vocabulary)
    for seed, name in enumerate(["student", *names]):
        build_model(student if name == "student" else teacher, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_recipe(folder: Path, checkpoints: int, **sections: dict[str, Any]) -> Path:
    """Write a recipe over folder/data and folder/models, where teacher and anchor are given; returns it."""
    models = folder / "models"
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "task": {"type": "classification"},
        "data": {"dataset": str(folder / "data"), "template": "{text}"},
        "teacher": {"model_name_or_path": str(models / f"checkpoint-{checkpoints}")},
        "student": {"model_name_or_path": str(models / "student")},
        "teach": {"checkpoints": str(models)},
        "anchor": {"model_name_or_path": str(models / "student")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections), encoding="utf-8")
    return path


def make_project(folder: Path, size: Size) -> Path:
    """Data, models and recipe of a run; returns the recipe."""
    save_models(folder / "models", size.teacher, size.student, size.checkpoints)
    draw, vocabulary = np.random.default_rng(0), size.student.vocabulary
    labels = [random_words(draw, size.answer_tokens - 1, vocabulary) for _ in range(LABELS)]
    for seed, (split, count) in enumerate({"train": size.rows, "validation": 2, "test": 2}.items()):
        lengths = np.full(count, size.tokens - size.answer_tokens)
        write_rows(folder / "data" / f"{split}.jsonl", split, lengths, labels, vocabulary, seed)
    return write_recipe(
        folder,
        size.checkpoints,
        preset="paper",
        trainer={"per_device_train_batch_size": size.batch, "use_cpu": True, "bf16": False},  # as TRL has it
        distill={
            "methods": [METHOD],
            "seeds": [SEED],
            "num_stages": size.stages,
            "epochs_per_stage": float(size.epochs),
            "probe_rows": size.probe_rows,
        },
    )


def open_run(recipe: Path, force: bool = False) -> RunFolder:
    """The run of a recipe."""
    from tutelage.recipe.load import load_recipe

    return RunFolder(load_recipe(recipe, []).recipe, force=force, anyway=True)


def set_up(pipe: Connection, folder: Path, size: Size, threads: int) -> None:
    """Everything that is not counted: rows, teacher and anchor."""
    from tutelage.stages.pipeline import run_stages

    torch.set_num_threads(threads)
    run = open_run(make_project(folder, size))
    run_stages(run, ("prepare", "teach", "anchor"))
    pipe.send(("done", None))


# --- the runs ---


def clocked(clock: Clock) -> type:
    """Distillation that says how long its parts take."""
    from tutelage.training.distillation import Distillation

    class Clocked(Distillation):
        def _choose(self, *args: Any) -> Any:
            with clock.part("choice"):
                return super()._choose(*args)

        def _train(self, *args: Any) -> Any:
            with clock.part("steps"):
                return super()._train(*args)

        def weights(self, *args: Any) -> Any:
            with clock.part("weights"):
                return super().weights(*args)

    return Clocked


def live_teacher(run: Any) -> type:
    """LiveTeacher, built with CachedTeacher's arguments; keeps models and losses it has once."""
    from tutelage.models.load import load_model
    from tutelage.teacher.sources import LiveTeacher

    class Live(LiveTeacher):
        def __init__(self, folder: Path, checkpoints: list[str], rows: Any, *, bf16: bool) -> None:
            super().__init__(checkpoints, self._load, rows, run.prepared["vocabulary"], RunModels(run).pad_id)
            self._models: dict[str, nn.Module] = {}
            self._losses: dict[str, np.ndarray] = {}

        def _load(self, checkpoint: str) -> nn.Module:
            if checkpoint not in self._models:
                self._models[checkpoint] = load_model(
                    run.recipe.teacher, Path(run.recipe.teach.checkpoints) / checkpoint
                )
            return self._models[checkpoint]

        def nll(self, checkpoint: str) -> np.ndarray:
            if checkpoint not in self._losses:
                self._losses[checkpoint] = super().nll(checkpoint)
            return self._losses[checkpoint]

    return Live


def run_cached(pipe: Connection, recipe: Path, threads: int) -> None:
    """Build the cache and distil from it."""
    from tutelage.stages import cache, distill

    torch.set_num_threads(threads)
    baseline, clock, run = memory_mb("VmRSS"), Clock(), open_run(recipe)
    with clock.part("cache"):
        cache.run_stage(run, RunModels(run))
    with mock.patch.object(distill, "Distillation", clocked(clock)), clock.part("rest"):
        distill.run_stage(run, RunModels(run))
    pipe.send(("done", result(run, clock, baseline)))


def run_live(pipe: Connection, recipe: Path, threads: int) -> None:
    """Distil from the teacher in memory. The stage insists on a finished cache, and does not read it here."""
    from tutelage.stages import distill

    torch.set_num_threads(threads)
    baseline, clock, run = memory_mb("VmRSS"), Clock(), open_run(recipe, force=True)
    steps = mock.patch.object(distill, "Distillation", clocked(clock))
    teacher = mock.patch("tutelage.training.run_models.CachedTeacher", live_teacher(run))
    with steps, teacher, clock.part("rest"):
        distill.run_stage(run, RunModels(run))
    pipe.send(("done", result(run, clock, baseline)))


def result(run: Any, clock: Clock, baseline: float) -> dict[str, Any]:
    """What a run of ours reports. followed: the checkpoint of every stage."""
    stages = json.loads((run.folder / "distill" / METHOD / f"seed-{SEED}" / "stages.json").read_text(encoding="utf-8"))
    return {
        "parts": clock.seconds,
        "seconds": sum(clock.seconds.values()),
        "baseline_mb": baseline,
        "peak_mb": memory_mb("VmHWM"),
        "followed": [stage["chosen"] for stage in stages],
    }


def run_trl(folder: Path, size: Size, threads: int, worker: type = Worker) -> dict[str, Any]:
    """Time some steps of TRL's loop at the run's sizes, and scale them up to its steps."""
    batch = Batch(size.batch, size.tokens, size.answer_tokens)
    job = Job("endtoend", batch, "fp32", "full", str(folder), size.trl_steps, size.teacher, size.student, threads)
    process = worker("trl_gkd", run_variant, "trl_gkd", job)
    try:
        process.ask("ready", go=False)
        samples = [process.ask("step") for _ in range(job.all_steps)][WARMUP_STEPS:]
        memory = process.ask("done")
    finally:
        process.end()
    median = statistics.median(samples)
    return {
        "seconds": median * size.steps,
        "seconds_a_step": median,
        "samples": samples,
        "steps_timed": len(samples),
        **memory,
    }


def measure(folder: Path, size: Size, threads: int, console: Console, worker: type = Worker) -> dict[str, Any]:
    """The record of all three. worker: starts a process and waits for its word."""

    def alone(name: str, task: Any, *args: Any) -> Any:
        with console.status(name):
            process = worker(name, task, *args, threads)
            try:
                return process.ask("done", go=False)
            finally:
                process.end()

    alone("set-up", set_up, folder, size)
    recipe = folder / "recipe.yaml"
    runs = {"cached": alone("cached", run_cached, recipe), "live": alone("live", run_live, recipe)}
    for run in runs.values():
        run["steps_timed"] = size.steps
    if find_spec("trl"):
        with console.status("trl_gkd"):
            runs["trl_gkd"] = run_trl(folder, size, threads, worker)
    else:
        console.print("trl is not installed, so trl_gkd is left out: pip install 'tutelage[dev]'", markup=False)
    weights = (folder / "models" / f"checkpoint-{size.checkpoints}" / "model.safetensors").stat().st_size
    return record(size, runs) | {"teacher_mb": weights / 1e6}


def record(size: Size, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Runs with their ratios. choice_share: of a stage's choice, weights and steps; without cache, loading and
    saving."""
    seconds = {name: run["seconds"] for name, run in runs.items()}
    peak = {name: run["peak_mb"] for name, run in runs.items()}
    found = {f"cached/{name}": seconds["cached"] / seconds[name] for name in ("live", "trl_gkd") if name in seconds}
    found |= {f"peak cached/{name}": peak["cached"] / peak[name] for name in ("live", "trl_gkd") if name in peak}
    shares = {}
    for name in ("cached", "live"):
        parts = runs[name]["parts"]
        shares[name] = parts["choice"] / sum(parts[part] for part in ("choice", "weights", "steps"))
    return {
        "size": asdict(size),
        "steps_total": size.steps,
        "runs": runs,
        "ratios": found,
        "choice_share": shares,
        "probe_share": size.probe_rows / (size.rows * size.epochs),
    }


def table(found: dict[str, Any]) -> Table:
    """A line a run, ratios below."""
    share, probe = found["choice_share"], found["probe_share"]
    lines = [f"{name} {value:.2f}" for name, value in found["ratios"].items()]
    lines += [
        f"choice: {share[name]:.1%} of a stage ({name}), with {probe:.1%} of the rows it reads as probe"
        for name in share
    ]
    view = Table(title=f"SCD+AW, {found['steps_total']:,} steps", caption="\n".join(lines))
    parts = ("cache", "choice", "weights", "steps", "rest")
    for heading in ("run", "s in all", *(f"{part}, s" for part in parts), "steps timed", "peak MB", "of which imports"):
        view.add_column(heading, justify="left" if heading == "run" else "right")
    for name, run in found["runs"].items():
        own = run.get("parts", {})
        cells = [f"{own[part]:,.1f}" if part in own else "" for part in parts]
        memory = [f"{run[key]:,.0f}" for key in ("peak_mb", "baseline_mb")]
        view.add_row(name, f"{run['seconds']:,.1f}", *cells, str(run["steps_timed"]), *memory)
    return view


def main(
    quick: Annotated[bool, typer.Option("--quick", help="96 rows in place of 400.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")] = None,
) -> None:
    """Seconds and peak memory of a whole SCD+AW run: from the cache, with a live teacher, and TRL's GKD for as many
    steps."""
    console, about = Console(), {"machine": machine_class(), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['machine']}; {packages}", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), QUICK if quick else FULL, cores(), console) | about
    console.print(table(found))
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
