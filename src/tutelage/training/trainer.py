"""One trainer for teacher, anchor and student: `transformers.Trainer` with the mixed loss; fine-tuning is it without a
teacher.

Optimisation, precision, accumulation, distribution and restart are transformers' own; here are the loss, its one
division, the saving of restart points that can be told whole from half-written, and a log in JSON lines.
"""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tutelage.data.collate import IGNORED, Collator, LengthGroupedSampler, RowDataset
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths, row_lengths
from tutelage.errors import ConfigError
from tutelage.method.divergences import Divergence
from tutelage.method.taid import Interpolation
from tutelage.models.heads import takes_logits_to_keep
from tutelage.models.load import device
from tutelage.teacher.sources import TeacherSource
from tutelage.training.fused_loss import HeadLoss, Question

WHOLE = "whole"
"""File in a restart point, made after everything else is in it: seconds of training up to there."""


@dataclass(frozen=True)
class Guidance:
    """The teacher's part in a training: which checkpoint, how much of each row, by which divergence."""

    source: TeacherSource
    checkpoint: str
    weight: np.ndarray
    """[rows] in [0, 1]: share of each training row's loss that follows the teacher; or [positions], of every answer
    token's."""
    divergence: str | Divergence = "forward_kl"
    temperature: float = 1.0
    interpolation: Interpolation | None = None
    """TAID's target between student and teacher."""


@dataclass(frozen=True)
class Part:
    """A training that goes on from the one before it: one learning-rate schedule over all of them, one optimizer."""

    done: int
    """Optimizer steps before this training."""
    total: int
    """Of all of them together."""
    optimizer: Path
    """What `save_optimizer` wrote after the training before; not read at the first one."""


class DistillTrainer(Trainer):
    """Trains on encoded rows with the mixed loss of `objective.py`; without guidance on gold alone."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        rows: Sequence[EncodedRow],
        *,
        vocabulary: int,
        pad_id: int,
        guidance: Guidance | None = None,
        fused: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
        part: Part | None = None,
    ) -> None:
        """vocabulary: entries of the tokenizer; logits beyond it (padding of the embedding) are cut off. fused: compute
        head and loss in one where that is the same (`head_loss.py`)."""
        super().__init__(
            model=model,
            args=args,
            train_dataset=RowDataset(rows),
            data_collator=Collator(pad_id, ahead=guidance.source.ahead(guidance.checkpoint) if guidance else None),
            # First, so that a restart point has its part before it is marked as whole.
            callbacks=[*([guidance.interpolation] if guidance and guidance.interpolation else []), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.vocabulary, self.guidance, self.part = vocabulary, guidance, part
        # A compiled or replicated (DataParallel) model cannot have its head replaced for the length of a forward pass.
        whole = not args.torch_compile and args.n_gpu <= 1
        self._head_loss = HeadLoss(model, keep=takes_logits_to_keep(model), fused=fused and whole)
        weight = torch.zeros(len(rows)) if guidance is None else torch.from_numpy(guidance.weight).float()
        self._weight, self._starts = weight.to(args.device), None
        if len(weight) != len(rows):  # a weight for every token, row by row
            lengths = torch.from_numpy(answer_lengths(rows)).to(args.device)
            self._starts = lengths.cumsum(0) - lengths
        self._parts: list[Tensor] = []
        self.loss_is_scaled_for_ga = (
            True  # divided by the samples of the whole optimizer step, see _get_num_items_in_batch
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Batches of like length by a sampler that knows its epoch, so that a restart inside one goes on in the same
        order."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(row_lengths(self.train_dataset.rows), self.args.train_batch_size, self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The learning-rate schedule; of a part that of the whole, at its place, with the optimizer's state from
        before."""
        part = self.part
        if part is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "distill.restart=false keeps the optimizer between stages, which FSDP and DeepSpeed cut into pieces"
            )
        scheduler = super().create_scheduler(part.total, optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise ConfigError(
                f"distill.restart=false needs a schedule that is a function of the step (linear, cosine, constant, ...);"
                f" {self.args.lr_scheduler_type} is none"
            )
        if part.done:
            before = torch.load(part.optimizer, map_location=self.args.device, weights_only=True)
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": before["state"]})
            scheduler.last_epoch = part.done
            scheduler._last_lr = [
                rate * share(part.done) for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate
        return scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Samples in the optimizer step over all micro-batches and ranks: the one denominator of the loss."""
        samples = torch.tensor(sum(len(batch["row"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(samples).sum() if self.args.world_size > 1 else samples

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The batch's share of the mixed loss of its optimizer step."""
        mask, guidance, targets = inputs["targets"] != IGNORED, self.guidance, None
        between = guidance.interpolation if guidance else None
        if guidance is not None:
            with torch.no_grad(), self.accelerator.autocast():
                targets = guidance.source.targets(guidance.checkpoint, inputs)
        ask = Question(
            gold=inputs["targets"][mask],
            mask=mask,
            weight=self._weights(inputs["row"], mask),
            targets=targets,
            vocabulary=self.vocabulary,
            divergence=guidance.divergence if guidance else "forward_kl",
            temperature=guidance.temperature if guidance else 1.0,
            denominator=num_items_in_batch,
            teacher_share=between.share if between else 1.0,
        )
        losses = self._head_loss(model, inputs, ask)
        if between:
            between.observe(self.accelerator.gather(losses.divergence).mean())
        self._parts.append(torch.stack([losses.cross_entropy.mean(), losses.divergence.mean()]))
        # DDP averages gradients over ranks; the denominator already counts them all.
        return losses.total * self.accelerator.num_processes

    def _weights(self, rows: Tensor, mask: Tensor) -> Tensor:
        """[samples], or with a weight for every token [samples, answer columns]."""
        if self._starts is None:
            return self._weight[rows]
        place = self._starts[rows][:, None] + mask.cumsum(1) - 1
        return torch.where(mask, self._weight[place.clamp(0, len(self._weight) - 1)], 0.0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean cross-entropy and divergence since the last log, in nats."""
        if self._parts and "loss" in logs:
            ce, kd = torch.stack(self._parts).mean(0).tolist()
            logs = {**logs, "ce": ce, "kd": kd} if self.guidance else {**logs, "ce": ce}
            self._parts.clear()
        super().log(logs, *args, **kwargs)


class SaveAt(TrainerCallback):
    """Saves at chosen optimizer steps, and marks each saved folder as whole."""

    def __init__(self, steps: Sequence[int], began: float | None = None) -> None:
        """steps: counted from 1. began: on the monotonic clock, earlier by what was trained before an interruption; or
        now."""
        self.steps, self.began = set(steps), time.monotonic() if began is None else began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint after these steps."""
        control.should_save = state.global_step in self.steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is written: mark it."""
        seconds = time.monotonic() - self.began
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).write_text(
            f"{seconds:.3f}", encoding="utf-8"
        )


class JsonLog(TrainerCallback):
    """Appends every log record to a JSON-lines file."""

    def __init__(self, path: Path, **fixed: Any) -> None:
        """fixed: keys added to every record (stage, checkpoint)."""
        self.path, self.fixed = path, fixed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What an interrupted training wrote after its restart point is written anew."""
        if not state.is_world_process_zero or not self.path.is_file():
            return
        whole = (
            line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
        )
        kept = [line for line in whole if not self._comes_after(json.loads(line), state.global_step)]
        draft = self.path.with_name(self.path.name + ".part")
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(self.path)

    def _comes_after(self, record: dict[str, Any], step: int) -> bool:
        return self.fixed.items() <= record.items() and record["step"] > step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """One line a record."""
        if logs and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.fixed, "step": state.global_step, **logs}) + "\n")


class OnStep(TrainerCallback):
    """Calls back with (steps done, steps in all) and the last logged loss: for progress bars."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        """report: called after every optimizer step."""
        self.report = report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed training starts where it was."""
        self.report(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more step."""
        self.report(state.global_step, state.max_steps)


def training_arguments(
    folder: Path, given: dict[str, Any], *, seed: int, epochs: float | None = None
) -> TrainingArguments:
    """TrainingArguments for one training: what the recipe gave, and what the library decides itself."""
    decided = {
        "output_dir": str(folder),
        "seed": seed,
        "save_strategy": "no",  # SaveAt decides
        "eval_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level": "error",
    }
    if epochs is not None:
        decided["num_train_epochs"] = epochs
    defaults = {
        "report_to": "none",
        "logging_steps": 10,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": device().type == "cpu",  # said aloud, or transformers refuses bfloat16 where there is no GPU
    }
    return TrainingArguments(**{**defaults, **given, **decided})


def steps_of(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps that a training takes, as transformers counts them."""
    batches = -(-rows // (args.train_batch_size * args.world_size))
    updates = max(1, -(-batches // args.gradient_accumulation_steps))
    return int(-(-args.num_train_epochs * updates // 1))


def save_optimizer(trainer: DistillTrainer, path: Path) -> None:
    """Keep the optimizer's state for the training that goes on from this one; a name that exists is a whole file."""
    if trainer.args.should_save:
        draft = path.with_suffix(".part")
        torch.save(trainer.optimizer.state_dict(), draft)
        draft.replace(path)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest restart point that was written to its end; half-written ones are left alone."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(re.search(r"\d+$", path.name)[0]), default=None)


def seconds_before(folder: Path) -> float:
    """Seconds of training up to the restart point that a training in this folder goes on from; 0 without one."""
    point = last_whole_checkpoint(folder)
    return float((point / WHOLE).read_text(encoding="utf-8") or 0) if point else 0.0


def train(trainer: DistillTrainer) -> None:
    """Train to the end, from the last whole restart point if there is one."""
    resume = last_whole_checkpoint(Path(trainer.args.output_dir))
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    # accelerate wraps the model's forward for mixed precision; the next stage, or a forward pass in full precision,
    # needs it plain.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
