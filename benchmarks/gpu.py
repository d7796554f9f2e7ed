"""What only a GPU can show, in one command of at most twelve minutes: `python -m benchmarks.gpu --json FILE`.

    correct      losses and gradients on the device: fused against plain, cached against live teacher
    step         seconds, peak memory, tokens a second and model FLOPs utilisation of a training step, by variant (those
                 of benchmarks.step, and plain fine-tuning with Liger's fused loss where liger-kernel is installed)
    cache        tokens a second of caching a teacher checkpoint
    decode       rows a second of greedy answers
    end-to-end   `tutelage demo` on the device and on the CPU: scores, each with its interval

Nothing is downloaded: models have the shapes of Llama-3.2-3B and 1B and of Qwen2.5-0.5B, with random weights, and rows
are random ids. Training is in bfloat16 by autocast, weights in float32. `--tiny` takes shapes that a CPU can run, which
is how the tests run it; without a GPU it is the default. Sections that do not fit into `--minutes` are left out and
named. FILE is written after each section.

Model FLOPs of a step: 6 for every entry of the matrices and token that goes through it (the head: answer positions
alone), and 6 x layers x hidden x tokens for the causal attention of a token; the teacher's are not counted, so variants
compare. The peak is the maker's dense bf16 figure for the device, where it is known.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from benchmarks.machine import machine_class, memory_mb, versions
from benchmarks.shapes import PAD, Batch, Shape, build_model, random_rows
from benchmarks.variants import CHECKPOINT, TRAINERS, WARMUP_STEPS, Job, plain_trainer, variants_here
from tutelage.teacher.build_cache import CacheBuilder

LLAMA_3B = Shape(hidden=3072, layers=28, heads=24, kv_heads=8, intermediate=8192, vocabulary=128_256)
LLAMA_1B = Shape(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocabulary=128_256)
QWEN_05B = Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocabulary=151_936)
TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=2, intermediate=64, vocabulary=512)
PAIRS = {"llama-3b-1b": (LLAMA_3B, LLAMA_1B), "qwen-0.5b": (QWEN_05B, QWEN_05B)}
TINY_PAIRS = {"tiny": (TINY, TINY.with_layers(1))}
BATCHES = {"short": Batch(rows=16, tokens=256, answer_tokens=16), "long": Batch(rows=8, tokens=1024, answer_tokens=512)}
TINY_BATCHES = {"short": Batch(rows=2, tokens=16, answer_tokens=4)}
STEPS = 8
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bf16 FLOP a second by the makers' data sheets; part of the device's name -> figure."""
RESERVE_S = 150.0
"""Seconds that the end-to-end section is given."""


@dataclass(frozen=True)
class Plan:
    """What runs where."""

    device: str
    """`cuda` or `cpu`."""
    tiny: bool
    deadline: float
    """`time.monotonic()` after which no section starts."""

    @property
    def pairs(self) -> dict[str, tuple[Shape, Shape]]:
        """Teacher and student by name."""
        return TINY_PAIRS if self.tiny else PAIRS

    @property
    def batches(self) -> dict[str, Batch]:
        """By case."""
        return TINY_BATCHES if self.tiny else BATCHES


class StepSeconds(TrainerCallback):
    """Seconds of each step, with the device idle at both ends: the only waits that this benchmark adds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        synchronise()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        synchronise()
        self.seconds.append(time.perf_counter() - self.start)


def synchronise() -> None:
    """Wait until the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb() -> float:
    """Highest memory since `forget`: of the device, or of this process where that is the CPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else memory_mb("VmHWM")


def forget() -> None:
    """Free what the last variant left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_flops() -> float | None:
    """Of this device; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def step_flops(shape: Shape, batch: Batch) -> float:
    """Of the student's forward and backward pass over a batch."""
    kv = shape.hidden * shape.kv_heads // shape.heads
    layer = 2 * shape.hidden**2 + 2 * shape.hidden * kv + 3 * shape.hidden * shape.intermediate
    tokens = batch.rows * batch.tokens
    attention = 6 * shape.layers * shape.hidden * batch.tokens * tokens
    head = 6 * shape.hidden * shape.vocabulary * batch.rows * batch.answer_tokens
    return 6 * shape.layers * layer * tokens + attention + head


# --- sections ---


def correct(plan: Plan) -> Iterator[dict[str, Any]]:
    """The largest relative difference of loss and gradients between two forms of the same step."""
    shape = TINY if plan.tiny else QWEN_05B.with_layers(2)
    batch = Batch(rows=4, tokens=32, answer_tokens=8)
    for dtype in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            job = Job("correct", batch, dtype, "full", folder, 1, shape, shape.with_layers(1), device=plan.device)
            write_store(job, torch.float32)
            plain = gradients(job, "cached", fused=False)
            for name, found in (("fused", gradients(job, "cached")), ("live", gradients(job, "live", fused=False))):
                yield {"dtype": dtype, "form": name, "against": "plain, cached", "difference": apart(found, plain)}


def gradients(job: Job, variant: str, fused: bool = True) -> list[torch.Tensor]:
    """Loss and gradients of the first batch."""
    trainer = TRAINERS[variant](job)
    trainer._head_loss.fused = fused and trainer._head_loss.fused
    trainer.create_optimizer_and_scheduler(1)
    model = trainer.accelerator.prepare_model(trainer.model.to(job.device)).train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(len(batch["row"])))
    loss.backward()
    return [loss.detach(), *(p.grad.detach() for p in model.parameters() if p.grad is not None)]


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference of two tensors, relative to the largest entry of the expected one."""
    return max(
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in zip(found, expected, strict=True)
    )


def steps(plan: Plan) -> Iterator[dict[str, Any]]:
    """A training step of every variant that fits into memory."""
    for pair, (teacher, student) in plan.pairs.items():
        for case, batch in plan.batches.items():
            with tempfile.TemporaryDirectory() as folder:
                job = Job(case, batch, "bf16", "full", folder, STEPS, teacher, student, device=plan.device)
                write_store(job, torch.bfloat16)
                for variant in variants():
                    if time.monotonic() > plan.deadline:
                        yield {"pair": pair, "case": case, "variant": variant, "left_out": "no time left"}
                        continue
                    yield {"pair": pair, "case": case, "variant": variant} | measured_step(job, variant)


def variants() -> list[str]:
    """Those of benchmarks.step that run here, and Liger's."""
    return [*variants_here(), *(["sft_liger"] if find_spec("liger_kernel") else [])]


def measured_step(job: Job, variant: str) -> dict[str, Any]:
    """Seconds, memory and rates of one variant; the reason where it does not run."""
    forget()
    clock = StepSeconds()
    try:
        trainer = plain_trainer(job, use_liger_kernel=True) if variant == "sft_liger" else TRAINERS[variant](job)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    except (RuntimeError, ValueError, ImportError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    seconds = median(clock.seconds[WARMUP_STEPS:])
    rate = step_flops(job.student_shape, job.batch) / seconds
    peak = peak_flops()
    return {
        "seconds": seconds,
        "samples": clock.seconds[WARMUP_STEPS:],
        "peak_mb": peak_mb(),
        "tokens_per_second": job.batch.rows * job.batch.tokens / seconds,
        "model_tflops": rate / 1e12,
        "mfu": rate / peak if peak else None,
    }


def write_store(job: Job, dtype: torch.dtype) -> int:
    """Cache the teacher's states for the job's rows; returns the number of tokens read."""
    rows, vocabulary = job.rows(), job.teacher_shape.vocabulary
    builder = CacheBuilder(
        Path(job.folder), rows, vocabulary=vocabulary, pad_id=PAD, dtype=dtype, batch_size=job.batch.rows
    )
    model = job.make_teacher().to(job.device)
    model = model.bfloat16() if job.dtype == "bf16" else model
    if note := builder.build(CHECKPOINT, model, {}):
        raise RuntimeError(f"the store is not what is to be measured: {note}")
    return len(rows) * job.batch.tokens


def caching(plan: Plan) -> Iterator[dict[str, Any]]:
    """Tokens a second of a checkpoint's one pass, file writing included."""
    for pair, (teacher, student) in plan.pairs.items():
        batch = next(iter(plan.batches.values()))
        with tempfile.TemporaryDirectory() as folder:
            job = Job(
                "cache", batch, "bf16", "full", folder, 4 if plan.tiny else 30, teacher, student, device=plan.device
            )
            forget()
            start = time.perf_counter()
            tokens = write_store(job, torch.bfloat16)
            yield {"pair": pair, "tokens_per_second": tokens / (time.perf_counter() - start), "peak_mb": peak_mb()}


def decoding(plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows a second of greedy answers of 16 tokens at most."""
    from benchmarks.decode import Ids
    from tutelage.models.generation import generate_answers

    for pair, (_, student) in plan.pairs.items():
        count, longest = (4, 4) if plan.tiny else (256, 16)
        rows = random_rows(Batch(count, 16 if plan.tiny else 256, 2), count, student.vocabulary, 5)
        model = build_model(student, 2).to(plan.device).bfloat16().eval()
        prompts, ids = [row.prompt for row in rows], Ids(student.vocabulary)
        for batch_size in (1, 32):
            some = prompts[: min(count, 8 * batch_size)]
            forget()
            start = time.perf_counter()
            generate_answers(model, ids, some, max_new_tokens=longest, batch_size=batch_size)
            synchronise()
            seconds = time.perf_counter() - start
            yield {"pair": pair, "batch": batch_size, "rows_per_second": len(some) / seconds, "peak_mb": peak_mb()}


def end_to_end(plan: Plan) -> Iterator[dict[str, Any]]:
    """The demo's classification on the device and on the CPU, in processes of their own."""
    devices = {plan.device: {}, "cpu": {"CUDA_VISIBLE_DEVICES": ""}}
    for name, settings in devices.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tutelage", "demo", folder, "--task", "classification"]
            start = time.perf_counter()
            left = max(1.0, plan.deadline + RESERVE_S - time.monotonic())
            try:
                done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=left)
            except subprocess.TimeoutExpired:
                yield {"device": name, "failed": "no time left"}
                continue
            if done.returncode:
                yield {"device": name, "failed": done.stderr[-500:]}
                continue
            path = Path(folder) / "classification" / "evaluate" / "scores.json"
            scores = json.loads(path.read_text(encoding="utf-8"))
            yield {"device": name, "seconds": time.perf_counter() - start, "scores": scores}


Section = Callable[[Plan], Iterator[dict[str, Any]]]
SECTIONS: dict[str, tuple[Section, float]] = {
    "correct": (correct, 20),
    "step": (steps, 60),
    "cache": (caching, 40),
    "decode": (decoding, 40),
    "end-to-end": (end_to_end, RESERVE_S),
}
"""Section -> what runs it, and the seconds that must be left for it to start."""


def run(plan: Plan, names: list[str], console: Console) -> Iterator[dict[str, Any]]:
    """Every line that the sections give, with the section's name."""
    for name in names:
        section, least = SECTIONS[name]
        if not plan.tiny and time.monotonic() + least > plan.deadline + RESERVE_S:
            console.print(f"{name}: left out, no time left", markup=False)
            yield {"section": name, "left_out": "no time left"}
            continue
        for line in section(plan):
            shown = {key: value for key, value in line.items() if key != "samples"}
            console.print(f"{name}: {json.dumps(shown)}", markup=False, highlight=False, soft_wrap=True)
            yield {"section": name} | line


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the lines to this file.")] = None,
    minutes: Annotated[float, typer.Option(help="Start nothing that would end later.")] = 12.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Shapes that a CPU can run.")] = False,
    section: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SECTIONS)}.")] = None,
) -> None:
    """Correctness, speed, memory and one whole run on this machine's GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan(device, tiny or device == "cpu", time.monotonic() + 60 * minutes - RESERVE_S)
    name = torch.cuda.get_device_name() if device == "cuda" else machine_class()
    about = {"device": name, "machine": machine_class(), "versions": versions()}
    console, lines = Console(), []
    console.print(f"{name}{' (tiny shapes)' if plan.tiny else ''}", markup=False)
    for line in run(plan, section or list(SECTIONS), console):
        lines.append(line)
        if json_file:
            json_file.write_text(json.dumps(about | {"lines": lines}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
