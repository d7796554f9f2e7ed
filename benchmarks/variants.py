"""The trainers that are compared, each built from the same description of a job: same weights, rows, order and
arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import transformers
from torch import nn
from transformers import Trainer, TrainingArguments

from benchmarks.shapes import (
    EOS,
    PAD,
    SMOLLM2_10_LAYERS,
    SMOLLM2_135M,
    Batch,
    Shape,
    build_model,
    build_student,
    random_reader,
    random_rows,
)
from tutelage.bytes.reader import ByteReader
from tutelage.data.encode import EncodedRow
from tutelage.teacher.sources import CachedTeacher, LiveTeacher, TeacherSource
from tutelage.training.trainer import Arguments, DistillTrainer, Guidance

WARMUP_STEPS = 2
CHECKPOINT = "checkpoint-1"
TEACHER_SEED, STUDENT_SEED, ROW_SEED = 1, 2, 3


@dataclass(frozen=True)
class Job:
    """One comparison: what every variant of it trains on, and for how long."""

    case: str
    batch: Batch
    dtype: Literal["fp32", "bf16"]
    student: Literal["full", "lora"]
    folder: str
    """Holds the store, and what trainers write."""
    steps: int
    """Measured steps; `WARMUP_STEPS` more go before."""
    teacher_shape: Shape = SMOLLM2_135M
    student_shape: Shape = SMOLLM2_10_LAYERS
    threads: int = 1
    device: str = "cpu"

    @property
    def all_steps(self) -> int:
        """Warm-up included."""
        return WARMUP_STEPS + self.steps

    def rows(self) -> list[EncodedRow]:
        """One epoch, a batch a step."""
        return random_rows(self.batch, self.batch.rows * self.all_steps, self.student_shape.vocabulary, ROW_SEED)

    def reader(self) -> ByteReader | None:
        """What rows spell, if the models are compared byte by byte."""
        return random_reader(self.student_shape, ROW_SEED) if self.case == "cross" else None

    def make_student(self) -> nn.Module:
        """The same weights in every variant."""
        return build_student(self.student_shape, STUDENT_SEED, adapters=self.student == "lora")

    def make_teacher(self) -> nn.Module:
        """The same weights in every variant."""
        return build_model(self.teacher_shape, TEACHER_SEED).eval()

    def arguments(self, kind: type[TrainingArguments] = Arguments, **more: Any) -> TrainingArguments:
        """Training arguments, the same for every trainer; the optimizer is transformers' default, AdamW."""
        return kind(
            output_dir=str(Path(self.folder) / "trainer"),
            max_steps=self.all_steps,
            per_device_train_batch_size=self.batch.rows,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            bf16=self.dtype == "bf16",
            use_cpu=self.device == "cpu",
            seed=0,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=self.device != "cpu",
            disable_tqdm=True,
            log_level="error",
            **more,
        )


def distill_trainer(job: Job, source: TeacherSource | None = None) -> Trainer:
    """DistillTrainer; with a source it follows it by weights such as adaptive weighting gives."""
    rows = job.rows()
    weight = np.random.default_rng(ROW_SEED).uniform(0.05, 0.95, len(rows))
    guidance = Guidance(source, CHECKPOINT, weight) if source is not None else None
    vocabulary = job.student_shape.vocabulary
    return DistillTrainer(
        job.make_student(), job.arguments(), rows, vocabulary=vocabulary, pad_id=PAD, guidance=guidance
    )


def cached_trainer(job: Job) -> Trainer:
    """The teacher is on disk."""
    bf16 = job.dtype == "bf16"
    source = CachedTeacher(Path(job.folder), [CHECKPOINT], job.rows(), bf16=bf16, student=job.reader())
    return distill_trainer(job, source)


def live_trainer(job: Job) -> Trainer:
    """The teacher is in memory, under the trainer's precision (as TRL prepares its teacher)."""
    vocabulary = job.student_shape.vocabulary

    def load(_: str) -> nn.Module:
        return trainer.accelerator.prepare_model(job.make_teacher(), evaluation_mode=True)

    trainer = distill_trainer(job, LiveTeacher([CHECKPOINT], load, job.rows(), vocabulary, PAD))
    return trainer


def plain_trainer(job: Job, **more: Any) -> Trainer:
    """transformers' own causal-LM fine-tuning; prompts are labelled -100, and meet the vocabulary all the same. more:
    training arguments."""
    items = [
        {
            "input_ids": row.prompt + row.answer,
            "attention_mask": [1] * (len(row.prompt) + len(row.answer)),
            "labels": [-100] * len(row.prompt) + row.answer,
        }
        for row in job.rows()
    ]
    return Trainer(
        job.make_student(), job.arguments(**more), data_collator=transformers.default_data_collator, train_dataset=items
    )


def trl_trainer(job: Job) -> Trainer:
    """GKDTrainer with its own collator on rows that are tokenized already; it never generates.

    beta 0 is KL(teacher || student), our forward KL: tests/test_trl_parity.py. Its divergence has temperature 1
    whatever `temperature` says.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    words = models.WordLevel({"<eos>": EOS, "<pad>": PAD}, unk_token="<pad>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="<eos>", pad_token="<pad>"
    )
    items = [
        {
            "prompt": "",  # the collator looks for this key, and takes the prompt's ids from input_ids and the mask
            "input_ids": row.prompt + row.answer,
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer),
        }
        for row in job.rows()
    ]
    return GKDTrainer(
        job.make_student(),
        job.make_teacher(),
        job.arguments(GKDConfig, lmbda=0.0, beta=0.0, max_length=job.batch.tokens, gradient_checkpointing=False),
        train_dataset=Dataset.from_list(items),
        processing_class=tokenizer,
    )


TRAINERS: dict[str, Callable[[Job], Trainer]] = {
    "limit": distill_trainer,
    "sft_all": plain_trainer,
    "cached": cached_trainer,
    "live": live_trainer,
    "trl_gkd": trl_trainer,
}


def variants_here(case: str) -> list[str]:
    """All variants of a case, but TRL's where it is not installed."""
    if case == "cross":  # the student alone, and with a teacher over bytes
        return ["limit", "sft_all", "cached"]
    return [name for name in TRAINERS if name != "trl_gkd" or find_spec("trl")]
