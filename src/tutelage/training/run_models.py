"""What a run trains and scores with, loaded when first asked for and shared by its stages: tokenizer, rows, models.

A teacher may have another tokenizer than the student: `RunModels.taught` is then the same run in the teacher's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from tutelage.bytes.pair import rooms_of
from tutelage.bytes.reader import ByteReader, byte_reader
from tutelage.data.collate import pad_id_of
from tutelage.data.encode import EncodedRow, Encoder, Room, Subset, make_encoder
from tutelage.data.token_store import TokenStore
from tutelage.models.adapters import merged
from tutelage.models.evaluation import EvalSet, Evaluator, ValidationScores
from tutelage.models.load import check_vocabularies, cut_vocabulary, load_model, load_tokenizer, load_trainable
from tutelage.models.placement import device
from tutelage.models.save import check_same_loss, save_student
from tutelage.recipe.schema import Model
from tutelage.records import Example
from tutelage.run.artifacts import CheckpointScore, PreparedData, TeacherTokens
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.hidden_store import HiddenStore
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.finetuning import fine_tune
from tutelage.utils import ranks
from tutelage.utils.files import read_jsonl

CHECKED_ROWS = 64
"""Validation rows on which a saved model is compared with the one in memory."""


class RunModels:
    """Tokenizer, token ids, models and evaluation of one run, all by its recipe."""

    def __init__(self, run: RunFolder, student: RunModels | None = None) -> None:
        """Nothing is loaded yet. student: for a teacher that has a tokenizer of its own, the run in the student's
        tokens."""
        self.run, self._student = run, student
        self._eval_sets: dict[str, EvalSet] = {}

    @cached_property
    def taught(self) -> RunModels:
        """The run in the teacher's tokens, which are the student's as well unless their tokenizers differ."""
        return self if self._student or "teacher" not in self.run.prepared else RunModels(self.run, self)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer, or the teacher's in `taught`."""
        return load_tokenizer(self.run.recipe.teacher if self._student else self.run.recipe.student)

    @property
    def pad_id(self) -> int:
        """Token id that batches are padded with."""
        return pad_id_of(self.tokenizer)

    @property
    def vocabulary(self) -> int:
        """Entries of the tokenizer; rows of an embedding beyond it are padding."""
        return self._prepared["vocabulary"]

    @property
    def _prepared(self) -> PreparedData | TeacherTokens:
        return self.run.prepared["teacher"] if self._student else self.run.prepared

    @cached_property
    def encoder(self) -> Encoder:
        """Rendering of rows as token ids."""
        return make_encoder(self.run.recipe.data, self.tokenizer, self.run.recipe.task)

    @cached_property
    def rooms(self) -> list[Room]:
        """How long a row may be in the student's and, if these differ, in the teacher's tokens."""
        encoders = [self.encoder] if self.taught is self else [self.encoder, self.taught.encoder]
        return rooms_of(encoders, self.run.recipe.teacher, self.run.recipe.student)

    def encoded(self, split: str) -> TokenStore:
        """Rows of a split as token ids, without those that `prepare` left out."""
        folder = self.run.folder / "prepare" / "tokens"
        if self._student is None:
            return TokenStore(folder / f"{split}.arrow", split)
        return TokenStore(folder / "teacher" / f"{split}.arrow", split, self._student.encoded(split).answer_lengths)

    def training_rows(self) -> TokenStore:
        """The rows that distillation trains on, as token ids: those with gold, then those that T* answered.

        Methods that use gold alone get as many steps as these rows make.
        """
        if not self.run.recipe.data.has_unlabelled:
            return self.encoded("train")
        if self._student is None:
            return TokenStore(self.run.folder / "silver" / "train.arrow", "train")
        units = self._student.training_rows().answer_lengths
        return TokenStore(self.run.folder / "silver" / "teacher.arrow", "train", units)

    @cached_property
    def byte_reader(self) -> ByteReader:
        """What compares models with different tokenizers, checked on the training answers.

        Raises ModelError for a tokenizer that does not spell them.
        """
        role = "teacher" if self._student else "student"
        texts = (example.answer for example in self._examples("train"))
        ids = (row.answer for row in self.encoded("train"))
        answers = zip(map(self.encoder.answer_text, texts), ids, strict=True)
        return byte_reader(self.tokenizer, answers, role)

    def spells(self, text: str, answer: Sequence[int]) -> bool:
        """Whether the token ids of an answer spell its text as they should, so that it can be compared byte by byte."""
        return self.byte_reader.text(answer) == self.encoder.answer_text(text).encode()

    def cached_teacher(self, checkpoints: Sequence[str], rows: TokenStore) -> CachedTeacher:
        """The cache of these checkpoints, to train the student on, or to compare it with them. rows: those that the
        cache was made from, in the student's tokens."""
        folder, bf16 = self.run.folder / "cache", self.run.bf16
        if not any(HiddenStore(folder / name).about["kind"] == "bytes" for name in checkpoints):
            return CachedTeacher(folder, checkpoints, rows, bf16=bf16)
        own = self.taught.training_rows() if self.taught is not self else None
        return CachedTeacher(folder, checkpoints, rows, bf16=bf16, student=self.byte_reader, own_rows=own)

    def load(self, model: Model, folder: Path | str | None = None) -> nn.Module:
        """A model to read or answer with: weights kept in float32 for training are loaded in bfloat16 where that is
        fast."""
        vocabulary = None if model is self.run.recipe.teacher else self.vocabulary
        return load_model(self._in_fast_type(model), folder, vocabulary)

    def _in_fast_type(self, model: Model) -> Model:
        """The section of the recipe, with bfloat16 in place of float32 where that is fast."""
        faster = self.run.bf16 and model.dtype == "float32"
        return model.model_copy(update={"dtype": "bfloat16"}) if faster else model

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass of a model in training."""
        return torch.autocast(device().type, torch.bfloat16, enabled=self.run.bf16)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Decoding and scoring, the same for all models."""
        recipe = self.run.recipe
        return Evaluator(
            self.run.task,
            self.encoder,
            self.vocabulary,
            self._prepared["max_new_tokens"],
            recipe.task.decoding,
            recipe.evaluate.batch_size,
        )

    def eval_set(self, split: str) -> EvalSet:
        """Prepared rows of a split, ready for any number of models to answer."""
        if split not in self._eval_sets:
            self._eval_sets[split] = self.evaluator.eval_set(list(self._examples(split)), self.encoded(split))
        return self._eval_sets[split]

    def _examples(self, split: str) -> Iterator[Example]:
        lines = read_jsonl(self.run.folder / "prepare" / "rows.jsonl")
        return (Example(**line) for line in lines if line["split"] == split)

    def score_checkpoint(self, section: Model, checkpoint: Path) -> tuple[CheckpointScore, ValidationScores]:
        """A checkpoint of this model on the validation rows: its record, and score and loss of every row."""
        eval_set = self.eval_set("validation")
        with self.run.screen.progress(f"validate {checkpoint.name}", len(eval_set.examples)) as advance:
            found = self.evaluator.validate(self.load(section, checkpoint), eval_set, advance)
        _, low, high = found.interval
        scores = {"score": found.score, "low": low, "high": high, "unreadable": found.unreadable}
        return {"name": checkpoint.name, **scores, "nll": float(found.losses.mean())}, found

    def say_scores(self, stage: str, checkpoints: Sequence[CheckpointScore], outcome: str) -> None:
        """Tell the user how each checkpoint does on validation. outcome: which one is used."""
        scores = ", ".join(f"{c['name']} {c['score']:.3f}/{c['nll']:.3f}" for c in checkpoints)
        self.run.screen.say(f"{stage}: validation {self.run.task.metric} / loss in nats: {scores}; {outcome}")

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
        """The model of a section of the recipe after plain fine-tuning on these rows, see `finetuning.fine_tune`.

        label: heading of the progress bar.
        """
        recipe = self.run.recipe
        cut = None if section is recipe.teacher else self.vocabulary
        if section.quantization:  # adapters are trained on what they will be read with
            section = self._in_fast_type(section)
        with self.run.screen.steps(label) as on_step:
            return fine_tune(
                load_trainable(section, None, seed, cut),
                args,
                rows,
                save_at=save_at,
                log=log,
                vocabulary=self.vocabulary,
                pad_id=self.pad_id,
                fused=recipe.fused_loss,
                on_step=on_step,
            )

    def save_whole(self, model: nn.Module, section: Model, folder: Path, losses: np.ndarray | None = None) -> nn.Module:
        """Write a trained student as a whole model, and compare its loss with that of what was written. Returns the
        student with its adapters merged.

        losses: [validation rows] of the student in nats, if they are known. Raises ModelError if the two differ.
        """
        validation = self.encoded("validation")
        rows = Subset(validation, range(min(CHECKED_ROWS, len(validation))))
        with self.autocast():
            before = self.evaluator.losses(model, rows) if losses is None else losses[: len(rows)]
            whole = cut_vocabulary(merged(model).eval(), self.vocabulary)  # of a student not trained here
            ranks.once(lambda: save_student(whole, self.tokenizer, folder))
            if len(rows):
                check_same_loss(before, self.evaluator.losses(load_model(section, folder), rows), folder)
        return whole

    def cache_builder(self, folder: Path) -> CacheBuilder:
        """Writes what the teacher's checkpoints say about the training rows into a store in `folder`."""
        section = self.run.recipe.cache
        over_bytes = section.form == "bytes" or self._student is not None
        if section.form == "states" and self._student is not None:  # set after `prepare` was done
            check_vocabularies(self.tokenizer, self._student.tokenizer)
        return CacheBuilder(
            folder,
            self.training_rows(),
            vocabulary=self.vocabulary,
            pad_id=self.pad_id,
            dtype=getattr(torch, section.dtype),
            batch_size=section.batch_size,
            shard_rows=section.shard_rows,
            top_k=section.top_k,
            reader=self.byte_reader if over_bytes else None,
        )
