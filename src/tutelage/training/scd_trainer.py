"""`SCDTrainer`: the method from Python, shaped as users of TRL expect. It runs the same parts as the command.

trainer = SCDTrainer(model="student", teacher_checkpoints="runs/teacher", args=SCDConfig(output_dir="out"),
train_dataset=rows) trainer.train()
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
from tutelage.errors import ConfigError, ModelError
from tutelage.method.methods import find_method
from tutelage.method.weighting import AdaptiveWeighting, weighting_function
from tutelage.models.adapters import merged
from tutelage.models.evaluation import sample_losses
from tutelage.models.load import check_vocabularies, load_model, load_tokenizer, load_trainable, save_student
from tutelage.recipe.schema import TRAINER_DEFAULTS, Lora, Model
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.manifest import Work, digest, folder_fingerprint, one_process
from tutelage.teacher.build_cache import CacheBuilder, each_checkpoint
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.distillation import Distillation
from tutelage.training.finetuning import fine_tune, spaced_steps
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.stage_records import StageRecord, Validation
from tutelage.training.trainer import training_arguments


@dataclass
class SCDConfig(TrainingArguments):
    """Every TrainingArguments name, plus what the method adds; the added fields mean what the recipe's sections say.

    `num_train_epochs` is not used: training lasts `num_stages` x `epochs_per_stage`. Defaults are the paper's (batch 8,
    AdamW betas (0.9, 0.95), clipping at 1.0, cosine with 10 % warm-up inside each stage).
    """

    method: str = field(default="scd-aw", metadata={"help": "A name in METHODS."})
    num_stages: int = field(default=4, metadata={"help": "N: stages; optimizer and schedule start anew in each."})
    epochs_per_stage: float = field(default=2.0, metadata={"help": "T: passes over the rows in a stage."})
    stage_reset: bool = field(
        default=True, metadata={"help": "Optimizer and learning-rate schedule start anew in each stage."}
    )
    kd_ratio: float = field(
        default=0.5, metadata={"help": "Constant weighting: loss = (1 - kd_ratio) CE + kd_ratio KD."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides both models' logits in the divergence."})
    advance: bool = field(default=False, metadata={"help": "Only checkpoints after the last one followed compete."})
    student_kl: str = field(
        default="reverse", metadata={"help": "`reverse`: KL(S || T_k), as published; `forward`: KL(T_k || S)."}
    )
    probe_rows: int | None = field(default=None, metadata={"help": "Training rows on which checkpoints are compared."})
    fused_loss: bool = field(default=True, metadata={"help": "Output head and loss in one, chunk by chunk."})
    keep: str = field(
        default="best", metadata={"help": "`best` stage by validation loss (needs eval_dataset), or `last`."}
    )
    keep_stages: bool = field(default=False, metadata={"help": "Keep the student at the start of each stage."})
    save_every_steps: int | None = field(
        default=None, metadata={"help": "Steps between restart points inside a stage."}
    )
    max_length: int = field(default=1024, metadata={"help": "Longest row in tokens; longer ones follow `too_long`."})
    too_long: Literal["error", "drop", "truncate_prompt"] = field(
        default="error", metadata={"help": "`error`, `drop` or `truncate_prompt`."}
    )
    answer_prefix: str = field(default=" ", metadata={"help": "Text between prompt and answer."})
    chat_template: bool = field(default=False, metadata={"help": "Render prompts with the tokenizer's chat template."})
    cache_dtype: str = field(default="bfloat16", metadata={"help": "Type of the stored hidden states."})
    cache_batch_size: int = field(default=16, metadata={"help": "Rows in one forward pass without gradients."})
    seed: int = field(
        default=0, metadata={"help": "Seed of the anchor's and the student's training and of the probe rows."}
    )
    adam_beta2: float = field(default=TRAINER_DEFAULTS["adam_beta2"], metadata={"help": "AdamW's second beta."})
    lr_scheduler_type: str = field(
        default=TRAINER_DEFAULTS["lr_scheduler_type"], metadata={"help": "Schedule in a stage."}
    )
    warmup_steps: float = field(
        default=TRAINER_DEFAULTS["warmup_steps"], metadata={"help": "Below 1: a share of the steps."}
    )

    def given(self) -> dict[str, Any]:
        """TrainingArguments that differ from that class's defaults, as the recipe's `trainer` would hold them."""
        plain = TrainingArguments(output_dir=self.output_dir)
        names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return {
            name: value for name, value in changed.items() if name not in ("output_dir", "num_train_epochs", "seed")
        }


class SCDTrainer:
    """Distils a student from a teacher's checkpoints (arXiv 2601.10114).

    model: the student, a folder or hub id. teacher_checkpoints: a folder that holds `checkpoint-*`, or a list of
    folders in training order; full weights or PEFT adapters. anchor: None (the student is fine-tuned first, with as
    many steps), a folder, or a model. train_dataset, eval_dataset: rows (dicts, or a `datasets.Dataset`) of `prompt`
    and `completion`, or `messages`.
    processing_class: the student's tokenizer; default: the one in `model`. peft_config: a `peft.LoraConfig` to train
    adapters.
    teacher: name of the adapters' base model; default: what the adapters say. T* is the checkpoint with the smallest
    loss on eval_dataset, or the last one without it.
    """

    def __init__(
        self,
        model: str,
        teacher_checkpoints: str | Path | Sequence[str | Path],
        args: SCDConfig,
        train_dataset: Iterable[dict[str, Any]],
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        *,
        anchor: str | Path | nn.Module | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        teacher: str | None = None,
    ) -> None:
        """Read and check everything that can be checked without loading weights."""
        self.args, self.anchor, self.folder = args, anchor, Path(args.output_dir)
        self.student = Model(model_name_or_path=str(model), lora=_lora(peft_config))
        folders: str | list[str]
        if isinstance(teacher_checkpoints, str | Path):
            folders = str(teacher_checkpoints)
        else:
            folders = [str(folder) for folder in teacher_checkpoints]
        self.teacher = Model(model_name_or_path=teacher or _base_of(folders))
        self.checkpoints = list_checkpoints(folders, self.teacher)
        self.tokenizer = processing_class or load_tokenizer(self.student)
        self.vocabulary = check_vocabularies(load_tokenizer(self.teacher), self.tokenizer)
        self.encoder = Encoder(self.tokenizer, args.answer_prefix, args.max_length, args.too_long)
        self.rows = self._encode(train_dataset, "train")
        self.eval_rows = self._encode(eval_dataset, "validation") if eval_dataset is not None else []
        self.model: nn.Module | None = None

    def train(self) -> list[StageRecord]:
        """Anchor, cache, stages; continues a killed run in the same output_dir. Returns the records of the stages.

        Raises StaleArtifactError if output_dir holds work of other settings.
        """
        one_process()
        args = self.args
        plan = self._plan()
        method = find_method(args.method)
        if method.answers == "teacher" or method.needs_cross_fit or method.settings:
            raise ConfigError(
                f"{args.method} needs more than checkpoints: run it with `tutelage run` or `tutelage compare`"
            )
        settings = {f"plan.{name}": value for name, value in dataclasses.asdict(plan).items()}
        work = Work(self.folder / "distill", self._inputs() | settings)
        anchor_nll = self._anchor_losses() if method.needs_anchor else None
        self._cache()
        work.prepare()
        names = [folder.name for folder in self.checkpoints]
        teacher = CachedTeacher(self.folder / "cache", names, self.rows, bf16=bool(args.bf16))
        weighting = None
        if anchor_nll is not None:
            weighting = AdaptiveWeighting(anchor_nll, teacher.nll, weighting_function(method.weighting))
        setup = StudentSetup(
            model=self.student,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            rows=self.rows,
            teacher=teacher,
            best=self._best(),
            weighting=weighting,
            validate=lambda model: Validation(None, _mean(self._losses(model, self.eval_rows))),
        )
        kept, records = Distillation(plan, work.folder, setup).run()
        self.model = merged(setup.load(kept, args.seed)).eval()
        return records

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the student and its tokenizer, to `args.output_dir` if no folder is given."""
        if self.model is None:
            raise ModelError("there is no student yet: call train() first")
        save_student(self.model, self.tokenizer, Path(output_dir or self.args.output_dir))

    def _plan(self) -> DistillationPlan:
        args = self.args
        own = {name: getattr(args, name) for name in DistillationPlan.__dataclass_fields__ if hasattr(args, name)}
        return DistillationPlan(
            **own | {"save_steps": args.save_every_steps, "select_by": "loss", "trainer": args.given()}
        )

    def _encode(self, dataset: Iterable[dict[str, Any]], split: str) -> list[EncodedRow]:
        return self.encoder.rows(simple_examples(dataset, split, chat_template=self.args.chat_template))[0]

    def _inputs(self) -> dict[str, Any]:
        """What the results in output_dir depend on."""
        return {
            "student": self.student.model_dump() | {"files": folder_fingerprint(self.student.model_name_or_path)},
            "rows": digest([int(key) for key in (*keys_of(self.rows), *keys_of(self.eval_rows))]),
            **{f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in self.checkpoints},
        }

    def _losses(self, model: nn.Module, rows: Sequence[EncodedRow]) -> np.ndarray:
        pad, size = pad_id_of(self.tokenizer), self.args.cache_batch_size
        return sample_losses(model, rows, vocabulary=self.vocabulary, pad_id=pad, batch_size=size)

    def _anchor_losses(self) -> np.ndarray:
        """[rows] losses of the anchor, which is fine-tuned here if none was given."""
        if isinstance(self.anchor, nn.Module):
            return self._losses(self.anchor, self.rows)
        folder = self.folder / "anchor"
        if self.anchor is not None:
            return self._losses(load_model(self.student, self.anchor), self.rows)
        work = Work(
            folder, self._inputs() | {"plan": self.args.given(), "epochs": self._epochs(), "seed": self.args.seed}
        )
        if work.prepare():
            args = training_arguments(folder / "trainer", self.args.given(), seed=self.args.seed, epochs=self._epochs())
            model = load_trainable(self.student, None, self.args.seed)
            saves = spaced_steps(args, len(self.rows), self.args.num_stages)[:-1]
            log, pad = folder / "log.jsonl", pad_id_of(self.tokenizer)
            fine_tune(
                model,
                args,
                self.rows,
                save_at=saves,
                log=log,
                vocabulary=self.vocabulary,
                pad_id=pad,
                fused=self.args.fused_loss,
            )
            save_student(merged(model), self.tokenizer, folder)
            work.finish(0.0)
        return self._losses(load_model(self.student, folder), self.rows)

    def _epochs(self) -> float:
        return self.args.num_stages * self.args.epochs_per_stage

    def _cache(self) -> None:
        work = Work(self.folder / "cache", self._inputs() | {"dtype": self.args.cache_dtype})
        if not work.prepare():
            return
        builder = CacheBuilder(
            work.folder,
            self.rows,
            vocabulary=self.vocabulary,
            pad_id=pad_id_of(self.tokenizer),
            dtype=getattr(torch, self.args.cache_dtype),
            batch_size=self.args.cache_batch_size,
        )
        for folder, model in each_checkpoint(load_model, self.teacher, self.checkpoints):
            nll = _mean(self._losses(model, self.eval_rows))
            builder.build(folder.name, model, {"checkpoint": str(folder), "eval_nll": nll})
        work.finish(0.0)

    def _best(self) -> str:
        """Name of T*: the smallest loss on eval_dataset (the earlier one of equals), or the last checkpoint without
        it."""
        from tutelage.teacher.hidden_store import HiddenStore

        names = [folder.name for folder in self.checkpoints]
        losses = [HiddenStore(self.folder / "cache" / name).about["eval_nll"] for name in names]
        return names[-1] if losses[0] is None else names[int(np.argmin(losses))]


def _mean(losses: np.ndarray) -> float | None:
    return float(losses.mean()) if len(losses) else None


def _lora(config: Any) -> Lora | None:
    """The parts of a `peft.LoraConfig` that the recipe knows; others are refused, not dropped."""
    if config is None:
        return None
    own = {name: getattr(config, name) for name in Lora.model_fields}
    own["target_modules"] = own["target_modules"] or "all-linear"
    if isinstance(own["target_modules"], set):
        own["target_modules"] = sorted(own["target_modules"])
    return Lora(**own)


def _base_of(where: str | list[str]) -> str:
    """The model that checkpoints are checkpoints of: the adapters' base, or the first checkpoint itself."""
    import json

    folders = sorted(Path(where).glob("checkpoint-*")) if isinstance(where, str) else [Path(entry) for entry in where]
    if not folders:
        raise ModelError(f"no checkpoint-* folder in {where!r}: give a folder with some, or a list of folders")
    adapter = folders[0] / "adapter_config.json"
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else str(folders[0])
