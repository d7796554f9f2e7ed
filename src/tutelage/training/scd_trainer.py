"""`SCDTrainer`: distillation from Python, with an interface like TRL's trainers. It runs the same code as the command.

args = SCDConfig(output_dir="out")
trainer = SCDTrainer(model="student", teacher_checkpoints="runs/teacher", args=args, train_dataset=rows)
trainer.train()
trainer.save_model()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.bytes.pair import Pair, tokenizer_for
from tutelage.data.collate import pad_id_of
from tutelage.data.dataset import simple_examples
from tutelage.data.encode import EncodedRow, Encoder, Room
from tutelage.data.token_store import answer_lengths, keys_of
from tutelage.data.unlabelled import RoomTest, simple_unlabelled
from tutelage.errors import ConfigError, DataError, Kind, ModelError, Problem
from tutelage.method.methods import Method, find_method
from tutelage.method.weighting import AdaptiveWeighting, weighting_function
from tutelage.models.adapters import has_adapters, lora_of, merged
from tutelage.models.evaluation import Evaluator
from tutelage.models.load import check_lora_targets, check_models, load_model, load_trainable
from tutelage.models.save import check_same_loss, save_student
from tutelage.models.weights import fingerprint_of
from tutelage.recipe.renamed import flat
from tutelage.recipe.schema import Model
from tutelage.records import Example
from tutelage.run.artifacts import StageRecord
from tutelage.run.checkpoints import base_of, list_checkpoints
from tutelage.run.manifest import IN_PYTHON, Work, digest, folder_fingerprint, locked
from tutelage.tasks.qa import FreeText
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.hidden_store import HiddenStore
from tutelage.teacher.silver_rows import (
    SilverAnswer,
    answer_rows,
    chunk_files,
    kept_rows,
    left_out_counts,
    longest_generated,
)
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.distillation import Distillation
from tutelage.training.finetuning import fine_tune, spaced_steps
from tutelage.training.plan import SCDConfig, StudentSetup
from tutelage.training.run_models import CHECKED_ROWS
from tutelage.training.stage_records import Validation
from tutelage.training.trainer import check_arguments, epochs_in_budget, training_arguments
from tutelage.utils.files import read_jsonl, write_jsonl

UNRECORDED = ("eval_rows", "order of checkpoints", "teacher")
"""Inputs that versions up to 0.2.0 did not record."""


class _Side:
    """The rows as the student, or the teacher, reads them, and what is measured on them."""

    def __init__(
        self, encoder: Encoder, vocabulary: int, args: SCDConfig, rows: list[EncodedRow], eval_rows: list[EncodedRow]
    ) -> None:
        """vocabulary: entries of the encoder's tokenizer. eval_rows: may be empty."""
        self.rows, self.eval_rows, self.vocabulary = rows, eval_rows, vocabulary
        self.pad_id = pad_id_of(encoder.tokenizer)
        longest = args.max_new_tokens or longest_generated(int(answer_lengths(rows).max(initial=0)))
        self.evaluator = Evaluator(FreeText(), encoder, vocabulary, longest, batch_size=args.cache_batch_size)
        self.losses = self.evaluator.losses


class SCDTrainer:
    """Distils a student from a teacher's checkpoints (arXiv 2601.10114).

    model: the student, a folder or Hub id.
    teacher_checkpoints: a folder with `checkpoint-*`, or a list of folders in training order; full weights or PEFT
        adapters. T* is the one with the lowest loss on eval_dataset, or the last one without eval_dataset.
    train_dataset, eval_dataset: dicts, or a `datasets.Dataset`, with `prompt` and `completion`, or with `messages`.
    unlabelled_dataset: the same without completion. T* answers these rows by greedy decoding, and the student learns
        them from the teacher alone (weight 1). Left out are rows with a prompt of train_dataset, rows that repeat or
        nearly repeat one of eval_dataset, and those that T* answers with nothing, or with more than max_new_tokens.
        Steps are counted by all rows, also for the anchor. Keep your test rows out of it: they are not known here.
    anchor: a folder or a model; None fine-tunes the student first, with as many steps as distillation gets.
    processing_class: the student's tokenizer; default: the one in `model`.
    teacher_processing_class: the teacher's; default: the one of `teacher`. If it is another one than the student's,
        the models are compared by the next byte of the answer.
    peft_config: a `peft.LoraConfig` to train adapters, of which r, lora_alpha, lora_dropout and target_modules may be
        set (default: all linear layers but the output head). The student is saved with its adapters merged.
    teacher: base model of the adapters; default: the one that they name.
    """

    def __init__(
        self,
        model: str | Path,
        teacher_checkpoints: str | Path | Sequence[str | Path],
        args: SCDConfig,
        train_dataset: Iterable[dict[str, Any]],
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        *,
        unlabelled_dataset: Iterable[dict[str, Any]] | None = None,
        anchor: str | Path | nn.Module | None = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        peft_config: Any = None,
        teacher: str | Path | None = None,
    ) -> None:
        """Check everything that can be checked without loading weights."""
        if not isinstance(model, str | Path):
            raise ConfigError(
                f"model is a {type(model).__name__}, and anchor and stages read the student from a folder: write it and"
                " its tokenizer with save_pretrained(FOLDER), and give the folder"
            )
        self.args, self.anchor, self.folder = args, anchor, Path(args.output_dir)
        self.student = Model(model_name_or_path=str(model), lora=lora_of(peft_config))
        folders: str | list[str]
        if isinstance(teacher_checkpoints, str | Path):
            folders = str(teacher_checkpoints)
        else:
            folders = [str(folder) for folder in teacher_checkpoints]
        self.teacher = Model(model_name_or_path=str(teacher or base_of(folders)))
        self.checkpoints = list_checkpoints(folders, self.teacher)
        check_lora_targets(self.student)
        check_arguments(args.given())
        given = {"processing_class": processing_class, "teacher_processing_class": teacher_processing_class}
        self._vocabularies = {name: digest(sorted(t.get_vocab().items())) for name, t in given.items() if t is not None}
        self.tokenizer = tokenizer_for(self.student, processing_class, "processing_class")
        taught = tokenizer_for(self.teacher, teacher_processing_class, "teacher_processing_class")
        self.pair = Pair.of_tokenizers(taught, self.tokenizer, self._encoder, args.cache_form)
        own = Path(anchor) if isinstance(anchor, str | Path) else None
        check_models(self.teacher, self.student, self.pair.vocabulary, self.checkpoints, own, self.pair.of_teacher)
        self._read(train_dataset, eval_dataset, unlabelled_dataset)
        self.model: nn.Module | None = None
        self._eval_nlls: dict[Path, float | None] = {}
        self._trained = np.zeros(0)
        """Losses of the trained student on `_checked_rows`, adapters not merged."""

    def _read(
        self,
        train: Iterable[dict[str, Any]],
        validation: Iterable[dict[str, Any]] | None,
        unlabelled: Iterable[dict[str, Any]] | None,
    ) -> None:
        """The rows as each model reads them."""
        examples = {"train": self._examples(train, "train", "train_dataset"), "validation": []}
        if validation is not None:
            examples["validation"] = self._examples(validation, "validation", "eval_dataset")
        kept, *rows = self.pair.rows(examples["train"])
        _, *eval_rows = self.pair.rows(examples["validation"])
        self._readers = self.pair.readers(kept, *rows) if self.pair.over_bytes else None
        self.own = _Side(self.pair.student, self.pair.vocabulary, self.args, rows[0], eval_rows[0])
        self.taught = self.own
        if self.pair.teacher:
            self.taught = _Side(self.pair.teacher, self.pair.of_teacher, self.args, rows[1], eval_rows[1])
        self.unlabelled: Sequence[Example] = []
        if unlabelled is not None:
            sides = [self.own, *([self.taught] if self.pair.teacher else [])]
            fits = RoomTest(self._rooms, [side.evaluator.max_new_tokens for side in sides])
            self.unlabelled = simple_unlabelled(unlabelled, examples, fits, chat_template=self.args.chat_template)

    def train(self) -> list[StageRecord]:
        """Train the anchor, build the cache, run the stages. Returns the records of the stages.

        Continues an interrupted run in the same output_dir. Raises StaleArtifactError if output_dir holds work from
        other arguments, RunLockedError if another trainer works there, ConfigError for a method that needs more than
        the teacher's checkpoints.
        """
        with locked(self.folder, IN_PYTHON.elsewhere, lambda folder: True):
            return self._train()

    def _train(self) -> list[StageRecord]:
        args, plan, method = self.args, self.args.plan(), find_method(self.args.method)
        if method.answers == "teacher" or method.needs_cross_fit or method.settings:
            raise ConfigError(
                f"{args.method} needs more than checkpoints: run it with `tutelage run` or `tutelage compare`"
            )
        needed = self._anchor_inputs() if method.needs_anchor else {}
        work = self._work("distill", self._silver_inputs() | needed | args.inputs())
        anchor_nll = self._anchor_losses() if method.needs_anchor else None
        silver = self._silver_rows() if method.schedule != "none" else []
        rows = [*self.own.rows, *(forms[0] for forms in silver)]
        taught = [*self.taught.rows, *(forms[-1] for forms in silver)] if self.pair.teacher else rows
        self._build_cache(taught)
        work.prepare()
        setup = self._setup(method, rows, taught, anchor_nll)
        kept, records = Distillation(plan, work.folder, setup).run()
        student = setup.load(kept, args.seed)
        self._trained = self.own.losses(student, self._checked_rows)
        self.model = merged(student).eval()
        return records

    def _setup(
        self, method: Method, rows: list[EncodedRow], taught: list[EncodedRow], anchor_nll: np.ndarray | None
    ) -> StudentSetup:
        """Rows, cached teacher and weights. taught: the rows in the teacher's tokens. anchor_nll: [rows with gold]
        losses of the anchor, if the method needs it."""
        names, gold = [folder.name for folder in self.checkpoints], len(self.own.rows)
        teacher = CachedTeacher(
            self.folder / "cache",
            names,
            rows,
            bf16=bool(self.args.bf16),
            student=self._readers[0] if self._readers else None,
            own_rows=None if taught is rows else taught,
        )
        weighting = None
        if anchor_nll is not None:
            weigh = weighting_function(method.weighting)
            weighting = AdaptiveWeighting(anchor_nll, lambda name: teacher.nll(name)[:gold], weigh)
        return StudentSetup(
            model=self.student,
            tokenizer=self.tokenizer,
            vocabulary=self.own.vocabulary,
            rows=rows,
            gold=gold,
            budget_rows=self._budget_rows,
            teacher=teacher,
            best=self._best(),
            weighting=weighting,
            validate=lambda model: Validation(None, _mean(self.own.losses(model, self.own.eval_rows))),
        )

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the student and its tokenizer, to `args.output_dir` if no folder is given.

        Raises ModelError if the loss of the model written is not that of the student.
        """
        if self.model is None:
            raise ModelError("there is no student yet: call train() first")
        folder = Path(output_dir or self.args.output_dir)
        save_student(self.model, self.tokenizer, folder)
        check_same_loss(self._trained, self.own.losses(load_model(self.student, folder), self._checked_rows), folder)

    @property
    def _checked_rows(self) -> list[EncodedRow]:
        """Rows on which the saved student is compared with the trained one."""
        return (self.own.eval_rows or self.own.rows)[:CHECKED_ROWS]

    def _encoder(self, tokenizer: Any) -> Encoder:
        return Encoder(tokenizer, self.args.answer_prefix, self.args.max_length, self.args.too_long)

    def _examples(self, dataset: Iterable[dict[str, Any]], split: str, argument: str) -> list[Example]:
        if examples := simple_examples(dataset, split, chat_template=self.args.chat_template):
            return examples
        raise DataError(f"{argument} has no rows. An iterator that was read before is empty: give a list")

    def _work(self, name: str, inputs: dict[str, Any], **options: Any) -> Work:
        """The work in a folder of output_dir. inputs: what it depends on besides `_inputs`."""
        return Work(self.folder / name, self._inputs() | inputs, advice=IN_PYTHON, unrecorded=UNRECORDED, **options)

    def _inputs(self) -> dict[str, Any]:
        """What the results in output_dir depend on."""
        over_bytes = {"over_bytes": self._keys(self.taught)} if self.pair.over_bytes else {}
        adapted = any(has_adapters(folder) for folder in self.checkpoints)
        return {
            **dict(flat("student", self.student.model_dump())),
            "student.files": folder_fingerprint(self.student.model_name_or_path),
            **self._vocabularies,
            "rows": self._keys(self.own),
            "eval_rows": len(self.own.eval_rows),
            **over_bytes,
            **{f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in self.checkpoints},
            "order of checkpoints": [folder.name for folder in self.checkpoints],
            **({"teacher": folder_fingerprint(self.teacher.model_name_or_path)} if adapted else {}),
        }

    def _anchor_inputs(self) -> dict[str, str]:
        """The anchor that was given; nothing for one that is trained here, which follows from the other inputs."""
        if isinstance(self.anchor, nn.Module):
            return {"anchor": fingerprint_of(self.anchor)}
        return {} if self.anchor is None else {"anchor": folder_fingerprint(str(self.anchor))}

    def _keys(self, side: _Side) -> str:
        return digest([int(key) for key in (*keys_of(side.rows), *keys_of(side.eval_rows))])

    def _silver_inputs(self) -> dict[str, Any]:
        """What the answers to the rows without gold depend on besides; nothing without such rows."""
        if not self.unlabelled:
            return {}
        prompts = [(example.id, example.prompt) for example in self.unlabelled]
        return {"unlabelled": digest(prompts), "max_new_tokens": self.taught.evaluator.max_new_tokens}

    @property
    def _budget_rows(self) -> int:
        """Rows that `epochs_per_stage` counts: those with gold, and the others, answered or not."""
        return len(self.own.rows) + len(self.unlabelled)

    def _anchor_losses(self) -> np.ndarray:
        """[rows] losses of the anchor in nats. It is fine-tuned first unless one was given."""
        if isinstance(self.anchor, nn.Module):
            return self.own.losses(self.anchor, self.own.rows)
        folder = self.folder / "anchor"
        if self.anchor is not None:
            return self.own.losses(load_model(self.student, self.anchor), self.own.rows)
        given, epochs = self.args.given(), self.args.num_stages * self.args.epochs_per_stage
        epochs = epochs_in_budget(given, epochs, len(self.own.rows), self._budget_rows)
        own = dict(flat("plan.trainer", given)) | {"epochs": epochs, "seed": self.args.seed}
        work = self._work("anchor", own)
        if work.prepare():
            args = training_arguments(folder / "trainer", given, seed=self.args.seed, epochs=epochs)
            model = load_trainable(self.student, None, self.args.seed, self.own.vocabulary)
            fine_tune(
                model,
                args,
                self.own.rows,
                save_at=spaced_steps(args, len(self.own.rows), self.args.num_stages)[:-1],
                log=folder / "log.jsonl",
                vocabulary=self.own.vocabulary,
                pad_id=self.own.pad_id,
                fused=self.args.fused_loss,
            )
            save_student(merged(model), self.tokenizer, folder)
            work.finish(0.0)
        return self.own.losses(load_model(self.student, folder), self.own.rows)

    def _silver_rows(self) -> list[tuple[EncodedRow, ...]]:
        """The rows without gold with T*'s answer in its place, each in the student's tokens and, if these differ, in
        the teacher's. Raises DataError if T* answers none of them."""
        if not self.unlabelled:
            return []
        work = self._work("silver", self._silver_inputs(), restart_only=chunk_files)
        path, to_do = work.folder / "answers.jsonl", work.prepare()
        answers: list[Any] = self._answers(work.folder) if to_do else list(read_jsonl(path))
        rows = list(kept_rows(self._rooms, self.unlabelled, answers, spelled=self._spelled))
        if not rows:
            values = {"rows": len(answers), **left_out_counts(answers)}
            raise DataError(Problem(Kind.SILVER_EMPTIED, values=values))
        if to_do:
            write_jsonl(path, answers)
            work.finish(0.0)
        return rows

    @property
    def _rooms(self) -> list[Room]:
        """How long a row may be in the student's and, if these differ, in the teacher's tokens."""
        return self.pair.rooms(self.teacher, self.student)

    def _spelled(self, text: str, forms: Sequence[EncodedRow]) -> bool:
        """Whether the tokens of an answer spell it, where models are compared by its bytes."""
        readers, spelled = self._readers or (), self.pair.student.answer_text(text).encode()
        return all(reader.text(row.answer) == spelled for row, reader in zip(forms, readers, strict=False))

    def _answers(self, folder: Path) -> list[SilverAnswer]:
        """What T* says to the rows without gold. folder: for what an interrupted process continues from."""
        best = self.checkpoints[-1]
        if self.own.eval_rows:
            losses = [self._eval_nll(folder, load_model(self.teacher, folder)) for folder in self.checkpoints]
            best = self.checkpoints[int(np.argmin(np.array(losses, dtype=float)))]
        load = partial(load_model, self.teacher, best)
        return answer_rows(self.taught.evaluator, load, self.unlabelled, folder, self._rooms[-1])

    def _eval_nll(self, folder: Path, model: nn.Module) -> float | None:
        """Mean loss of a checkpoint on the evaluation rows, in nats per token of the student; None without such rows.
        Computed once."""
        if folder not in self._eval_nlls:
            rows = self.taught.eval_rows
            units = answer_lengths(rows) / answer_lengths(self.own.eval_rows)
            self._eval_nlls[folder] = _mean(self.taught.losses(model, rows) * units)
        return self._eval_nlls[folder]

    def _build_cache(self, rows: list[EncodedRow]) -> None:
        """Read every teacher checkpoint once over the training rows, and its loss on the evaluation rows. rows: in the
        teacher's tokens."""
        work = self._work("cache", self._silver_inputs() | {"dtype": self.args.cache_dtype})
        if not work.prepare():
            return
        builder = CacheBuilder(
            work.folder,
            rows,
            vocabulary=self.taught.vocabulary,
            pad_id=self.taught.pad_id,
            dtype=getattr(torch, self.args.cache_dtype),
            batch_size=self.args.cache_batch_size,
            reader=self._readers[1] if self._readers else None,
        )
        for folder in self.checkpoints:
            model = load_model(self.teacher, folder)
            about = {"checkpoint": str(folder), "eval_nll": self._eval_nll(folder, model)}
            builder.build(folder.name, model, about)
            del model  # before the next one is loaded
        work.finish(0.0)

    def _best(self) -> str:
        """Name of T*: the lowest loss on eval_dataset (of equals the earlier one), or the last one without it."""
        names = [folder.name for folder in self.checkpoints]
        losses = [HiddenStore(self.folder / "cache" / name).about["eval_nll"] for name in names]
        return names[-1] if losses[0] is None else names[int(np.argmin(losses))]


def _mean(losses: np.ndarray) -> float | None:
    return float(losses.mean()) if len(losses) else None
