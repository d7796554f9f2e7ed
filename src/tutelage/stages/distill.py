"""distill: one student for every method and seed, each with the same rows, steps, stages and resets.

Writes distill/METHOD/seed-K/: the student (plain `save_pretrained`), stages.json, validation_rows.jsonl,
weights.jsonl, log.jsonl, probe.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import TokenStore
from tutelage.method.methods import Method, find_method
from tutelage.models.adapters import merged
from tutelage.models.load import device, load_trainable, save_student
from tutelage.run import stage_inputs
from tutelage.run.manifest import Work
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.sources import CachedTeacher, TeacherSource
from tutelage.training import recorded_losses as losses
from tutelage.training.distillation import Distillation, Plan, Validation, ValidationRow
from tutelage.training.run_models import RunModels


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    for method in run.recipe.distill.methods:
        for seed in run.recipe.distill.seeds:
            cell(run, models, method, seed)


def cell(run: RunFolder, models: RunModels, method: str, seed: int) -> None:
    """Distil one student, unless it is there."""
    inputs, run = stage_inputs.student(run, method), run.varied(method)
    models = models if models.run is run else RunModels(run)
    recipe, parts = run.recipe, find_method(method)
    with run.work(f"distill/{method}/seed-{seed}", inputs) as work:
        if work is None:
            return
        rows = (
            models.encoded("train")
            if parts.answers == "gold"
            else TokenStore(run.folder / "teacher_answers/train.arrow", "train")
        )
        source, best = _teacher(run, parts, rows)
        plan = make_plan(run, method, seed)
        adaptive = losses.weighting(run, parts, rows, source)
        first = recipe.student
        if recipe.distill.start == "anchor":
            first = first.model_copy(update={"model_name_or_path": str(run.folder / "anchor"), "revision": None})
        with run.screen.steps(f"{method} seed {seed}") as on_step:
            job = Distillation(
                plan,
                work.folder,
                rows,
                models.vocabulary,
                models.pad_id,
                source,
                best,
                adaptive,
                load=lambda folder: load_trainable(first, folder, seed),
                save=lambda model, folder: save_student(model, models.tokenizer, folder),
                validate=lambda model: _validate(models, model),
                autocast=models.autocast,
                on_step=lambda stage, done, total: on_step((stage - 1) * total + done, plan.num_stages * total),
                on_stage=lambda record: _say(run, record),
            )
            work.seconds_before = job.seconds_before()
            kept, records = job.run()
        _finish(run, models, work, job, kept, records)


def make_plan(run: RunFolder, method: str, seed: int) -> Plan:
    """The recipe's distill section for one method and seed."""
    recipe, section = run.recipe, run.recipe.distill
    own = section.model_dump(include=set(Plan.__dataclass_fields__) - {"trainer"})
    return Plan(
        method=method,
        seed=seed,
        fused_loss=recipe.fused_loss,
        trainer=run.trainer_arguments("distill"),
        **own,
        **section.schedule.model_dump(),
    )


def _teacher(run: RunFolder, parts: Method, rows: Sequence[EncodedRow]) -> tuple[TeacherSource | None, str | None]:
    """The cached checkpoints as the method reads them, and the name of T*."""
    if parts.schedule == "none":
        return None, None
    taught = run.teacher_checkpoints
    names = [checkpoint["name"] for checkpoint in taught["checkpoints"]]
    return CachedTeacher(run.folder / "cache", names, rows, bf16=run.bf16), taught["best"]


def _validate(models: RunModels, model: nn.Module) -> Validation:
    exam = models.exam("validation")
    score, scores, losses = models.evaluator.quick(model, exam)
    rows = zip(exam.examples, losses.tolist(), scores, strict=True)
    return Validation(score, float(losses.mean()), [ValidationRow(example.id, *row) for example, *row in rows])


def _say(run: RunFolder, record: dict[str, Any]) -> None:
    seen = record["validation"]
    run.screen.say(
        f"  stage {record['stage']}: follows {record['chosen'] or 'gold'} ({record['reason']});"
        f" validation {run.task.metric} {seen['score']:.3f}, loss {seen['nll']:.3f} nats; {record['seconds']:.0f} s"
    )
    if record["stall"]:
        run.screen.warn(f"stall in stage {record['stage']}: {record['stall']}")


def _finish(
    run: RunFolder, models: RunModels, work: Work, job: Distillation, kept: Path, records: list[dict[str, Any]]
) -> None:
    """The kept student becomes the result, as a whole model that plain transformers loads."""
    model = merged(job.load(kept))
    save_student(model, models.tokenizer, work.folder)
    write_usage(run, work.folder)
    stage = next((r["stage"] for r in records if job.end(r["stage"]) == kept), len(records))
    work.about = {"kept_stage": stage, "seed": job.plan.seed}
    if device().type == "cpu":
        work.about["threads"] = torch.get_num_threads()
    job.clean()


def write_usage(run: RunFolder, folder: Path) -> None:
    """tutelage.json beside the student: how `predict` renders a row and reads an answer."""
    usage = {
        "task": run.recipe.task.model_dump() | {"labels": run.prepared["labels"]},
        "data": run.recipe.data.model_dump(),
        "choice": run.prepared["choice"],
        "max_new_tokens": run.prepared["max_new_tokens"],
        "run": run.recipe.name,
    }
    (folder / "tutelage.json").write_text(json.dumps(usage, indent=2, ensure_ascii=False), encoding="utf-8")
