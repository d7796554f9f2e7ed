"""distill: one student for every method and seed, each with the same rows, steps, stages and resets.

Writes distill/METHOD/seed-K/: the student (plain `save_pretrained`), stages.json, weights.jsonl, log.jsonl, probe.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tutelage import lineage
from tutelage.artifacts import Work, read_json
from tutelage.data import EncodedRow, pad_id_of
from tutelage.distillation import Distillation, Plan, Validation
from tutelage.errors import StaleArtifactError
from tutelage.methods import Method, find_method
from tutelage.models import load_trainable, merged, save_student
from tutelage.records import read_jsonl
from tutelage.teachers import CachedTeacher
from tutelage.token_store import TokenStore
from tutelage.workspace import Workspace


def run(space: Workspace) -> None:
    """Do the stage."""
    for method in space.recipe.distill.methods:
        for seed in space.recipe.distill.seeds:
            cell(space, method, seed)


def cell(space: Workspace, method: str, seed: int) -> None:
    """Distil one student, unless it is there."""
    recipe = space.recipe
    parts = find_method(method)
    with space.work(f"distill/{method}/seed-{seed}", lineage.student(space, method)) as work:
        if work is None:
            return
        rows = (
            space.encoded("train") if parts.answers == "gold" else TokenStore(space.folder / "teacher_answers/train.arrow", "train")
        )
        source, best = None, None
        if parts.schedule != "none":
            taught = read_json(space.folder / "teach" / "checkpoints.json")
            names = [checkpoint["name"] for checkpoint in taught["checkpoints"]]
            source = CachedTeacher(space.folder / "cache", names, rows, bf16=space.bf16)
            best = taught["best"]
        plan = make_plan(space, method, seed)
        anchor_nll, teacher_nll = _losses(space, parts, rows)
        with space.screen.steps(f"{method} seed {seed}") as on_step:
            job = Distillation(
                plan,
                work.folder,
                rows,
                space.about["vocabulary"],
                pad_id_of(space.tokenizer),
                source,
                best,
                anchor_nll,
                load=lambda folder: load_trainable(recipe.student, folder, seed),
                save=lambda model, folder: save_student(model, space.tokenizer, folder),
                validate=lambda model: _validate(space, model),
                teacher_nll=teacher_nll,
                autocast=space.autocast,
                on_step=lambda stage, done, total: on_step((stage - 1) * total + done, plan.num_stages * total),
                on_stage=lambda record: _say(space, record),
            )
            kept, records = job.run()
        _finish(space, work, job, kept, records)


def make_plan(space: Workspace, method: str, seed: int) -> Plan:
    """The recipe's distill section for one method and seed."""
    recipe, section = space.recipe, space.recipe.distill
    own = section.model_dump(include=set(Plan.__dataclass_fields__) - {"trainer"})
    return Plan(
        method=method,
        seed=seed,
        fused_loss=recipe.fused_loss,
        trainer=space.trainer_arguments("distill"),
        **own,
        **section.schedule.model_dump(),
    )


def _losses(space: Workspace, parts: Method, rows: Sequence[EncodedRow]) -> tuple[np.ndarray | None, dict[str, np.ndarray] | None]:
    """What weights are made of: [rows] losses of the anchor; and of every checkpoint, where those are not the cache's."""
    if parts.weighting != "adaptive_cross_fit":
        return _anchor_losses(space, rows) if parts.needs_anchor else None, None
    lines = list(read_jsonl(space.folder / "cross_fit" / "sample_loss.jsonl"))
    teacher = {name: np.array([line["teacher"][name] for line in lines]) for name in lines[0]["teacher"]}
    return np.array([line["anchor"] for line in lines]), teacher


def _anchor_losses(space: Workspace, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] losses of the anchor, which were written in the order of the rows, training rows first."""
    lines = read_jsonl(space.folder / "anchor" / "sample_loss.jsonl")
    losses = np.zeros(len(rows))
    for place, row in enumerate(rows):
        line = next(lines, {"id": "none"})
        if row.id != line["id"]:
            raise StaleArtifactError(
                f"anchor/sample_loss.jsonl has row {line['id']} where {row.id} is: tutelage anchor RECIPE --force"
            )
        losses[place] = line["nll"]
    return losses


def _validate(space: Workspace, model: nn.Module) -> Validation:
    return Validation(*space.evaluator.quick(model, space.exam("validation")))


def _say(space: Workspace, record: dict[str, Any]) -> None:
    seen = record["validation"]
    space.screen.say(
        f"  stage {record['stage']}: follows {record['chosen'] or 'gold'} ({record['reason']});"
        f" validation {space.task.metric} {seen['score']:.3f}, loss {seen['nll']:.3f} nats; {record['seconds']:.0f} s"
    )
    if record["stall"]:
        space.screen.warn(f"stall in stage {record['stage']}: {record['stall']}")


def _finish(space: Workspace, work: Work, job: Distillation, kept: Path, records: list[dict[str, Any]]) -> None:
    """The kept student becomes the result, as a whole model that plain transformers loads."""
    model = merged(load_trainable(space.recipe.student, kept, job.plan.seed))
    save_student(model, space.tokenizer, work.folder)
    write_usage(space, work.folder)
    stage = next((r["stage"] for r in records if job.end(r["stage"]) == kept), len(records))
    work.about = {"kept_stage": stage, "seed": job.plan.seed}
    job.clean()


def write_usage(space: Workspace, folder: Path) -> None:
    """tutelage.json beside the student: how `predict` renders a row and reads an answer."""
    usage = {
        "task": space.recipe.task.model_dump() | {"labels": space.about["labels"]},
        "data": space.recipe.data.model_dump(),
        "choice": space.about["choice"],
        "max_new_tokens": space.about["max_new_tokens"],
        "run": space.recipe.name,
    }
    (folder / "tutelage.json").write_text(json.dumps(usage, indent=2, ensure_ascii=False), encoding="utf-8")
