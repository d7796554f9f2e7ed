"""A distillation, stage by stage: choose a checkpoint, weigh, train, validate, save. The command and `SCDTrainer` both
run this. Of several processes the main one chooses, weighs and saves; all train and validate.

The method's parts are elsewhere: `method/schedule.py` chooses, `method/weighting.py` weighs, `trainer.py` trains. This
module defines their order, and how an interrupted distillation continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from transformers import TrainingArguments

from tutelage.data.encode import Subset
from tutelage.errors import ModelError
from tutelage.method.taid import Interpolation
from tutelage.method.weighting import constant_weight
from tutelage.models.placement import device
from tutelage.run.artifacts import ChoiceRecord, StageRecord
from tutelage.training import fsdp, stage_records
from tutelage.training.callbacks import Interpolate, JsonLog, OnStep, SaveAt, seconds_before
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.probe import CheckpointChooser
from tutelage.training.trainer import (
    DistillTrainer,
    Guidance,
    ScheduleSegment,
    epochs_in_budget,
    save_optimizer,
    steps_of,
    train,
    training_arguments,
)
from tutelage.utils import ranks
from tutelage.utils.files import read_json, write_json


def restart_only(keep_stages: bool, folder: Path) -> Iterator[Path]:
    """What in a distillation's folder is only needed to continue; the students at the starts of the stages may stay."""
    patterns = ("trainer-*", "stage-*-end", "optimizer-*.pt", *([] if keep_stages else ["stage-*-start"]))
    return (path for pattern in patterns for path in folder.glob(pattern))


class Distillation:
    """Training of one student through all stages, recorded in `folder`."""

    def __init__(self, plan: DistillationPlan, folder: Path, setup: StudentSetup) -> None:
        """folder: for the records, and for what an interrupted distillation continues from."""
        self.plan, self.folder, self.setup = plan, folder, setup
        self._chooser = CheckpointChooser(plan, setup, folder)

    def run(self) -> tuple[Path, list[StageRecord]]:
        """Run all stages that are not finished. Returns the folder of the kept student and the records of the stages.

        Raises ModelError for a schedule, weights or a training run that cannot work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        records = stage_records.read_stages(self.folder)
        model = None
        for stage in range(len(records) + 1, self.plan.num_stages + 1):
            model = self._start(stage) if model is None else model
            records.append(self._stage(stage, model, records))
            ranks.once(lambda: stage_records.write_stages(self.folder, records))
            self.setup.on_stage(records[-1])
        last = self.plan.keep == "last"
        return self.end(len(records) if last else stage_records.best_stage(records, self.plan.select_by)), records

    def seconds_before(self) -> float:
        """Seconds of training by interrupted processes that are not lost: finished stages, and the started one up to
        its resume checkpoint."""
        records = stage_records.read_stages(self.folder)
        started = seconds_before(self._trainer_folder(len(records) + 1))
        return sum(record["seconds"] for record in records) + started

    def end(self, stage: int) -> Path:
        """Folder of the student after a stage, which is where the next stage starts."""
        return self.folder / (f"stage-{stage + 1}-start" if stage < self.plan.num_stages else f"stage-{stage}-end")

    def weights(self, checkpoint: str | None) -> np.ndarray:
        """[rows] fraction of each row's loss that follows the teacher in a stage with this checkpoint.

        It is 1 for rows without gold: there is nothing to weigh the teacher against.
        """
        rows = len(self.setup.rows)
        if checkpoint is None:
            return constant_weight(rows, 0.0)
        gold = rows if self.setup.gold is None else self.setup.gold
        if self.plan.components.weighting == "constant":
            weights = constant_weight(gold, self.plan.kd_ratio)
        else:
            weights = self.setup.weighting.weights(checkpoint)
        return np.concatenate([weights, constant_weight(rows - gold, 1.0)])

    def _trainer_folder(self, stage: int) -> Path:
        """What an interrupted stage continues from: its choice and its resume checkpoints."""
        return self.folder / f"trainer-{stage}"

    def _optimizer(self, stage: int) -> Path:
        """File of the optimizer's state after a stage, if stages do not reset it."""
        return self.folder / f"optimizer-{stage}.pt"

    def _start(self, stage: int) -> nn.Module:
        """The student at the start of a stage."""
        model = self.setup.load(self.end(stage - 1) if stage > 1 else None, self.plan.seed)
        if stage == 1 and self.plan.keep_stages:
            ranks.once(lambda: self.setup.save(model, self.end(0)))
        return model

    def _stage(self, stage: int, model: nn.Module, records: list[StageRecord]) -> StageRecord:
        """Choose, train, validate and save. records: of the stages before."""
        folder = self._trainer_folder(stage)
        began = time.monotonic() - seconds_before(folder)
        choice = ranks.once(lambda: self._choice(stage, model, records))
        guidance = self._train(stage, model, choice["chosen"], records, began)
        ranks.once(lambda: self._write_weights(stage, guidance))
        interpolate = guidance.interpolate if guidance else None
        with self.setup.autocast():
            validation = self.setup.validate(model)
        ranks.once(lambda: self._save(stage, model, validation.rows))
        return {
            "stage": stage,
            **choice,
            **({"taid": interpolate.interpolation.state()} if interpolate else {}),
            "seconds": round(time.monotonic() - began, 3),
            "validation": {"score": validation.score, "nll": validation.nll},
        }

    def _choice(self, stage: int, model: nn.Module, records: list[StageRecord]) -> ChoiceRecord:
        """The checkpoint of a stage. An interrupted stage keeps the one that it had chosen."""
        path = self._trainer_folder(stage) / "choice.json"
        if path.is_file():
            return read_json(path)
        choice = self._choose(stage, model, records)
        write_json(path, choice)
        return choice

    def _choose(self, stage: int, model: nn.Module, records: list[StageRecord]) -> ChoiceRecord:
        return self._chooser.choose(stage, model, records)

    def _save(self, stage: int, model: nn.Module, rows: Sequence[stage_records.ValidationRow]) -> None:
        """What a stage leaves behind: the student, and its results on the validation rows."""
        self.setup.save(model, self.end(stage))
        stage_records.write_validation_rows(self.folder, stage, rows)

    def _train(
        self, stage: int, model: nn.Module, checkpoint: str | None, records: list[StageRecord], began: float
    ) -> Guidance | None:
        """Train the model for a stage. began: as in `SaveAt`. Returns the trainer's guidance; None for gold only."""
        plan, setup = self.plan, self.setup
        # A seed for every stage: with the same one each stage would see the rows in the same order.
        seed = plan.seed * 1000 + stage
        args = training_arguments(self._trainer_folder(stage), plan.trainer, seed=seed, epochs=self._epochs())
        steps = steps_of(args, len(setup.rows))
        if plan.stage_reset:
            _refuse_warmup_only(args, steps)
        every, interpolate = plan.save_steps or steps, self._interpolate(stage, steps, records)
        guidance = self._guidance(checkpoint, interpolate)
        divided = fsdp.to_be_divided(model) if ranks.divides_models() else None
        trainer = DistillTrainer(
            model if divided is None else divided,
            args,
            setup.rows,
            vocabulary=setup.vocabulary,
            pad_id=setup.pad_id,
            guidance=guidance,
            fused=plan.fused_loss,
            callbacks=[
                SaveAt(range(every, steps, every), began),
                JsonLog(self.folder / "log.jsonl", stage=stage, checkpoint=checkpoint),
                OnStep(lambda done, total: setup.on_step(stage, done, total)),
            ],
            segment=self._segment(stage, steps),
        )
        train(trainer)
        if not plan.stage_reset:
            save_optimizer(trainer, self._optimizer(stage))
        if divided is not None:
            fsdp.put_together(divided, model)
            model.to(device())
        return guidance

    def _epochs(self) -> float:
        """Passes over `setup.rows` in a stage."""
        plan, rows = self.plan, len(self.setup.rows)
        return epochs_in_budget(plan.trainer, plan.epochs_per_stage, rows, self.setup.budget_rows or rows)

    def _guidance(self, checkpoint: str | None, interpolate: Interpolate | None) -> Guidance | None:
        """The teacher in a stage that follows this checkpoint; None for gold only."""
        if checkpoint is None:
            return None
        divergence, temperature = self.plan.components.divergence, self.plan.temperature
        weight = ranks.once(lambda: self.weights(checkpoint))
        return Guidance(self.setup.teacher, checkpoint, weight, divergence, temperature, interpolate)

    def _interpolate(self, stage: int, steps: int, records: list[StageRecord]) -> Interpolate | None:
        """TAID's moving target over all stages, at the start of this one. steps: of one stage."""
        if self.plan.components.schedule != "interpolated":
            return None
        interpolation = Interpolation(**records[-1]["taid"]) if records else Interpolation()
        return Interpolate(interpolation, steps=steps * self.plan.num_stages, done=steps * (stage - 1))

    def _segment(self, stage: int, steps: int) -> ScheduleSegment | None:
        """Where this stage lies in one learning-rate schedule over all stages; None if each stage has its own."""
        if self.plan.stage_reset:
            return None
        return ScheduleSegment(steps * (stage - 1), steps * self.plan.num_stages, self._optimizer(stage - 1))

    def _write_weights(self, stage: int, guidance: Guidance | None) -> None:
        """weights.jsonl: the weight of every row with gold as the trainer of this stage had it, and the losses behind
        it."""
        records: Iterable[stage_records.WeightRecord] = ()
        if guidance is not None:
            weighting, name = self.setup.weighting, guidance.checkpoint
            anchor_nll = weighting.anchor if weighting else None
            teacher_nll = (weighting.teacher if weighting else guidance.source.nll)(name)
            rows = Subset(self.setup.rows, range(self.setup.gold or len(self.setup.rows)))
            records = stage_records.weight_records(rows, stage, name, anchor_nll, teacher_nll, guidance.weight)
        stage_records.write_weights(self.folder, stage, records)


def _refuse_warmup_only(args: TrainingArguments, steps: int) -> None:
    """Raises ModelError for a stage that consists of warm-up: its first step has learning rate 0."""
    if args.lr_scheduler_type != "constant" and args.get_warmup_steps(steps) >= steps:
        raise ModelError(
            f"a stage has {steps} step{'s' * (steps > 1)}, all of them warm-up, whose first step has learning rate 0:"
            " raise distill.epochs_per_stage, lower trainer.warmup_steps or the batch size, or set"
            " distill.stage_reset=false"
        )
