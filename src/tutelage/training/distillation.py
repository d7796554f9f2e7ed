"""SCD with adaptive weighting, stage by stage: measure, choose, weigh, train, keep. The command and `SCDTrainer` both
run this.

A method's schedule, divergence and weighting come from `methods.py`; `schedule.py` chooses, `weighting.py` weighs,
`trainer.py` trains. This module calls them in order, records each stage, and resumes an interrupted run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.method import schedule
from tutelage.method.methods import Method, find_method
from tutelage.method.schedule import Candidate, Choice
from tutelage.method.taid import Interpolation
from tutelage.method.weighting import AdaptiveWeighting, constant_weight
from tutelage.teacher.sources import TeacherSource
from tutelage.training.callbacks import Interpolate, JsonLog, OnStep, SaveAt, seconds_before
from tutelage.training.probe import Probe
from tutelage.training.trainer import (
    DistillTrainer,
    Guidance,
    ScheduleSegment,
    save_optimizer,
    steps_of,
    train,
    training_arguments,
)
from tutelage.utils.files import read_json, read_jsonl, write_json, write_jsonl


@dataclass(frozen=True)
class Plan:
    """How a student is distilled; the fields mean what the recipe and its `distill` section say."""

    method: str = "scd-aw"
    num_stages: int = 4
    epochs_per_stage: float = 2.0
    stage_reset: bool = True
    kd_ratio: float = 0.5
    temperature: float = 1.0
    advance: bool = False
    student_kl: str = "reverse"
    probe_rows: int | None = None
    keep: str = "best"
    select_by: str = "score"
    keep_stages: bool = False
    save_steps: int | None = None
    fused_loss: bool = True
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> Method:
        """Schedule, divergence and weighting of the method."""
        return find_method(self.method)


class ValidationRow(NamedTuple):
    """A student on one validation row."""

    id: str
    nll: float
    """Mean over the answer's tokens, nats."""
    score: float | None
    """The row's own, in [0, 1]."""


@dataclass(frozen=True)
class Validation:
    """A student on the validation rows."""

    score: float | None
    nll: float | None
    rows: Sequence[ValidationRow] = ()

    def summary(self) -> dict[str, float | None]:
        """What the record of a stage says of it."""
        return {"score": self.score, "nll": self.nll}


@dataclass
class Distillation:
    """Training of one student through all stages, recorded in `folder`."""

    plan: Plan
    folder: Path
    rows: Sequence[EncodedRow]
    vocabulary: int
    pad_id: int
    source: TeacherSource | None
    best: str | None
    """Name of T*."""
    adaptive: AdaptiveWeighting | None
    """Computes the weights of methods with adaptive weighting; otherwise None."""
    load: Callable[[Path | None], nn.Module]
    """Gives the student to train: the untrained one for None, otherwise the one saved in a folder by `save`."""
    save: Callable[[nn.Module, Path], None]
    validate: Callable[[nn.Module], Validation]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The precision that the student is compared and validated in."""
    on_step: Callable[[int, int, int], None] = lambda stage, done, total: None
    on_stage: Callable[[dict[str, Any]], None] = lambda record: None
    _compared: Probe | None = field(default=None, init=False)

    def run(self) -> tuple[Path, list[dict[str, Any]]]:
        """Train all stages that are not done. Returns the folder of the kept student and the records of the stages."""
        self.folder.mkdir(parents=True, exist_ok=True)
        records = self._records()
        model = None
        for stage in range(len(records) + 1, self.plan.num_stages + 1):
            model = self._start(stage) if model is None else model
            records.append(self._stage(stage, model, records))
            write_json(self.folder / "stages.json", records)
            self.on_stage(records[-1])
        self._write_weights(records)
        return self.end(self._kept(records)), records

    def seconds_before(self) -> float:
        """Seconds of training that an interrupted process left for this one: whole stages, and the begun one's restart
        point."""
        records = self._records()
        begun = seconds_before(self.folder / f"trainer-{len(records) + 1}")
        return sum(record["seconds"] for record in records) + begun

    def clean(self) -> None:
        """Remove what only a restart needs; with `keep_stages` the students at the starts of the stages stay."""
        for path in [*self.folder.glob("trainer-*"), self.end(self.plan.num_stages)]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("optimizer-*.pt"):
            path.unlink()
        if not self.plan.keep_stages:
            for path in self.folder.glob("stage-*-start"):
                shutil.rmtree(path)

    def end(self, stage: int) -> Path:
        """Folder of the student after a stage, which is where the next one starts."""
        return self.folder / (f"stage-{stage + 1}-start" if stage < self.plan.num_stages else f"stage-{stage}-end")

    def _optimizer(self, stage: int) -> Path:
        """File of the optimizer's state after a stage, where stages go on from each other."""
        return self.folder / f"optimizer-{stage}.pt"

    def _records(self) -> list[dict[str, Any]]:
        """Records of the stages that are done. A stage is done when stages.json says so, which is written after its
        student."""
        path = self.folder / "stages.json"
        return read_json(path) if path.is_file() else []

    def _start(self, stage: int) -> nn.Module:
        model = self.load(self.end(stage - 1) if stage > 1 else None)
        if stage == 1 and self.plan.keep_stages:
            self.save(model, self.end(0))
        return model

    def _stage(self, stage: int, model: nn.Module, records: list[dict[str, Any]]) -> dict[str, Any]:
        """One stage: choose, weigh, train, validate, save."""
        began = time.monotonic() - seconds_before(self.folder / f"trainer-{stage}")
        decision = self.folder / f"trainer-{stage}" / "choice.json"
        if decision.is_file():  # a stage that was interrupted keeps the checkpoint it had chosen
            chosen = read_json(decision)
        else:
            chosen = self._choose(stage, model, records)
            write_json(decision, chosen)
        more = self._train(stage, model, chosen["chosen"], records, began)
        with self.autocast():
            validation = self.validate(model)
        self.save(model, self.end(stage))
        self._write_validation(stage, validation.rows)
        seconds = round(time.monotonic() - began, 3)
        return {"stage": stage, **chosen, **more, "seconds": seconds, "validation": validation.summary()}

    def _choose(self, stage: int, model: nn.Module, records: list[dict[str, Any]]) -> dict[str, Any]:
        plan, rule = self.plan, self.plan.parts.schedule
        if rule == "none":
            return {"chosen": None, "candidates": [], "reason": "gold only", "stall": None}
        candidates = []
        if plan.parts.compares_student:
            with self.autocast():
                candidates = self._probe().compare(model)
            seen = {"stage": stage, "num_stages": plan.num_stages, "best": self.best, "previous": _previous(records)}
            if callable(rule):
                choice = schedule.by_function(rule, candidates, **seen)
            else:
                choice = schedule.nearest(candidates, **seen, advance=plan.advance)
        else:
            choice = schedule.fixed(
                rule, self.source.checkpoints, stage=stage, num_stages=plan.num_stages, best=self.best, seed=plan.seed
            )
        return _decision(choice, candidates)

    def _probe(self) -> Probe:
        """The rows that checkpoints are compared on, the same in every stage."""
        if self._compared is None:
            plan, total = self.plan, len(self.rows)
            count = min(total, plan.probe_rows or min(256, max(16, round(0.02 * total * plan.epochs_per_stage))))
            places = np.sort(np.random.default_rng(plan.seed).permutation(total)[:count])
            write_json(self.folder / "probe.json", [self.rows[place].id for place in places])
            self._compared = Probe(
                [(int(place), self.rows[place]) for place in places],
                self.source,
                self.best,
                self.vocabulary,
                self.pad_id,
                plan.student_kl,
            )
        return self._compared

    def weights(self, checkpoint: str | None) -> np.ndarray:
        """[rows] fraction of each row's loss that follows the teacher."""
        if checkpoint is None:
            return constant_weight(len(self.rows), 0.0)
        if self.plan.parts.weighting == "constant":
            return constant_weight(len(self.rows), self.plan.kd_ratio)
        return self.adaptive.weights(checkpoint)

    def _train(
        self, stage: int, model: nn.Module, checkpoint: str | None, records: list[dict[str, Any]], began: float
    ) -> dict[str, Any]:
        """Train for a stage. Returns what the record of the stage has to say about it besides. began: as in
        `SaveAt`."""
        plan, folder = self.plan, self.folder / f"trainer-{stage}"
        # A seed of its own for every stage: otherwise each would see the rows in the same order.
        args = training_arguments(folder, plan.trainer, seed=plan.seed * 1000 + stage, epochs=plan.epochs_per_stage)
        total = steps_of(args, len(self.rows))
        if plan.stage_reset and args.lr_scheduler_type != "constant" and args.get_warmup_steps(total) >= total:
            raise ModelError(
                f"a stage has {total} step{'s' * (total > 1)}, all of them warm-up, whose first step has learning rate 0: raise"
                " distill.epochs_per_stage, lower trainer.warmup_steps or the batch, or set distill.stage_reset=false"
            )
        every = plan.save_steps or total
        guidance, interpolate = None, None
        if plan.parts.schedule == "interpolated":
            before = Interpolation(**records[-1]["taid"] if records else {})
            interpolate = Interpolate(before, steps=total * plan.num_stages, done=total * (stage - 1))
        if checkpoint is not None:
            guidance = Guidance(
                self.source,
                checkpoint,
                self.weights(checkpoint),
                plan.parts.divergence,
                plan.temperature,
                interpolate,
            )
        callbacks = [
            SaveAt(range(every, total, every), began),
            JsonLog(self.folder / "log.jsonl", stage=stage, checkpoint=checkpoint),
            OnStep(lambda done, steps: self.on_step(stage, done, steps)),
        ]
        trainer = DistillTrainer(
            model,
            args,
            self.rows,
            vocabulary=self.vocabulary,
            pad_id=self.pad_id,
            guidance=guidance,
            fused=plan.fused_loss,
            callbacks=callbacks,
            segment=None
            if plan.stage_reset
            else ScheduleSegment(total * (stage - 1), total * plan.num_stages, self._optimizer(stage - 1)),
        )
        train(trainer)
        if not plan.stage_reset:
            save_optimizer(trainer, self._optimizer(stage))
        return {"taid": interpolate.interpolation.state()} if interpolate else {}

    def _write_validation(self, stage: int, rows: Sequence[ValidationRow]) -> None:
        """validation_rows.jsonl: a line for every row, after those of the stages before this one.

        Written whole, before stages.json says that the stage is done: a stage that is trained again replaces its lines.
        """
        path = self.folder / "validation_rows.jsonl"
        if not rows:
            return
        before = [line for line in read_jsonl(path) if line["stage"] < stage] if path.is_file() else []
        new = [{"id": row.id, "stage": stage, "nll": row.nll, "score": row.score} for row in rows]
        write_jsonl(path, [*before, *new])

    def _kept(self, records: list[dict[str, Any]]) -> int:
        """The stage whose student is kept: the last, or the best on validation (the later one of equals)."""
        seen = [record["validation"] for record in records]
        if self.plan.keep == "last" or any(v["nll"] is None for v in seen):
            return len(records)
        by_score = self.plan.select_by == "score" and all(v["score"] is not None for v in seen)
        ranks = [(v["score"] if by_score else 0.0, -v["nll"], stage) for stage, v in enumerate(seen, start=1)]
        return max(ranks)[2]

    def _write_weights(self, records: list[dict[str, Any]]) -> None:
        """weights.jsonl: for every stage and row the two losses and the weight they gave."""
        guided = [record for record in records if record["chosen"] is not None]
        write_jsonl(self.folder / "weights.jsonl", (line for record in guided for line in self._weight_lines(record)))

    def _weight_lines(self, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        checkpoint, adaptive = record["chosen"], self.adaptive
        teacher = self.source.nll(checkpoint) if adaptive is None else adaptive.teacher(checkpoint)
        weight = self.weights(checkpoint) if adaptive is None else adaptive.weights(checkpoint)
        for place, row in enumerate(self.rows):
            anchor = None if adaptive is None else float(adaptive.anchor[place])
            yield {
                "id": row.id, "stage": record["stage"], "checkpoint": checkpoint, "anchor_nll": anchor,
                "teacher_nll": float(teacher[place]), "weight": float(weight[place]),
            }  # fmt: skip


def _decision(choice: Choice, candidates: list[Candidate]) -> dict[str, Any]:
    rows = [{**asdict(c), "total": c.total} for c in candidates]
    return {"chosen": choice.chosen, "candidates": rows, "reason": choice.reason, "stall": choice.stall}


def _previous(records: list[dict[str, Any]]) -> Candidate | None:
    """The checkpoint followed in the stage before, as it was seen at that stage's start."""
    if not records:
        return None
    seen = next(c for c in records[-1]["candidates"] if c["checkpoint"] == records[-1]["chosen"])
    return Candidate(seen["checkpoint"], seen["kl_best"], seen["kl_student"])
