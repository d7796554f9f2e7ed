"""The trainer of teacher, anchor and student: `transformers.Trainer` with the mixed loss. Without a teacher it is plain
fine-tuning.

Optimisation, precision, accumulation, distribution and resuming are those of transformers. This module adds the loss,
normalised over the whole optimizer step, and one learning-rate schedule over several training runs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tutelage.data.collate import IGNORED, Collator, LengthGroupedSampler, RowDataset, SharedBatches, answered, parts_of
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import row_lengths
from tutelage.errors import ConfigError
from tutelage.errors.wording import first_line
from tutelage.method.divergences import Divergence
from tutelage.models.heads import takes_logits_to_keep
from tutelage.models.placement import device
from tutelage.teacher.sources import TeacherSource
from tutelage.training import fsdp
from tutelage.training.callbacks import Interpolate, last_whole_checkpoint
from tutelage.training.fused_loss import HeadLoss, LossInputs
from tutelage.utils import ranks
from tutelage.utils.files import replacing
from tutelage.utils.integrity import check_folder, reading


@dataclass(frozen=True)
class Guidance:
    """What a training run takes from the teacher: which checkpoint, how much of each row, by which divergence."""

    source: TeacherSource
    checkpoint: str
    weight: np.ndarray
    """[rows] in [0, 1]: fraction of each training row's loss that follows the teacher."""
    divergence: str | Divergence = "forward_kl"
    temperature: float = 1.0
    interpolate: Interpolate | None = None
    """Moves TAID's target between student and teacher."""


@dataclass
class Arguments(TrainingArguments):
    """TrainingArguments, and how many rows the processes of a launch read together."""

    batch_rows: int = 0
    """Rows of a batch over all processes; `gradient_accumulation_steps` of these make a step."""
    grouped_rows: int = 0
    """The same for as many processes as the run is meant for: rows of similar length that `group_by_length` keeps
    together."""
    max_tokens_per_batch: int | None = None
    """The recipe's `max_tokens_per_batch`: rows are passed through the model in parts of at most this many tokens."""

    @property
    def device(self) -> torch.device:
        """Where this process trains. accelerate numbers CPUs (`cpu:0`), which torch cannot load tensors to."""
        found = super().device
        return torch.device("cpu") if found.type == "cpu" else found


@dataclass(frozen=True)
class ScheduleSegment:
    """A training run that is one segment of a longer one: one learning-rate schedule and one optimizer over all."""

    done: int
    """Optimizer steps of the segments before."""
    total: int
    """Optimizer steps of all segments."""
    optimizer: Path
    """What `save_optimizer` wrote after the segment before; the first segment does not read it."""


class DistillTrainer(Trainer):
    """Trains on encoded rows with the mixed loss; without guidance on gold alone."""

    def __init__(
        self,
        model: nn.Module,
        args: Arguments,
        rows: Sequence[EncodedRow],
        *,
        vocabulary: int,
        pad_id: int,
        guidance: Guidance | None = None,
        fused: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
        segment: ScheduleSegment | None = None,
    ) -> None:
        """vocabulary: entries of the tokenizer; logits beyond it (padding of the embedding) are cut off. fused: compute
        head and loss together where that gives the same loss (`fused_loss.py`)."""
        interpolate = guidance.interpolate if guidance else None
        super().__init__(
            model=model,
            args=args,
            train_dataset=RowDataset(rows),
            data_collator=Collator(
                pad_id,
                ahead=guidance.source.ahead(guidance.checkpoint) if guidance else None,
                max_tokens=args.max_tokens_per_batch,
            ),
            # `interpolate` comes first, so that its file is in a resume checkpoint before that is marked as complete.
            callbacks=[*([interpolate] if interpolate else []), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.vocabulary, self.guidance, self.interpolate, self.segment = vocabulary, guidance, interpolate, segment
        # A compiled or replicated (DataParallel) model cannot have its head replaced for the length of a forward pass.
        # Nor can that of a divided one, whose weights are whole only while a layer is run.
        replaceable = not (args.torch_compile or args.n_gpu > 1 or ranks.divides_models())
        self._head_loss = HeadLoss(
            model, keep=takes_logits_to_keep(model), fused=fused and replaceable, in_all=self._in_all
        )
        weight = torch.zeros(len(rows)) if guidance is None else torch.from_numpy(guidance.weight).float()
        self._weight = weight.to(args.device)
        self._terms: list[Tensor] = []
        self.loss_is_scaled_for_ga = True  # `_get_num_items_in_batch` counts the examples of the whole optimizer step

    def create_accelerator_and_postprocess(self) -> None:
        """The accelerator, and with it how the model is divided."""
        super().create_accelerator_and_postprocess()
        if ranks.divides_models():
            fsdp.use_plugin(self.accelerator)
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> DataLoader:
        """Batches that several processes share row by row. accelerate would fill up the last ones with the first rows
        of the epoch, which would count twice."""
        loader = super().get_train_dataloader()
        if self.args.world_size > 1:
            shard, args = loader.batch_sampler, self.args
            sampler = shard.batch_sampler.sampler
            shard.batch_sampler = SharedBatches(sampler, args.batch_rows, args.process_index, args.world_size)
            # accelerate's own sharding now passes batches through: one process, batches of any size.
            shard.num_processes, shard.process_index, shard.batch_size, shard.even_batches = 1, 0, None, False
            if hasattr(sampler, "set_epoch"):  # accelerate does not find it in a continued epoch
                shard.set_epoch = sampler.set_epoch
        return loader

    def _in_all(self, holds: bool) -> bool:
        """Whether something holds in all processes."""
        return bool(self._sum(torch.tensor(float(holds), device=self.args.device)) == self.args.world_size)

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """`group_by_length` by a sampler that knows its epoch, so that a resumed epoch continues in the same order."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(row_lengths(self.train_dataset.rows), self.args.grouped_rows, self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The learning-rate schedule. For a segment: that of all segments, at this one's start, with the optimizer's
        state from the segment before."""
        segment = self.segment
        if segment is None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = super().create_scheduler(segment.total, optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise ConfigError(
                "distill.stage_reset=false needs a learning-rate schedule that is a function of the step (linear,"
                f" cosine, constant, ...); {self.args.lr_scheduler_type} is not"
            )
        if segment.done:
            self._continue(scheduler, segment)
        return scheduler

    def _continue(self, scheduler: LambdaLR, segment: ScheduleSegment) -> None:
        """Load the optimizer's state of the segment before, and set the learning rates of this segment's start."""
        with reading(segment.optimizer, RuntimeError, EOFError, UnpicklingError):
            before = torch.load(segment.optimizer, map_location=self.args.device, weights_only=True)
        self._load_optimizer(self.optimizer.state_dict() | {"state": before["state"]})
        scheduler.last_epoch = segment.done
        factors = [factor(segment.done) for factor in scheduler.lr_lambdas]
        scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, learning_rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = learning_rate

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        load = partial(fsdp.load_state, self.optimizer) if self.is_fsdp_enabled else self.optimizer.load_state_dict
        load(state)

    def optimizer_state(self) -> dict[str, Any]:
        """State of the optimizer in the main process. All processes must come here."""
        return fsdp.whole_state(self.optimizer) if self.is_fsdp_enabled else self.optimizer.state_dict()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights as one process does, also of a divided model."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = fsdp.whole_weights(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._as_one_process():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def load_weights(self, resume_from_checkpoint: Path) -> None:
        """Load the weights of a resume checkpoint before the model is divided; else transformers does it."""
        if self.is_fsdp_enabled:
            with self._as_one_process():
                super()._load_from_checkpoint(str(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._as_one_process():
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _as_one_process(self) -> Iterator[None]:
        """Inside, transformers writes and reads the files of a run of one process; an optimizer over divided weights
        is put together and divided for that."""
        if not self.is_fsdp_enabled:
            yield
            return
        optimizer, self.is_fsdp_enabled = self.optimizer, False
        if optimizer is not None:
            self.optimizer = fsdp.WholeOptimizer(optimizer)
        try:
            yield
        finally:
            self.optimizer, self.is_fsdp_enabled = optimizer, True

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Examples in the optimizer step, over all micro-batches and ranks: the one denominator of the loss."""
        if self.args.world_size == 1:
            return torch.tensor(sum(len(batch["row"]) for batch in batch_samples), device=device)
        return self._sum(torch.stack([answered(batch).sum() for batch in batch_samples]).sum().to(device))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Loss and gradient of a batch, which the model reads in parts if there is a `max_tokens_per_batch`."""
        parts, total = parts_of(inputs), torch.zeros((), device=self.args.device)
        for part in parts:
            last = part is parts[-1]
            with nullcontext() if last else self.accelerator.no_sync(model):  # gradients are shared once
                total = total + super().training_step(model, part, num_items_in_batch)
        if self.interpolate:
            self.interpolate.observe(self._sum(torch.stack(self._terms[-len(parts) :]).sum(0)))
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The batch's contribution to the mixed loss of its optimizer step. Models are validated by `Evaluator`, so
        `return_outputs`, which `Trainer.evaluate` sets, raises NotImplementedError."""
        if return_outputs:
            raise NotImplementedError("DistillTrainer does not evaluate; use tutelage.models.evaluation.Evaluator")
        # What a GPU has to be waited for (rows to read, numbers of positions) comes before the forward pass.
        mask, guidance, targets = inputs["targets"] != IGNORED, self.guidance, None
        if guidance is not None:
            with torch.no_grad(), self.accelerator.autocast():
                targets = guidance.source.targets(guidance.checkpoint, inputs)
        loss = self._head_loss(
            model,
            inputs,
            LossInputs(
                gold=inputs["targets"][mask],
                mask=mask,
                weight=self._weight[inputs["row"]],
                targets=targets,
                vocabulary=self.vocabulary,
                divergence=guidance.divergence if guidance else "forward_kl",
                temperature=guidance.temperature if guidance else 1.0,
                denominator=num_items_in_batch,
                teacher_share=self.interpolate.interpolation.share if self.interpolate else 1.0,
            ),
        )
        self._terms.append(torch.stack([loss.cross_entropy.sum(), loss.divergence.sum(), mask.any(1).sum()]))
        # DDP averages gradients over ranks, and the denominator already counts the examples of all of them.
        return loss.total * self.accelerator.num_processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add cross-entropy and divergence since the last log, means over rows in nats."""
        if self._terms and "loss" in logs:
            ce, kd, rows = self._sum(torch.stack(self._terms).sum(0)).tolist()
            ce, kd = ce / rows, kd / rows
            logs = {**logs, "ce": ce, "kd": kd} if self.guidance else {**logs, "ce": ce}
            self._terms.clear()
        super().log(logs, *args, **kwargs)


def training_arguments(folder: Path, given: dict[str, Any], *, seed: int, epochs: float | None = None) -> Arguments:
    """TrainingArguments of one training run: what the recipe sets, and what the library decides itself.

    given: of the recipe; `planned_processes` among them is the number of processes whose batches make a step, by
    default those there are; `max_tokens_per_batch` as in the recipe.
    """
    given = dict(given)
    planned = given.pop("planned_processes", None) or ranks.size()
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
        "use_cpu": device().type == "cpu",  # without it transformers refuses bfloat16 on a machine without a GPU
        "ddp_find_unused_parameters": False,  # every weight that is trained has a part in every loss
    }
    floats = {name: float(given[name]) for name in ("adam_beta1", "adam_beta2") if name in given}  # YAML reads 0 as int
    args = Arguments(**{**defaults, **given, **floats, **decided})
    _share_out(args, planned)
    return args


def _share_out(args: Arguments, planned: int) -> None:
    """Give each step the rows that `planned` processes would give it, however many there are: accumulated over as few
    equal batches as possible, without more rows in a process than asked for."""
    there, largest = ranks.size(), args.train_batch_size
    args.batch_rows = args.grouped_rows = largest * planned
    if there == planned:
        return
    step = args.batch_rows * args.gradient_accumulation_steps
    batches = next(count for count in range(-(-step // (largest * there)), step + 1) if step % count == 0)
    args.gradient_accumulation_steps, args.batch_rows = batches, step // batches
    args.per_device_train_batch_size = -(-args.batch_rows // there)


def check_arguments(given: dict[str, Any]) -> None:
    """Build arguments, optimizer, schedule, loader and trackers of a training run on a single weight, so that what they
    refuse is refused before hours of work. Raises ConfigError with the reason."""
    if given.get("torch_compile") and not hasattr(torch.compiler, "is_exporting"):
        raise ConfigError(
            f"torch_compile needs torch 2.7 or newer, since transformers calls a function of it there; found torch"
            f" {torch.__version__}: upgrade torch, or leave torch_compile out"
        )
    with TemporaryDirectory() as folder:
        try:
            args = training_arguments(Path(folder), given, seed=0)
            workers = {"num_workers": args.dataloader_num_workers, "prefetch_factor": args.dataloader_prefetch_factor}
            DataLoader([0], persistent_workers=args.dataloader_persistent_workers, **workers)
            if args.torch_compile:
                torch.compile(nn.Linear(1, 1), backend=args.torch_compile_backend, mode=args.torch_compile_mode)
            if not args.optim_target_modules:  # optimizers with targets look for layers of a real model
                _check_rates(Trainer(nn.Linear(1, 1), args))
        except Exception as error:  # whatever transformers raises here would end the run later
            raise ConfigError(f"transformers refuses these arguments: {first_line(error)}") from error


def _check_rates(trainer: Trainer, steps: int = 10) -> None:
    """Go through a schedule of a few steps. Raises ValueError for a learning rate that is negative or no number."""
    trainer.create_optimizer_and_scheduler(steps)
    for step in range(1, steps + 1):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        if not all(0 <= rate < np.inf for rate in trainer.lr_scheduler.get_last_lr()):
            rates = trainer.lr_scheduler.get_last_lr()
            raise ValueError(f"the schedule has the learning rate {rates[0]} after {step / steps:.0%} of its steps")


def steps_of(args: Arguments, rows: int) -> int:
    """Number of optimizer steps of a training run on `rows` rows, as transformers counts them."""
    batches = -(-rows // args.batch_rows)
    updates = max(1, -(-batches // args.gradient_accumulation_steps))
    return int(-(-args.num_train_epochs * updates // 1))


def epochs_in_budget(given: dict[str, Any], epochs: float, rows: int, budget_rows: int) -> float:
    """Epochs over `rows` rows that make as many optimizer steps as `epochs` over `budget_rows`.

    given: TrainingArguments of the recipe. Methods that see fewer rows are so trained for as many steps.
    """
    if rows == budget_rows:
        return epochs
    budget = steps_of(training_arguments(Path("unused"), given, seed=0, epochs=epochs), budget_rows)
    one_epoch = steps_of(training_arguments(Path("unused"), given, seed=0, epochs=1), rows)
    return (budget - 0.5) / one_epoch  # transformers rounds steps up


def save_optimizer(trainer: DistillTrainer, path: Path) -> None:
    """Save the optimizer's state for the next segment. The file appears under its name only when it is complete."""
    state = trainer.optimizer_state()
    if trainer.args.should_save:
        with replacing(path) as draft:
            torch.save(state, draft)


def _checked_checkpoint(folder: Path) -> Path | None:
    """The last complete resume checkpoint, with files as they were written."""
    resume = last_whole_checkpoint(folder)
    if resume:
        check_folder(resume)
    return resume


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Loggers that only tell of errors meanwhile: transformers warns of batches that processes share out otherwise."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train(trainer: DistillTrainer) -> None:
    """Train to the end, from the last complete resume checkpoint if there is one. All processes take part."""
    resume = ranks.once(lambda: _checked_checkpoint(Path(trainer.args.output_dir)))
    if resume:
        trainer.load_weights(resume)
    with _quiet("transformers.trainer", "transformers.trainer_utils"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    # accelerate wraps the model's forward pass for mixed precision; the next stage, or a forward pass in full
    # precision, needs the unwrapped one.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
