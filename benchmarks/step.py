"""Seconds and peak memory of one training step, five ways: `python -m benchmarks.step [--quick] [--json FILE]`.

    limit     fine-tuning with DistillTrainer: the student alone, logits at answer positions only; nothing can be faster
    sft_all   fine-tuning with plain transformers.Trainer: the student alone, logits at every position
    cached    distillation with DistillTrainer, teacher from the store that CacheBuilder wrote
    live      the same with the teacher in memory and a forward pass of it in every step
    trl_gkd   TRL's GKDTrainer on the gold answers (lmbda 0) with the same divergence, forward KL (beta 0)

In the case `cross` the teacher's distributions are over the next byte of the answer, as for a teacher with another
tokenizer, and only the first three are measured.

All have the same seeded weights, rows, batches, order, optimizer and type. `cached` and `live` compute forward KL and
gold cross-entropy, mixed by a weight per sample; `trl_gkd` computes forward KL alone. TRL's own defaults of gradient
checkpointing and bfloat16 are set to what the others have. In bfloat16 the weights stay float32 and forward passes run
under autocast, the teacher's included.

Every variant lives in a process of its own with all cores. One step is taken at a time, by the variants in turn, so
whatever else the machine does meets all of them alike; with long rows, whose five processes want more than 24 GiB
together, `trl_gkd` takes turns with `cached` alone. A step's seconds run from the word to start until its end: reading
the batch, forward, backward, clipping and optimizer. The store is written before, by a process that then ends. Peak
memory is the highest resident memory of the variant's whole process (VmHWM: building the models included, and pages of
mapped files); `baseline_mb` is what the process held after its imports, before it built anything.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback

from benchmarks.machine import cores, machine_class, memory_mb, product_seconds, versions, why_no_bf16
from benchmarks.shapes import CASES, PAD
from benchmarks.variants import CHECKPOINT, TRAINERS, WARMUP_STEPS, Job, variants_here
from tutelage.teacher.build_cache import CacheBuilder

DTYPES = ("fp32", "bf16")
STUDENTS = ("full", "lora")
RATIOS = (("cached", "limit"), ("trl_gkd", "cached"), ("live", "cached"))
PEAK_RATIOS = (("cached", "trl_gkd"),)
STEPS = {"short": 9, "long": 5, "cross": 9}
"""Measured steps by case: a short step is soon done, and noise of a few per cent should not decide."""
CACHE_DTYPE = torch.bfloat16  # the recipe's default


# --- inside a variant's process ---


class Turns(TrainerCallback):
    """Takes a step when told to and answers with its seconds; after the last one it waits to be told to end."""

    def __init__(self, pipe: Connection) -> None:
        """pipe: any message means go."""
        self.pipe = pipe

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Everything is built."""
        self.pipe.send(("ready", None))
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done, the batch of the next one not yet read."""
        self.pipe.send(("step", time.perf_counter() - self.start))
        self._wait()

    def _wait(self) -> None:
        self.pipe.recv()
        self.start = time.perf_counter()


def run_variant(pipe: Connection, variant: str, job: Job) -> None:
    """Train one variant, step by step as the pipe says; the last message is its memory."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore", FutureWarning)  # of the pinned versions about each other
    torch.set_num_threads(job.threads)
    if variant == "trl_gkd":
        importlib.import_module("trl.experimental.gkd")
    baseline = memory_mb("VmRSS")
    trainer = TRAINERS[variant](job)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns(pipe))
    trainer.train()
    pipe.send(("done", {"baseline_mb": baseline, "peak_mb": memory_mb("VmHWM")}))


def write_store(pipe: Connection, job: Job) -> None:
    """Cache the teacher's states for the job's rows."""
    torch.set_num_threads(job.threads)
    rows, vocabulary = job.rows(), job.teacher_shape.vocabulary
    settings = {"vocabulary": vocabulary, "pad_id": PAD, "dtype": CACHE_DTYPE, "batch_size": job.batch.rows}
    builder = CacheBuilder(Path(job.folder), rows, **settings, reader=job.reader())
    note = builder.build(CHECKPOINT, job.make_teacher(), {})
    if note:
        raise RuntimeError(f"the store is not what is to be measured: {note}")
    pipe.send(("done", None))


def guarded(pipe: Connection, task: Callable[..., None], *args: Any) -> None:
    """Run `task(pipe, *args)`; an error goes to the other end."""
    try:
        task(pipe, *args)
    except Exception:
        pipe.send(("error", traceback.format_exc()))


# --- the process that measures ---


class Worker:
    """The other end of a process that takes turns."""

    def __init__(self, name: str, task: Callable[..., None], *args: Any) -> None:
        """Start `task(pipe, *args)` in a fresh process."""
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=guarded, args=(theirs, task, *args), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, expected: str, go: bool = True) -> Any:
        """Say go, and wait for the answer of that kind. Raises RuntimeError if the process failed or is gone."""
        try:
            if go:
                self.pipe.send("go")
            kind, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise RuntimeError(
                f"{self.name}: its process ended (exit code {code}; -9 is most often a lack of memory)"
            ) from None
        if kind != expected:
            raise RuntimeError(f"{self.name} failed:\n{answer}")
        return answer

    def end(self) -> None:
        """Stop the process if it still runs."""
        self.process.terminate()
        self.process.join()


def alternate(
    workers: Sequence[Any], rounds: int, on_round: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of every step by worker; in each round every worker takes one step, alone."""
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        for worker in workers:
            seconds[worker.name].append(worker.ask("step"))
        if on_round:
            on_round(number + 1)
    return seconds


Measured = tuple[dict[str, list[float]], dict[str, dict[str, float]]]
"""By variant: seconds of all steps, warm-up first; baseline_mb and peak_mb."""


def groups(case: str, variants: Sequence[str]) -> list[list[str]]:
    """Variants that take turns with each other. Each holds its models and what its heap keeps: with long rows all five
    need more than 24 GiB, so that trl_gkd takes turns with `cached` alone."""
    if case != "long" or not {"trl_gkd", "cached"} <= set(variants):
        return [list(variants)]
    return [[name for name in variants if name != "trl_gkd"], ["cached", "trl_gkd"]]


def run_job(job: Job, variants: Sequence[str], on_round: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Measure the variants of a job against each other; returns its record."""
    store = Worker("store", write_store, job)
    try:
        store.ask("done", go=False)
    finally:
        store.end()
    return record(
        job.case, job.dtype, job.student, [run_group(job, group, on_round) for group in groups(job.case, variants)]
    )


def run_group(job: Job, variants: Sequence[str], on_round: Callable[[int], None] | None) -> Measured:
    """Seconds of every step, and memory, by variant."""
    workers: list[Worker] = []
    try:
        for variant in variants:  # one after the other, so that building one does not slow another down
            workers.append(Worker(variant, run_variant, variant, job))
            workers[-1].ask("ready", go=False)
        seconds = alternate(workers, job.all_steps, on_round)
        return seconds, {worker.name: worker.ask("done") for worker in workers}
    finally:
        for worker in workers:
            worker.end()


def record(case: str, dtype: str, student: str, measured: Sequence[Measured]) -> dict[str, Any]:
    """What is reported of a job.

    measured: of each group. A ratio of seconds is of two variants that took turns; a variant of two groups shows what
    the first one saw.
    """
    found: dict[str, Any] = {"samples": {}, "seconds": {}, "peak_mb": {}, "baseline_mb": {}}
    of_seconds: dict[str, float] = {}
    for seconds, memory in measured:
        samples = {name: values[WARMUP_STEPS:] for name, values in seconds.items()}
        median = {name: statistics.median(values) for name, values in samples.items()}
        of_seconds = ratios(median, RATIOS) | of_seconds
        memories = {key: {name: values[key] for name, values in memory.items()} for key in ("peak_mb", "baseline_mb")}
        for key, values in {"samples": samples, "seconds": median, **memories}.items():
            found[key] |= {name: value for name, value in values.items() if name not in found[key]}
    of_peaks = {f"peak {name}": value for name, value in ratios(found["peak_mb"], PEAK_RATIOS).items()}
    return {"case": case, "dtype": dtype, "student": student, **found, "ratios": of_seconds | of_peaks}


def ratios(values: dict[str, float], pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """{"a/b": value of a / value of b} for the pairs that were both measured."""
    return {f"{a}/{b}": values[a] / values[b] for a, b in pairs if a in values and b in values}


def plan(quick: bool, case: str | None = None, dtype: str | None = None) -> list[tuple[str, str, str]]:
    """(case, dtype, student) of every job. quick: the short case with the full student."""
    cases = [case] if case else ["short"] if quick else list(CASES)
    students = STUDENTS[:1] if quick else STUDENTS
    return [(name, kind, student) for name in cases for kind in ([dtype] if dtype else DTYPES) for student in students]


def run(
    jobs: Sequence[tuple[str, str, str]], make_job: Callable[..., Job], console: Console
) -> Iterator[dict[str, Any]]:
    """The record of each job; bfloat16 is left out, with the reason, where the processor has none to speak of."""
    reason = why_no_bf16(product_seconds(torch.float32), product_seconds(torch.bfloat16))
    about = {"machine": machine_class(), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['machine']}; {packages}", highlight=False)
    if len(variants_here("short")) < len(TRAINERS):
        console.print("trl is not installed, so trl_gkd is left out: pip install 'tutelage[dev]'", markup=False)
    for case, dtype, student in jobs:
        name = f"{case}, {dtype}, {student} student"
        if dtype == "bf16" and reason:
            console.print(f"{name}: skipped, {reason}", markup=False)
            yield {"case": case, "dtype": dtype, "student": student, "skipped": reason, **about}
            continue
        variants = variants_here(case)
        with tempfile.TemporaryDirectory() as folder, console.status(f"{name}: building") as status:
            job = make_job(case=case, dtype=dtype, student=student, folder=folder)
            found = run_job(job, variants, partial(_show_round, status, name, job.all_steps))
        console.print(table(found))
        yield found | about


def _show_round(status: Status, name: str, rounds: int, number: int) -> None:
    status.update(f"{name}: {number} of {rounds} steps each")


def table(found: dict[str, Any]) -> Table:
    """One record as a table: a line a variant, the ratios below."""
    caption = "\n".join(f"{name} {value:.2f}" for name, value in found["ratios"].items())
    view = Table(title=f"{found['case']}, {found['dtype']}, {found['student']} student", caption=caption)
    for heading in ("variant", "s a step (median)", "fastest", "slowest", "peak MB", "of which imports"):
        view.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, seconds in found["seconds"].items():
        samples = found["samples"][name]
        times = [f"{value:.3f}" for value in (seconds, min(samples), max(samples))]
        view.add_row(name, *times, f"{found['peak_mb'][name]:,.0f}", f"{found['baseline_mb'][name]:,.0f}")
    return view


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Short case, full student.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")] = None,
    case: Annotated[Literal["short", "long", "cross"] | None, typer.Option(help="This case only.")] = None,
    dtype: Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="This type only.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Measured steps a variant, after two to warm up.")] = None,
) -> None:
    """Seconds and peak memory of a training step: the limit, plain fine-tuning, cached and live teacher, TRL's GKD."""

    def make_job(case: str, **what: Any) -> Job:
        return Job(case=case, batch=CASES[case], steps=steps or STEPS[case], threads=cores(), **what)

    records = []
    for found in run(plan(quick, case, dtype), make_job, Console()):
        records.append(found)
        if json_file:  # after every job: a run that is stopped keeps what it has
            json_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
