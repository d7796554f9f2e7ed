"""`SCDTrainer`: distillation from Python, with an interface like TRL's trainers. It runs the same code as the command.

args = SCDConfig(output_dir="out")
trainer = SCDTrainer(model="student", teacher_checkpoints="runs/teacher", args=args, train_dataset=rows)
trainer.train()
trainer.save_model()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from tutelage.data.collate import pad_id_of
from tutelage.data.dataset import simple_examples
from tutelage.data.encode import EncodedRow, Encoder
from tutelage.data.token_store import keys_of
from tutelage.data.unlabelled import room_test, simple_unlabelled
from tutelage.errors import ConfigError, DataError, Kind, ModelError, Problem
from tutelage.method.methods import Method, find_method
from tutelage.method.weighting import AdaptiveWeighting, weighting_function
from tutelage.models.adapters import merged
from tutelage.models.evaluation import Evaluator, sample_losses
from tutelage.models.load import (
    check_lora_targets,
    check_models,
    check_vocabularies,
    load_model,
    load_tokenizer,
    load_trainable,
)
from tutelage.models.save import check_same_loss, save_student
from tutelage.recipe.load import check_settings
from tutelage.recipe.schema import TRAINER_DEFAULTS, Lora, Model, Task
from tutelage.records import Example
from tutelage.run.artifacts import StageRecord
from tutelage.run.checkpoints import base_of, list_checkpoints
from tutelage.run.manifest import Work, digest, folder_fingerprint, locked
from tutelage.tasks import make_task
from tutelage.teacher.build_cache import CacheBuilder, each_checkpoint
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
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.run_models import CHECKED_ROWS
from tutelage.training.stage_records import Validation
from tutelage.training.trainer import check_arguments, epochs_in_budget, training_arguments
from tutelage.utils.files import read_jsonl, write_jsonl

_KEYS = {
    **{f"distill.{name}": name for name in ("num_stages", "epochs_per_stage", "stage_reset", "kd_ratio")},
    **{f"distill.{name}": name for name in ("temperature", "probe_rows", "keep", "keep_stages")},
    "distill.save_steps": "save_every_steps",
    "distill.schedule.advance": "advance",
    "distill.schedule.student_kl": "student_kl",
    **{f"data.{name}": name for name in ("max_length", "too_long", "answer_prefix", "chat_template")},
    "task.max_new_tokens": "max_new_tokens",
    "cache.dtype": "cache_dtype",
    "cache.batch_size": "cache_batch_size",
    "fused_loss": "fused_loss",
}
"""Dotted key of a recipe -> the setting of `SCDConfig` that means the same."""


@dataclass
class SCDConfig(TrainingArguments):
    """All TrainingArguments, and the settings of the method, which mean the same as in a recipe.

    `num_train_epochs` is not used: training lasts `num_stages` x `epochs_per_stage`. The defaults are the paper's:
    batch size 8, AdamW betas (0.9, 0.95), gradient clipping at 1.0, a cosine schedule with 10 % warm-up; but stage
    resets are off, and `advance` is on.
    """

    method: str = field(default="scd-aw", metadata={"help": "A name in METHODS."})
    num_stages: int = field(default=4, metadata={"help": "N: stages of training, each with a checkpoint to follow."})
    epochs_per_stage: float = field(default=2.0, metadata={"help": "T: passes over the rows in one stage."})
    stage_reset: bool = field(
        default=False,
        metadata={"help": "Optimizer and learning-rate schedule start anew in each stage, as published."},
    )
    kd_ratio: float = field(
        default=0.5, metadata={"help": "Constant weighting: loss = (1 - kd_ratio) CE + kd_ratio KD."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides both models' logits in the divergence."})
    advance: bool = field(default=True, metadata={"help": "Only checkpoints after the last one followed compete."})
    student_kl: str = field(
        default="reverse", metadata={"help": "`reverse`: KL(S || T_k), as published; `forward`: KL(T_k || S)."}
    )
    probe_rows: int | None = field(default=None, metadata={"help": "Training rows on which checkpoints are compared."})
    fused_loss: bool = field(default=True, metadata={"help": "Compute output head and loss together, chunk by chunk."})
    keep: str = field(
        default="best", metadata={"help": "`best` stage by validation loss (needs eval_dataset), or `last`."}
    )
    keep_stages: bool = field(default=False, metadata={"help": "Keep the student at the start of each stage."})
    save_every_steps: int | None = field(
        default=None, metadata={"help": "Steps between resume checkpoints inside a stage."}
    )
    max_length: int = field(default=1024, metadata={"help": "Longest row in tokens; longer ones follow `too_long`."})
    too_long: Literal["error", "drop", "truncate_prompt"] = field(
        default="error", metadata={"help": "`error`, `drop` or `truncate_prompt`."}
    )
    answer_prefix: str = field(default=" ", metadata={"help": "Text between prompt and answer."})
    chat_template: bool = field(default=False, metadata={"help": "Render prompts with the tokenizer's chat template."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of an answer to unlabelled rows: 1.5 x the longest in training + 4."}
    )
    cache_dtype: str = field(default="bfloat16", metadata={"help": "Type of the stored hidden states."})
    cache_batch_size: int = field(default=16, metadata={"help": "Rows in one forward pass without gradients."})
    seed: int = field(default=0, metadata={"help": "Seed of anchor, student and probe set."})
    adam_beta2: float = field(default=TRAINER_DEFAULTS["adam_beta2"], metadata={"help": "AdamW's second beta."})
    lr_scheduler_type: str = field(
        default=TRAINER_DEFAULTS["lr_scheduler_type"], metadata={"help": "Schedule in a stage."}
    )
    warmup_steps: float = field(
        default=TRAINER_DEFAULTS["warmup_steps"], metadata={"help": "A value below 1 is a fraction of the steps."}
    )

    def __post_init__(self) -> None:
        """Check the values as those of a recipe. Raises ConfigError with everything that is wrong."""
        values = {key: getattr(self, name) for key, name in _KEYS.items()}
        values |= {"distill.seeds": [self.seed], "distill.methods": [self.method]}
        arguments = (argument for argument in dataclasses.fields(TrainingArguments) if argument.init)
        changed = {a.name: value for a in arguments if (value := getattr(self, a.name)) != a.default}
        check_settings(values, changed, _KEYS | {"distill.seeds": "seed", "distill.methods": "method"})
        super().__post_init__()

    def given(self) -> dict[str, Any]:
        """TrainingArguments that differ from that class's defaults, as a recipe's `trainer` would hold them. Those of
        the Hub are left out: nothing is uploaded in training, and records must not hold a token."""
        plain = TrainingArguments(output_dir=self.output_dir)
        names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init and not f.name.startswith("hub_")]
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return {
            name: value for name, value in changed.items() if name not in ("output_dir", "num_train_epochs", "seed")
        }


class SCDTrainer:
    """Distils a student from a teacher's checkpoints (arXiv 2601.10114).

    model: the student, a folder or Hub id.
    teacher_checkpoints: a folder with `checkpoint-*`, or a list of folders in training order; full weights or PEFT
        adapters. T* is the one with the lowest loss on eval_dataset, or the last one without eval_dataset.
    train_dataset, eval_dataset: dicts, or a `datasets.Dataset`, with `prompt` and `completion`, or with `messages`.
    unlabelled_dataset: the same without completion. T* answers these rows by greedy decoding, and the student learns
        them from the teacher alone (weight 1). Left out are rows with a prompt of train_dataset, rows that repeat or
        nearly repeat one of eval_dataset, and those that T* answers with nothing. Steps are counted by all rows, also
        for the anchor. Keep your test rows out of it: they are not known here.
    anchor: a folder or a model; None fine-tunes the student first, with as many steps as distillation gets.
    processing_class: the student's tokenizer; default: the one in `model`.
    peft_config: a `peft.LoraConfig` to train adapters.
    teacher: base model of the adapters; default: the one that they name.
    """

    def __init__(
        self,
        model: str,
        teacher_checkpoints: str | Path | Sequence[str | Path],
        args: SCDConfig,
        train_dataset: Iterable[dict[str, Any]],
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        *,
        unlabelled_dataset: Iterable[dict[str, Any]] | None = None,
        anchor: str | Path | nn.Module | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        teacher: str | None = None,
    ) -> None:
        """Check everything that can be checked without loading weights."""
        self.args, self.anchor, self.folder = args, anchor, Path(args.output_dir)
        self.student = Model(model_name_or_path=str(model), lora=_lora(peft_config))
        folders: str | list[str]
        if isinstance(teacher_checkpoints, str | Path):
            folders = str(teacher_checkpoints)
        else:
            folders = [str(folder) for folder in teacher_checkpoints]
        self.teacher = Model(model_name_or_path=teacher or base_of(folders))
        self.checkpoints = list_checkpoints(folders, self.teacher)
        check_lora_targets(self.student)
        check_arguments(args.given())
        self.tokenizer = processing_class or load_tokenizer(self.student)
        self.vocabulary = check_vocabularies(load_tokenizer(self.teacher), self.tokenizer)
        check_models(self.teacher, self.student, self.vocabulary, self.checkpoints)
        self.encoder = Encoder(self.tokenizer, args.answer_prefix, args.max_length, args.too_long)
        examples = {"train": self._examples(train_dataset, "train")}
        examples["validation"] = [] if eval_dataset is None else self._examples(eval_dataset, "validation")
        self.rows, self.eval_rows = (self.encoder.rows(examples[split])[0] for split in ("train", "validation"))
        longest = longest_generated(max((len(row.answer) for row in self.rows), default=0))
        self.evaluator = Evaluator(
            make_task(Task(type="qa"), None),
            self.encoder,
            self.vocabulary,
            args.max_new_tokens or longest,
            batch_size=args.cache_batch_size,
        )
        self.unlabelled: Sequence[Example] = []
        if unlabelled_dataset is not None:
            fits = room_test(self.encoder, self.evaluator.max_new_tokens)
            self.unlabelled = simple_unlabelled(unlabelled_dataset, examples, fits, chat_template=args.chat_template)
        self.model: nn.Module | None = None
        self._eval_nlls: dict[Path, float | None] = {}
        self._trained = np.zeros(0)
        """Losses of the trained student on `_checked_rows`, adapters not merged."""

    def train(self) -> list[StageRecord]:
        """Train the anchor, build the cache, run the stages. Returns the records of the stages.

        Continues an interrupted run in the same output_dir. Raises StaleArtifactError if output_dir holds work with
        other settings, RunLockedError if another trainer works there, ConfigError for a method that needs more than the
        teacher's checkpoints.
        """
        with locked(self.folder, "another output_dir of SCDConfig", lambda folder: True):
            return self._train()

    def _train(self) -> list[StageRecord]:
        args, plan, method = self.args, self._plan(), find_method(self.args.method)
        if method.answers == "teacher" or method.needs_cross_fit or method.settings:
            raise ConfigError(
                f"{args.method} needs more than checkpoints: run it with `tutelage run` or `tutelage compare`"
            )
        settings = {f"plan.{name}": value for name, value in dataclasses.asdict(plan).items()}
        work = Work(self.folder / "distill", self._inputs() | self._silver_inputs() | settings)
        anchor_nll = self._anchor_losses() if method.needs_anchor else None
        silver = self._silver_rows() if method.schedule != "none" else []
        rows = [*self.rows, *silver]
        self._build_cache(rows)
        work.prepare()
        setup = self._setup(method, rows, anchor_nll)
        kept, records = Distillation(plan, work.folder, setup).run()
        student = setup.load(kept, args.seed)
        self._trained = self._losses(student, self._checked_rows)
        self.model = merged(student).eval()
        return records

    def _setup(self, method: Method, rows: list[EncodedRow], anchor_nll: np.ndarray | None) -> StudentSetup:
        """Rows, cached teacher and weights. anchor_nll: [rows with gold] losses of the anchor, if the method needs
        it."""
        names, gold = [folder.name for folder in self.checkpoints], len(self.rows)
        teacher = CachedTeacher(self.folder / "cache", names, rows, bf16=bool(self.args.bf16))
        weighting = None
        if anchor_nll is not None:
            weigh = weighting_function(method.weighting)
            weighting = AdaptiveWeighting(anchor_nll, lambda name: teacher.nll(name)[:gold], weigh)
        return StudentSetup(
            model=self.student,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            rows=rows,
            gold=gold,
            budget_rows=self._budget_rows,
            teacher=teacher,
            best=self._best(),
            weighting=weighting,
            validate=lambda model: Validation(None, _mean(self._losses(model, self.eval_rows))),
        )

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the student and its tokenizer, to `args.output_dir` if no folder is given.

        Raises ModelError if the loss of the model written is not that of the student.
        """
        if self.model is None:
            raise ModelError("there is no student yet: call train() first")
        folder = Path(output_dir or self.args.output_dir)
        save_student(self.model, self.tokenizer, folder)
        check_same_loss(self._trained, self._losses(load_model(self.student, folder), self._checked_rows), folder)

    @property
    def _checked_rows(self) -> list[EncodedRow]:
        """Rows on which the saved student is compared with the trained one."""
        return (self.eval_rows or self.rows)[:CHECKED_ROWS]

    def _plan(self) -> DistillationPlan:
        names = DistillationPlan.__dataclass_fields__
        settings = {name: getattr(self.args, name) for name in names if hasattr(self.args, name)}
        settings |= {"save_steps": self.args.save_every_steps, "select_by": "loss", "trainer": self.args.given()}
        return DistillationPlan(**settings)

    def _examples(self, dataset: Iterable[dict[str, Any]], split: str) -> list[Example]:
        return simple_examples(dataset, split, chat_template=self.args.chat_template)

    def _inputs(self) -> dict[str, Any]:
        """What the results in output_dir depend on."""
        return {
            "student": self.student.model_dump() | {"files": folder_fingerprint(self.student.model_name_or_path)},
            "rows": digest([int(key) for key in (*keys_of(self.rows), *keys_of(self.eval_rows))]),
            **{f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in self.checkpoints},
        }

    def _silver_inputs(self) -> dict[str, Any]:
        """What the answers to the rows without gold depend on besides; nothing without such rows."""
        if not self.unlabelled:
            return {}
        prompts = [(example.id, example.prompt) for example in self.unlabelled]
        return {"unlabelled": digest(prompts), "max_new_tokens": self.evaluator.max_new_tokens}

    @property
    def _budget_rows(self) -> int:
        """Rows that `epochs_per_stage` counts: those with gold, and the others, answered or not."""
        return len(self.rows) + len(self.unlabelled)

    def _losses(self, model: nn.Module, rows: Sequence[EncodedRow]) -> np.ndarray:
        pad, size = pad_id_of(self.tokenizer), self.args.cache_batch_size
        return sample_losses(model, rows, vocabulary=self.vocabulary, pad_id=pad, batch_size=size)

    def _anchor_losses(self) -> np.ndarray:
        """[rows] losses of the anchor in nats. It is fine-tuned first unless one was given."""
        if isinstance(self.anchor, nn.Module):
            return self._losses(self.anchor, self.rows)
        folder = self.folder / "anchor"
        if self.anchor is not None:
            return self._losses(load_model(self.student, self.anchor), self.rows)
        given, epochs = self.args.given(), self.args.num_stages * self.args.epochs_per_stage
        epochs = epochs_in_budget(given, epochs, len(self.rows), self._budget_rows)
        work = Work(folder, self._inputs() | {"plan": given, "epochs": epochs, "seed": self.args.seed})
        if work.prepare():
            args = training_arguments(folder / "trainer", given, seed=self.args.seed, epochs=epochs)
            model = load_trainable(self.student, None, self.args.seed, self.vocabulary)
            fine_tune(
                model,
                args,
                self.rows,
                save_at=spaced_steps(args, len(self.rows), self.args.num_stages)[:-1],
                log=folder / "log.jsonl",
                vocabulary=self.vocabulary,
                pad_id=pad_id_of(self.tokenizer),
                fused=self.args.fused_loss,
            )
            save_student(merged(model), self.tokenizer, folder)
            work.finish(0.0)
        return self._losses(load_model(self.student, folder), self.rows)

    def _silver_rows(self) -> list[EncodedRow]:
        """The rows without gold with T*'s answer in its place. Raises DataError if T* answers none of them."""
        if not self.unlabelled:
            return []
        work = Work(self.folder / "silver", self._inputs() | self._silver_inputs(), restart_only=chunk_files)
        path, to_do = work.folder / "answers.jsonl", work.prepare()
        answers: list[Any] = self._answers(work.folder) if to_do else list(read_jsonl(path))
        rows = [row for (row,) in kept_rows([self.encoder], self.unlabelled, answers)]
        if not rows:
            values = {"rows": len(answers), **left_out_counts(answers)}
            raise DataError(Problem(Kind.SILVER_EMPTIED, values=values))
        if to_do:
            write_jsonl(path, answers)
            work.finish(0.0)
        return rows

    def _answers(self, folder: Path) -> list[SilverAnswer]:
        """What T* says to the rows without gold. folder: for what an interrupted process continues from."""
        best = self.checkpoints[-1]
        if self.eval_rows:
            models = each_checkpoint(load_model, self.teacher, self.checkpoints)
            losses = np.array([self._eval_nll(folder, model) for folder, model in models], dtype=float)
            best = self.checkpoints[int(losses.argmin())]
        return answer_rows(self.evaluator, lambda: load_model(self.teacher, best), self.unlabelled, folder)

    def _eval_nll(self, folder: Path, model: nn.Module) -> float | None:
        """Mean loss of a checkpoint on the evaluation rows, in nats; None without such rows. Computed once."""
        if folder not in self._eval_nlls:
            self._eval_nlls[folder] = _mean(self._losses(model, self.eval_rows))
        return self._eval_nlls[folder]

    def _build_cache(self, rows: list[EncodedRow]) -> None:
        """Read every teacher checkpoint once over the training rows, and its loss on the evaluation rows."""
        inputs = self._inputs() | self._silver_inputs() | {"dtype": self.args.cache_dtype}
        work = Work(self.folder / "cache", inputs)
        if not work.prepare():
            return
        builder = CacheBuilder(
            work.folder,
            rows,
            vocabulary=self.vocabulary,
            pad_id=pad_id_of(self.tokenizer),
            dtype=getattr(torch, self.args.cache_dtype),
            batch_size=self.args.cache_batch_size,
        )
        for folder, model in each_checkpoint(load_model, self.teacher, self.checkpoints):
            about = {"checkpoint": str(folder), "eval_nll": self._eval_nll(folder, model)}
            builder.build(folder.name, model, about)
        work.finish(0.0)

    def _best(self) -> str:
        """Name of T*: the lowest loss on eval_dataset (of equals the earlier one), or the last one without it."""
        names = [folder.name for folder in self.checkpoints]
        losses = [HiddenStore(self.folder / "cache" / name).about["eval_nll"] for name in names]
        return names[-1] if losses[0] is None else names[int(np.argmin(losses))]


def _mean(losses: np.ndarray) -> float | None:
    return float(losses.mean()) if len(losses) else None


def _lora(config: Any) -> Lora | None:
    """The settings of a `peft.LoraConfig` that a recipe has."""
    if config is None:
        return None
    settings = {name: getattr(config, name) for name in Lora.model_fields}
    modules = settings["target_modules"] or "all-linear"
    settings["target_modules"] = sorted(modules) if isinstance(modules, set) else modules
    return Lora(**settings)
