"""A short trial of both models on a few rows: timed training steps, reading, answering, peak memory, and losses for a
first sight.

Everything is written into a temporary folder; the run folder is never touched.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from tutelage.data.collate import pad_id_of
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths
from tutelage.doctor.fit_checks import Fitted
from tutelage.doctor.headroom import Pair
from tutelage.method.weighting import constant_weight
from tutelage.models.evaluation import Evaluator
from tutelage.models.load import device, load_trainable, merged
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Recipe
from tutelage.tasks.base import BaseTask
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.trainer import DistillTrainer, Guidance, SaveAt, train, training_arguments
from tutelage.utils.memory import peak_memory

STEPS = (6, 40)
"""Fewest and most optimizer steps of each trial training; as many as one pass over the probe rows, within these."""
WARM_UP = 2
"""First steps that set things up and are not counted."""
ANSWERED_ROWS = 32
NAME = "checkpoint-trial"


@dataclass
class Part:
    """One model in its trial, in seconds and bytes."""

    load: float = 0.0
    step: float = 0.0
    """An optimizer step on gold."""
    guided_step: float = 0.0
    """A step of distillation, teacher read from the cache (student only)."""
    save: float = 0.0
    read: float = 0.0
    """A row's loss by a forward pass."""
    answer: float = 0.0
    """A row's answer, decoded."""
    cache: float = 0.0
    """A row read into the cache (teacher only)."""
    saved_bytes: int = 0
    """A restart point: weights and optimizer."""
    weight_bytes: int = 0
    """What is kept of it."""
    memory: int = 0
    """Peak in training."""


@dataclass
class Trial:
    """Both models tried."""

    rows: int
    steps: int
    parts: dict[str, Part] = field(default_factory=dict)
    pair: Pair | None = None


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
        """A restart point is written; it was begun when the step ended."""
        self.save = time.perf_counter() - self.ends[-1]

    @property
    def step(self) -> float:
        """Mean seconds of a step, the first ones left out."""
        spans = np.diff(self.ends)[WARM_UP - 1 :]
        return float(spans.mean()) if len(spans) else 0.0


class Trials:
    """The trial of a recipe on `count` of its rows, in `folder`."""

    def __init__(self, recipe: Recipe, fitted: Fitted, task: BaseTask, folder: Path, count: int) -> None:
        """Draw the rows."""
        self.recipe, self.fitted, self.folder = recipe, fitted, folder
        self.pad_id = pad_id_of(fitted.encoder.tokenizer)
        self.train, self.validation = (self._drawn(split, count) for split in ("train", "validation"))
        self.bf16 = bool(recipe.trainer.get("bf16", bf16_pays(device().type)[0])) and "fp16" not in recipe.trainer
        lengths = answer_lengths(fitted.stores["train"])
        # A trained model ends its answers, a batch with its longest one; a model after a few steps would go on to the
        # limit.
        self.usual_answer = max(1, int(np.quantile(lengths, 0.9)))
        sizes = (recipe.task.decoding, recipe.evaluate.batch_size)
        self.evaluator = Evaluator(task, fitted.encoder, fitted.vocabulary, self.usual_answer, *sizes)

    def run(self, say: Callable[[str], None]) -> Trial:
        """Student on gold, teacher on gold, the teacher's cache, student on the teacher."""
        batch = self._arguments("distill").train_batch_size * self._arguments("distill").gradient_accumulation_steps
        self.steps = int(np.clip(-(-len(self.train) // batch), *STEPS))
        trial, losses = Trial(len(self.train), self.steps), {}
        for role in ("student", "teacher"):
            say(f"trial: {self.steps} steps of the {role} on {len(self.train):,} rows")
            trial.parts[role], losses[role] = self._try(role)
        say(f"trial: {self.steps} steps of distillation")
        trial.parts["student"].guided_step = self._distil()
        where = (
            f"a trial of {self.steps} steps each on {len(self.train):,} rows, {len(self.validation):,} validation rows"
        )
        trial.pair = Pair(losses["student"], losses["teacher"], where, probed=True) if len(self.validation) else None
        return trial

    def _drawn(self, split: str, count: int) -> Sequence[EncodedRow]:
        store = self.fitted.stores[split]
        places = np.sort(np.random.default_rng(self.recipe.seed).permutation(len(store))[:count])
        return [store[int(place)] for place in places]

    def _arguments(self, *sections: Any) -> Any:
        given = self.recipe.trainer_arguments(*sections)
        given = given if "fp16" in given else {"bf16": self.bf16} | given
        more = {"max_steps": self.steps, "report_to": "none"} if hasattr(self, "steps") else {}
        return training_arguments(self.folder / "-".join(sections), given | more, seed=self.recipe.seed)

    def _trainer(
        self, model: nn.Module, sections: Sequence[str], guidance: Guidance | None, *callbacks: Any
    ) -> DistillTrainer:
        return DistillTrainer(
            model, self._arguments(*sections), self.train, vocabulary=self.fitted.vocabulary, pad_id=self.pad_id,
            guidance=guidance, fused=self.recipe.fused_loss, callbacks=callbacks,
        )  # fmt: skip

    def _try(self, role: str) -> tuple[Part, np.ndarray]:
        part, sections, watch = Part(), ("teach",) if role == "teacher" else ("distill", "anchor"), _Stopwatch()
        with peak_memory(every=0.02) as peak:
            model, part.load = self._timed(lambda: load_trainable(getattr(self.recipe, role), None, self.recipe.seed))
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            kept = 12 * trained < shutil.disk_usage(self.folder.parent).free / 2  # weights and two moments in float32
            train(self._trainer(model, sections, None, SaveAt([self.steps] if kept else []), watch))
        part.step, part.save, part.memory = watch.step, watch.save, peak()
        saved = [path for path in (self.folder / "-".join(sections)).rglob("*") if path.is_file()]
        part.saved_bytes = sum(path.stat().st_size for path in saved) if kept else 12 * trained
        part.weight_bytes = (
            sum(path.stat().st_size for path in saved if path.suffix == ".safetensors") if kept else 4 * trained
        )
        found = self._reads(merged(model).eval(), part, role)
        del model
        gc.collect()
        return part, found

    def _reads(self, model: nn.Module, part: Part, role: str) -> np.ndarray:
        """Time reading, answering and, for the teacher, caching; [rows] losses on the validation rows."""
        with self._autocast():
            found, seconds = self._timed(lambda: self.evaluator.losses(model, self.validation).rows)
            part.read = seconds / max(1, len(self.validation))
            part.answer = self._answers(model)
            part.cache = self._cache(model) if role == "teacher" else 0.0
        return found

    def _answers(self, model: nn.Module) -> float:
        examples = self.fitted.examples["validation"][:ANSWERED_ROWS]
        if not examples:
            return 0.0
        _, seconds = self._timed(lambda: self.evaluator.answers(model, self.evaluator.exam(examples)))
        return seconds / len(examples)

    def _cache(self, model: nn.Module) -> float:
        section = self.recipe.cache
        builder = CacheBuilder(
            self.folder / "cache", self.train, vocabulary=self.fitted.vocabulary, pad_id=self.pad_id,
            dtype=getattr(torch, section.dtype), batch_size=section.batch_size, shard_rows=section.shard_rows, top_k=section.top_k,
        )  # fmt: skip
        _, seconds = self._timed(lambda: builder.build(NAME, model, {}))
        return seconds / len(self.train)

    def _distil(self) -> float:
        source, watch = CachedTeacher(self.folder / "cache", [NAME], self.train, bf16=self.bf16), _Stopwatch()
        guidance = Guidance(
            source, NAME, constant_weight(len(self.train), 0.5), "forward_kl", self.recipe.distill.temperature
        )
        student = load_trainable(self.recipe.student, None, self.recipe.seed)
        train(self._trainer(student, ("distill",), guidance, watch))
        return watch.step

    def _autocast(self) -> Any:
        return torch.autocast(device().type, torch.bfloat16, enabled=self.bf16)

    @staticmethod
    def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        return work(), time.perf_counter() - began
