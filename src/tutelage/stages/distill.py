"""distill: one student for every method and seed, each with the same rows, steps, stages and stage resets.

Writes distill/METHOD/seed-K/: the student (plain `save_pretrained`), stages.json, validation_rows.jsonl,
weights.jsonl, log.jsonl, probe.json.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from tutelage.data.token_store import TokenStore
from tutelage.method.methods import find_method
from tutelage.models.placement import device
from tutelage.predict.usage import usage_of
from tutelage.run import stage_inputs
from tutelage.run.artifacts import StageRecord
from tutelage.run.manifest import Work
from tutelage.run.run_folder import RunFolder
from tutelage.training import recorded_losses, stage_records
from tutelage.training.distillation import Distillation, restart_only
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.run_models import RunModels
from tutelage.training.stage_records import Validation, ValidationRow
from tutelage.utils import ranks
from tutelage.utils.files import write_json


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Distil every student of the recipe that is not up to date."""
    for method in run.recipe.distill.methods:
        for seed in run.recipe.distill.seeds:
            cell(run, models, method, seed)


def cell(run: RunFolder, models: RunModels, method: str, seed: int) -> None:
    """Distil one student, unless it is up to date."""
    inputs, run = stage_inputs.student(run, method), run.varied(method)
    models = models if models.run is run else RunModels(run)
    continuing = partial(restart_only, run.recipe.distill.keep_stages)
    with run.work(f"distill/{method}/seed-{seed}", inputs, restart_only=continuing) as work:
        if work is None:
            return
        plan, setup = _plan(run, method, seed), _setup(run, models, method)
        with run.screen.steps(f"{method} seed {seed}") as on_step:
            setup.on_step = lambda stage, done, total: on_step((stage - 1) * total + done, plan.num_stages * total)
            distillation = Distillation(plan, work.folder, setup)
            work.seconds_before = distillation.seconds_before()
            kept, records = distillation.run()
        _finish(models, work, distillation, kept, records)


def _plan(run: RunFolder, method: str, seed: int) -> DistillationPlan:
    """The recipe's `distill` section for one method and seed."""
    section = run.recipe.distill
    names = set(DistillationPlan.__dataclass_fields__) - {"trainer"}
    return DistillationPlan(
        method=method,
        seed=seed,
        fused_loss=run.recipe.fused_loss,
        trainer=run.trainer_arguments("distill"),
        **section.model_dump(include=names),
        **section.schedule.model_dump(),
    )


def _setup(run: RunFolder, models: RunModels, method: str) -> StudentSetup:
    """Rows, teacher and weights of a method in this run; the recipe's student, or the anchor, to start from."""
    components, student = find_method(method), run.recipe.student
    if run.recipe.distill.start == "anchor":
        student = student.model_copy(update={"model_name_or_path": str(run.folder / "anchor"), "revision": None})
    if components.answers == "teacher":
        rows = TokenStore(run.folder / "teacher_answers/train.arrow", "train")
    else:
        rows = models.encoded("train") if components.schedule == "none" else models.training_rows()
    teacher = best = None
    if components.schedule != "none":
        taught = run.teacher_checkpoints
        names, best = [checkpoint["name"] for checkpoint in taught["checkpoints"]], taught["best"]
        teacher = models.cached_teacher(names, rows)
    return StudentSetup(
        model=student,
        tokenizer=models.tokenizer,
        vocabulary=models.vocabulary,
        rows=rows,
        teacher=teacher,
        best=best,
        gold=len(models.encoded("train")),
        budget_rows=run.budget_rows,
        weighting=recorded_losses.weighting(run, components, models.encoded("train"), teacher),
        validate=partial(_validate, models),
        autocast=models.autocast,
        on_stage=partial(_say, run),
    )


def _validate(models: RunModels, model: nn.Module) -> Validation:
    eval_set = models.eval_set("validation")
    found = models.evaluator.validate(model, eval_set)
    rows = zip(eval_set.examples, found.losses.tolist(), found.scores, strict=True)
    return Validation(
        found.score, float(found.losses.mean()), [ValidationRow(example.id, *values) for example, *values in rows]
    )


def _say(run: RunFolder, record: StageRecord) -> None:
    validation = record["validation"]
    run.screen.say(
        f"  stage {record['stage']}: follows {record['chosen'] or 'gold'} ({record['reason']}); validation"
        f" {run.task.metric} {validation['score']:.3f}, loss {validation['nll']:.3f} nats; {record['seconds']:.0f} s"
    )
    if record["stall"]:
        run.screen.warn(f"stall in stage {record['stage']}: {record['stall']}")


def _finish(models: RunModels, work: Work, distillation: Distillation, kept: Path, records: list[StageRecord]) -> None:
    """Save the kept student as a whole model that plain transformers loads."""
    seed, setup, stages = distillation.plan.seed, distillation.setup, [record["stage"] for record in records]
    kept_stage = next((stage for stage in stages if distillation.end(stage) == kept), len(stages))
    losses = stage_records.validation_losses(work.folder, kept_stage)
    models.save_whole(setup.load(kept, seed), setup.model, work.folder, losses)
    ranks.once(lambda: write_json(work.folder / "tutelage.json", usage_of(models.run)))  # what `predict` is told
    work.about = {"kept_stage": kept_stage, "seed": seed}
    if device().type == "cpu":
        work.about["threads"] = torch.get_num_threads()
