"""One run as the stages see it: recipe, folder, prepared rows, tokenizer, task; loaded when first asked for, shared
after that."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.recipe.load import flatten, varied
from tutelage.recipe.schema import Model, Recipe
from tutelage.records import Example
from tutelage.run.manifest import Work, fingerprint
from tutelage.run.stage_inputs import inputs_of
from tutelage.tasks import make_task
from tutelage.tasks.base import BaseTask
from tutelage.utils.console import Screen
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.memory import peak_memory

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

    from tutelage.data.encode import EncodedRow, Encoder
    from tutelage.data.token_store import TokenStore
    from tutelage.models.evaluation import Evaluator, Exam
    from tutelage.teacher.build_cache import CacheBuilder


_TOLD_ONLY = re.compile(r"(^|\.)trainer\.(report_to|run_name|logging_\w+)$")
"""Training arguments about what is told of a training and to whom: another tracker makes no result stale."""


@dataclass
class Workspace:
    """A run folder with its recipe."""

    recipe: Recipe
    screen: Screen = field(default_factory=Screen)
    force: bool = False
    """Make again what a stage has already finished."""
    rebuild: bool = False
    """Make again what was made from other inputs; what is fresh stays."""
    _exams: dict[str, Exam] = field(default_factory=dict, init=False, repr=False)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir)

    def varied(self, method: str) -> Workspace:
        """This run as a method sees it whose name carries settings of its own."""
        recipe = varied(self.recipe, method)
        return self if recipe is self.recipe else replace(self, recipe=recipe)

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16: as the recipe's `trainer` says, or else as `prepare` found to be fast on this
        machine."""
        given = self.recipe.trainer
        return bool(given.get("bf16")) if "bf16" in given or "fp16" in given else self.about["bf16"]

    def trainer_arguments(self, *sections: Literal["teach", "anchor", "distill"]) -> dict[str, Any]:
        """TrainingArguments of one training, with the precision that this run computes in."""
        given = self.recipe.trainer_arguments(*sections)
        return given if "fp16" in given else {"bf16": self.bf16} | given

    def settings(self, *sections: str) -> dict[str, Any]:
        """Values of the recipe under these dotted names, flat: what a stage's result depends on."""
        flat = {key: value for key, value in flatten(self.recipe).items() if not _TOLD_ONLY.search(key)}
        return {k: v for k, v in flat.items() if any(k == s or k.startswith(s + ".") for s in sections)}

    def upstream(self, *folders: str) -> dict[str, str]:
        """Fingerprints of the stages that a result is made from. Raises StaleArtifactError if one is missing or
        stale."""
        return {f"stage {name}": fingerprint(self.folder / name, inputs_of(self, name)) for name in folders}

    @contextmanager
    def work(self, name: str, inputs: dict[str, Any], *, rebuild_stale: bool = False) -> Iterator[Work | None]:
        """Work in a folder of the run: None if its result is there and fresh, otherwise its record; finished on
        leaving."""
        work = Work(self.folder / name, inputs, force=self.force, rebuild_stale=rebuild_stale or self.rebuild)
        began = time.monotonic()
        if not work.prepare():
            self.screen.say(f"{name}: done already")
            yield None
            return
        for note in work.notes:
            self.screen.say(note)
        with peak_memory() as peak:
            yield work
            work.about["memory"] = peak()
        work.finish(time.monotonic() - began)

    # --- what `prepare` wrote ---

    @cached_property
    def about(self) -> dict[str, Any]:
        """prepare/data.json: labels, choice, vocabulary, max_new_tokens, bf16."""
        return read_json(self.folder / "prepare" / "data.json")

    @cached_property
    def task(self) -> BaseTask:
        """The task with its resolved label set."""
        return make_task(self.recipe.task, self.about["labels"], choice=self.about["choice"])

    # --- torch from here on ---

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer; `prepare` has checked that the teacher's is the same."""
        from tutelage.models.load import load_tokenizer

        return load_tokenizer(self.recipe.student)

    @cached_property
    def encoder(self) -> Encoder:
        """Rendering of rows as token ids, shared by all models."""
        return make_encoder(self.recipe, self.tokenizer)

    def encoded(self, split: str) -> TokenStore:
        """Rows of a split as token ids; those that do not fit were left out by `prepare`."""
        from tutelage.data.token_store import TokenStore

        return TokenStore(self.folder / "prepare" / "tokens" / f"{split}.arrow", split)

    def load(self, model: Model, folder: Path | str | None = None) -> nn.Module:
        """A model to read or answer with: weights kept in float32 for training are loaded in bfloat16 where that is
        fast."""
        from tutelage.models.load import load_model

        if self.bf16 and model.dtype == "float32":
            model = model.model_copy(update={"dtype": "bfloat16"})
        return load_model(model, folder)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass of a model in training."""
        import torch

        from tutelage.models.load import device

        return torch.autocast(device().type, torch.bfloat16, enabled=self.bf16)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Decoding and scoring, the same for all models."""
        from tutelage.models.evaluation import Evaluator

        return Evaluator(
            self.task,
            self.encoder,
            self.about["vocabulary"],
            self.about["max_new_tokens"],
            self.recipe.task.decoding,
            self.recipe.evaluate.batch_size,
        )

    def fine_tuned(
        self,
        label: str,
        section: Model,
        args: TrainingArguments,
        rows: Sequence[EncodedRow],
        *,
        seed: int,
        save_at: Sequence[int],
        log: Path,
    ) -> nn.Module:
        """The model of a section of the recipe after plain fine-tuning on these rows, see `finetuning.fine_tune`."""
        from tutelage.data.collate import pad_id_of
        from tutelage.models.load import load_trainable
        from tutelage.training.finetuning import fine_tune

        with self.screen.steps(label) as on_step:
            return fine_tune(
                load_trainable(section, None, seed),
                args,
                rows,
                save_at=save_at,
                log=log,
                vocabulary=self.about["vocabulary"],
                pad_id=pad_id_of(self.tokenizer),
                fused=self.recipe.fused_loss,
                on_step=on_step,
            )

    def cache_builder(self, folder: Path) -> CacheBuilder:
        """Writes what a model says about the training rows into a store in `folder`."""
        import torch

        from tutelage.data.collate import pad_id_of
        from tutelage.teacher.build_cache import CacheBuilder

        section = self.recipe.cache
        return CacheBuilder(
            folder,
            self.encoded("train"),
            vocabulary=self.about["vocabulary"],
            pad_id=pad_id_of(self.tokenizer),
            dtype=getattr(torch, section.dtype),
            batch_size=section.batch_size,
            shard_rows=section.shard_rows,
            top_k=section.top_k,
        )

    @property
    def best_teacher(self) -> Path:
        """Folder of T*."""
        taught = read_json(self.folder / "teach" / "checkpoints.json")
        return Path(next(c["folder"] for c in taught["checkpoints"] if c["name"] == taught["best"]))

    def exam(self, split: str) -> Exam:
        """Prepared rows of a split, ready for any number of models to answer."""
        if split not in self._exams:
            lines = read_jsonl(self.folder / "prepare" / "rows.jsonl")
            examples = [Example(**line) for line in lines if line["split"] == split]
            self._exams[split] = self.evaluator.exam(examples, self.encoded(split))
        return self._exams[split]


def make_encoder(recipe: Recipe, tokenizer: Any) -> Encoder:
    """The encoder that a recipe's data section describes."""
    from tutelage.data.encode import Encoder

    data = recipe.data
    prefix = data.answer_prefix if data.answer_prefix is not None else ("" if data.chat_template else " ")
    return Encoder(tokenizer, prefix, data.max_length, data.too_long)
