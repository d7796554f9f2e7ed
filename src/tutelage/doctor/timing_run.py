"""A timing run: a few steps of both models on a few rows. Measures time, memory and disk, and gives first losses.

Everything is written into a temporary folder; the run folder is not touched.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from tutelage.data.collate import pad_id_of
from tutelage.data.encode import Subset
from tutelage.data.token_store import answer_lengths
from tutelage.doctor.fit_checks import FittingRows
from tutelage.doctor.headroom import PairedLosses
from tutelage.method.weighting import constant_weight
from tutelage.models.adapters import merged
from tutelage.models.evaluation import Evaluator
from tutelage.models.load import load_trainable
from tutelage.models.placement import device
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Recipe
from tutelage.tasks.base import BaseTask
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.callbacks import SaveAt
from tutelage.training.trainer import DistillTrainer, Guidance, train, training_arguments
from tutelage.utils.memory import peak_memory

STEPS = (6, 40)
"""Fewest and most optimizer steps of each training; one pass over the rows, within these."""
WARM_UP = 2
"""First steps that are not timed."""
ANSWERED_ROWS = 32
CHECKPOINT = "checkpoint-timing"

Result = TypeVar("Result")


@dataclass
class ModelTimings:
    """What one model takes, in seconds and bytes."""

    load: float = 0.0
    step: float = 0.0
    """An optimizer step on gold."""
    guided_step: float = 0.0
    """A step of distillation, teacher read from the cache (student only)."""
    save: float = 0.0
    read: float = 0.0
    """The loss of a row by a forward pass."""
    answer: float = 0.0
    """The answer to a row, decoded."""
    cache: float = 0.0
    """A row read into the cache (teacher only)."""
    saved_bytes: int = 0
    """A resume checkpoint: weights and optimizer."""
    weight_bytes: int = 0
    """The weights that are kept."""
    memory: int = 0
    """Peak in training."""


@dataclass
class Timings:
    """What both models take."""

    rows: int
    steps: int
    models: dict[str, ModelTimings] = field(default_factory=dict)
    """By role."""
    losses: PairedLosses | None = None
    """On the validation rows, after the few steps; None without validation rows."""


class _Stopwatch(TrainerCallback):
    """Times at which steps end, and how long saving takes."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.ends: list[float] = []
        self.save = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self.ends.append(time.perf_counter())

    def on_save(self, *_: Any, **__: Any) -> None:
        """A resume checkpoint is written; writing began when the step ended."""
        self.save = time.perf_counter() - self.ends[-1]

    @property
    def step(self) -> float:
        """Mean seconds of a step without the first ones."""
        spans = np.diff(self.ends)[WARM_UP - 1 :]
        return float(spans.mean()) if len(spans) else 0.0


class TimingRun:
    """A timing run of a recipe on `count` of its rows, in `folder`."""

    def __init__(self, recipe: Recipe, fitting: FittingRows, task: BaseTask, folder: Path, count: int) -> None:
        """Draw the rows."""
        self.recipe, self.fitting, self.folder = recipe, fitting, folder
        self.count = count
        self.train, self.validation = (self._drawn("student", split) for split in ("train", "validation"))
        self.bf16 = bool(recipe.trainer.get("bf16", bf16_pays(device().type)[0])) and "fp16" not in recipe.trainer
        arguments = self._arguments("distill")
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
        self.steps = int(np.clip(-(-len(self.train) // batch), *STEPS))
        # A trained model ends its answers, and a batch takes as long as its longest answer; after a few steps a model
        # would write up to the limit. So decoding stops at the usual length.
        settings = (recipe.task.decoding, recipe.evaluate.batch_size)
        self.evaluators = {
            role: Evaluator(task, rows.encoder, rows.vocabulary, usual_answer_length(rows), *settings)
            for role, rows in ((role, fitting.of(role)) for role in ("student", "teacher"))
        }

    def run(self, say: Callable[[str], None]) -> Timings:
        """Student on gold, teacher on gold, the teacher's cache, student on the teacher. say: gets what is going on."""
        timings, losses = Timings(len(self.train), self.steps), {}
        for role in ("student", "teacher"):
            say(f"timing run: {self.steps} steps of the {role} on {len(self.train):,} rows")
            timings.models[role], losses[role] = self._time(role)
        say(f"timing run: {self.steps} steps of distillation")
        timings.models["student"].guided_step = self._distil()
        if len(self.validation):
            rows = f"{len(self.train):,} rows, {len(self.validation):,} validation rows"
            source = f"a timing run of {self.steps} steps each on {rows}"
            timings.losses = PairedLosses(losses["student"], losses["teacher"], source, timing_run=True)
        return timings

    def _drawn(self, role: str, split: str) -> Subset:
        """The same rows for both models."""
        store = self.fitting.of(role).stores[split]
        indices = np.sort(np.random.default_rng(self.recipe.seed).permutation(len(store))[: self.count])
        return Subset(store, indices.tolist())

    def _arguments(self, *sections: Any, **more: Any) -> Any:
        given = self.recipe.trainer_arguments(*sections) | {"max_tokens_per_batch": self.recipe.max_tokens_per_batch}
        given = given if "fp16" in given else {"bf16": self.bf16} | given
        return training_arguments(self.folder / "-".join(sections), given | more, seed=self.recipe.seed)

    def _trainer(
        self, model: nn.Module, sections: Sequence[str], guidance: Guidance | None, *callbacks: Any
    ) -> DistillTrainer:
        role = "teacher" if "teach" in sections else "student"
        return DistillTrainer(
            model,
            self._arguments(*sections, max_steps=self.steps, report_to="none"),
            list(self._drawn(role, "train")),
            vocabulary=self.fitting.of(role).vocabulary,
            pad_id=pad_id_of(self.fitting.of(role).encoder.tokenizer),
            guidance=guidance,
            fused=self.recipe.fused_loss,
            callbacks=callbacks,
        )

    def _load(self, role: str) -> nn.Module:
        """A model to train."""
        cut = self.fitting.vocabulary if role == "student" else None
        return load_trainable(getattr(self.recipe, role), None, self.recipe.seed, cut)

    def _time(self, role: str) -> tuple[ModelTimings, np.ndarray]:
        """Train a model on gold and read with it; [rows] its losses on the validation rows."""
        timings, watch = ModelTimings(), _Stopwatch()
        sections = ("teach",) if role == "teacher" else ("distill", "anchor")
        with peak_memory(every=0.02) as peak:
            model, timings.load = _timed(lambda: self._load(role))
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            saves = 12 * trained < shutil.disk_usage(self.folder.parent).free / 2  # weights, two moments in float32
            train(self._trainer(model, sections, None, SaveAt([self.steps] if saves else []), watch))
        timings.step, timings.save, timings.memory = watch.step, watch.save, peak()
        files = [path for path in (self.folder / "-".join(sections)).rglob("*") if path.is_file()]
        weights = [path for path in files if path.suffix == ".safetensors"]
        timings.saved_bytes = sum(path.stat().st_size for path in files) if saves else 12 * trained
        timings.weight_bytes = sum(path.stat().st_size for path in weights) if saves else 4 * trained
        losses = self._read(merged(model).eval(), timings, role)
        del model
        gc.collect()
        return timings, losses

    def _read(self, model: nn.Module, timings: ModelTimings, role: str) -> np.ndarray:
        """Time reading, answering and, for the teacher, caching; [rows] losses on the validation rows."""
        with torch.autocast(device().type, torch.bfloat16, enabled=self.bf16):
            validation = self._drawn(role, "validation")
            losses, seconds = _timed(lambda: self.evaluators[role].losses(model, validation))
            timings.read = seconds / max(1, len(validation))
            timings.answer = self._answer_seconds(model, self.evaluators[role])
            timings.cache = self._cache_seconds(model) if role == "teacher" else 0.0
        return losses

    def _answer_seconds(self, model: nn.Module, evaluator: Evaluator) -> float:
        examples = self.fitting.examples["validation"][:ANSWERED_ROWS]
        if not examples:
            return 0.0
        _, seconds = _timed(lambda: evaluator.answers(model, evaluator.eval_set(examples)))
        return seconds / len(examples)

    def _cache_seconds(self, model: nn.Module) -> float:
        section, fitting = self.recipe.cache, self.fitting.of("teacher")
        builder = CacheBuilder(
            self.folder / "cache",
            list(self._drawn("teacher", "train")),
            vocabulary=fitting.vocabulary,
            pad_id=pad_id_of(fitting.encoder.tokenizer),
            dtype=getattr(torch, section.dtype),
            batch_size=section.batch_size,
            shard_rows=section.shard_rows,
            top_k=section.top_k,
            reader=self.fitting.readers and self.fitting.readers[1],
        )
        _, seconds = _timed(lambda: builder.build(CHECKPOINT, model, {}))
        return seconds / len(self.train)

    def _distil(self) -> float:
        """Seconds of a step of distillation."""
        own = list(self._drawn("teacher", "train")) if self.fitting.own else None
        reader = self.fitting.readers and self.fitting.readers[0]
        rows, place = list(self.train), self.folder / "cache"
        source = CachedTeacher(place, [CHECKPOINT], rows, bf16=self.bf16, student=reader, own_rows=own)
        watch = _Stopwatch()
        weight = constant_weight(len(self.train), 0.5)
        guidance = Guidance(source, CHECKPOINT, weight, "forward_kl", self.recipe.distill.temperature)
        train(self._trainer(self._load("student"), ("distill",), guidance, watch))
        return watch.step


def usual_answer_length(fitting: FittingRows) -> int:
    """Tokens that nine of ten training answers do not exceed."""
    return max(1, int(np.quantile(answer_lengths(fitting.stores["train"]), 0.9)))


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began
