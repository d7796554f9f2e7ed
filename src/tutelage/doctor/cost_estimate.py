"""Predictions of time, disk and memory of every stage, from a timing run; next to what finished stages took."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.analysis.run_results import read_manifests
from tutelage.bytes.vocabulary import ALPHABET
from tutelage.doctor.checks import Check
from tutelage.doctor.fit_checks import FittingRows
from tutelage.doctor.timing_run import Timings, usual_answer_length
from tutelage.errors import Kind
from tutelage.method.methods import find_method
from tutelage.models.load import hidden_size
from tutelage.recipe.schema import Recipe
from tutelage.records import BASE_MODELS
from tutelage.teacher.hidden_store import bytes_on_disk
from tutelage.training.trainer import steps_of, training_arguments
from tutelage.utils.memory import machine_memory

STAGES = ("prepare", "teach", "silver", "anchor", "cache", "cross_fit", "distill", "evaluate")
"""Stages whose time is predicted, in the order of a run."""
TRAINING_TEACH, TRAINING_DISTILL = "teach while training", "distill while training"
"""What a stage takes on disk only until it is done."""
USABLE_MEMORY = 0.9
"""Fraction of the memory above which longer rows than those of the timing run may not fit."""


def check_budget(recipe: Recipe, fitting: FittingRows, timings: Timings, prepare_seconds: float) -> list[Check]:
    """What the run will take, stage by stage."""
    seconds = predict_seconds(recipe, fitting, timings) | {"prepare": prepare_seconds}
    taken = _taken(Path(recipe.output_dir), recipe.distill.students)
    numbers = {"predicted": seconds, "taken": taken}
    details = {"steps": timings.steps, "stages": [stage for stage in STAGES if seconds.get(stage)]}
    times = Check("time", "budget", "passed", numbers=numbers, details=details)
    return [times, _disk(recipe, predict_disk(recipe, fitting, timings)), _memory(recipe, fitting, timings)]


def _taken(folder: Path, students: Sequence[str]) -> dict[str, float]:
    """Seconds of every stage that is done as a whole, from the manifests. students: METHOD/seed-K, ..."""
    manifests = read_manifests(folder)
    parts = {stage: [stage] for stage in STAGES} | {"distill": [f"distill/{name}" for name in students]}
    parts["evaluate"] = [f"evaluate/{name}" for name in (*BASE_MODELS, *students)]
    return {
        stage: round(sum(manifests[name]["seconds"] for name in names), 2)
        for stage, names in parts.items()
        if names and all(name in manifests for name in names)
    }


# --- time ---


def predict_seconds(recipe: Recipe, fitting: FittingRows, timings: Timings) -> dict[str, float]:
    """Seconds by stage; 0 for one that has nothing to do."""
    rows = {split: len(store) for split, store in fitting.stores.items()}
    methods = [find_method(name) for name in recipe.distill.methods]
    scored = {role: rows["validation"] * (model.answer + model.read) for role, model in timings.models.items()}
    teacher = timings.models["teacher"]
    uses_teacher = any(method.schedule != "none" for method in methods)
    cache = _checkpoints(recipe) * (teacher.load + fitting.budget_rows * teacher.cache)
    budget = fitting.budget_rows
    return {
        "teach": _teach(recipe, timings, rows["train"], scored["teacher"]),
        "silver": teacher.load + fitting.unlabelled * teacher.answer if fitting.unlabelled else 0.0,
        "anchor": _anchor(recipe, timings, rows, budget, scored["student"]),
        "cache": cache if uses_teacher else 0.0,
        "cross_fit": _cross_fit(recipe, timings, rows["train"], budget)
        if any(m.needs_cross_fit for m in methods)
        else 0.0,
        "distill": _distill(recipe, timings, budget, scored["student"]),
        "evaluate": _evaluate(recipe, fitting, timings, rows),
    }


def _checkpoints(recipe: Recipe) -> int:
    given = recipe.teach.checkpoints
    return recipe.teach.num_checkpoints if isinstance(given, str | None) else len(given)


def _saved_checkpoints(recipe: Recipe) -> int:
    """Checkpoints saved in training: spacing by loss saves four times as many, to choose from."""
    return _checkpoints(recipe) * (4 if recipe.teach.spacing == "loss" else 1)


def _steps(recipe: Recipe, rows: int, sections: Sequence[Any], epochs: float | None = None) -> int:
    """Optimizer steps of a fine-tuning run, or of a stage."""
    arguments = recipe.trainer_arguments(*sections)
    return steps_of(training_arguments(Path("unused"), arguments, seed=0, epochs=epochs), rows)


def _anchor_steps(recipe: Recipe, rows: int) -> int:
    return _steps(recipe, rows, ("distill", "anchor"), recipe.distill.num_stages * recipe.distill.epochs_per_stage)


def _teach(recipe: Recipe, timings: Timings, rows: int, scoring: float) -> float:
    teacher, saved = timings.models["teacher"], _saved_checkpoints(recipe)
    seconds = saved * (teacher.load + scoring)
    if recipe.teach.checkpoints is None:
        seconds += teacher.load + _steps(recipe, rows, ("teach",)) * teacher.step + saved * teacher.save
    return seconds


def _anchor(recipe: Recipe, timings: Timings, rows: dict[str, int], budget: int, scoring: float) -> float:
    student, stages = timings.models["student"], recipe.distill.num_stages
    seconds = (rows["train"] + rows["validation"]) * student.read
    if not recipe.anchor.model_name_or_path:
        seconds += student.load + _anchor_steps(recipe, budget) * student.step + stages * student.save
    if recipe.anchor.keep != "last":
        seconds += stages * (student.load + scoring)
    return seconds


def _distill(recipe: Recipe, timings: Timings, rows: int, scoring: float) -> float:
    student, plan = timings.models["student"], recipe.distill
    steps = _steps(recipe, rows, ("distill",), plan.epochs_per_stage)
    seconds = 0.0
    for name in plan.methods:
        step = student.step if find_method(name).schedule == "none" else student.guided_step
        stage = steps * step + scoring + student.save / 3
        seconds += len(plan.seeds) * (2 * student.load + plan.num_stages * stage)
    return seconds


def _evaluate(recipe: Recipe, fitting: FittingRows, timings: Timings, rows: dict[str, int]) -> float:
    """Teacher, anchor, students; and the untrained student, whose answers go on to the limit."""
    untrained = (recipe.task.max_new_tokens or fitting.max_new_tokens) / usual_answer_length(fitting)
    counts = {"teacher": 1, "student": 1 + untrained + len(recipe.distill.methods) * len(recipe.distill.seeds)}
    return sum(
        counts[role] * (model.load + rows["test"] * (model.answer + model.read) + rows["validation"] * model.read)
        for role, model in timings.models.items()
    )


def _cross_fit(recipe: Recipe, timings: Timings, rows: int, budget: int) -> float:
    """Every fold: models trained on the other folds, their losses on it."""
    teacher, student, folds = timings.models["teacher"], timings.models["student"], recipe.cross_fit.folds
    fraction = (folds - 1) / folds
    each = student.load + fraction * _anchor_steps(recipe, budget) * student.step + rows / folds * student.read
    if recipe.cross_fit.teacher:
        checkpoint = teacher.save + teacher.load + rows / folds * teacher.read
        steps = _steps(recipe, rows, ("teach",))
        each += teacher.load + fraction * steps * teacher.step + _checkpoints(recipe) * checkpoint
    return folds * each


# --- disk and memory ---


def predict_disk(recipe: Recipe, fitting: FittingRows, timings: Timings) -> dict[str, int]:
    """Bytes by stage: what stays, and what resume checkpoints take while a stage trains."""
    teacher, student, plan = timings.models["teacher"], timings.models["student"], recipe.distill
    count, width = recipe.teach.num_checkpoints, hidden_size(recipe.teacher) or 0
    each = 2 if recipe.cache.dtype == "bfloat16" else 4
    trains, students = recipe.teach.checkpoints is None, len(plan.methods) * len(plan.seeds)
    heads = 0 if recipe.teacher.lora else fitting.vocabulary * width * each
    if fitting.readers:
        cache = int(fitting.readers[0].lengths(fitting.stores["train"]).sum()) * ALPHABET * each
    else:
        cache = bytes_on_disk(fitting.stores["train"], width, each) + heads
    return {
        "teach": count * teacher.weight_bytes if trains else 0,
        TRAINING_TEACH: count * (4 if recipe.teach.spacing == "loss" else 1) * teacher.saved_bytes if trains else 0,
        "anchor": student.weight_bytes,
        "cache": count * cache,
        "distill": students * student.weight_bytes * (1 + plan.num_stages * plan.keep_stages),
        TRAINING_DISTILL: plan.num_stages * student.weight_bytes,
    }


def _disk(recipe: Recipe, disk: dict[str, int]) -> Check:
    folder = next(p for p in (Path(recipe.output_dir), *Path(recipe.output_dir).absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    kept = sum(size for stage, size in disk.items() if stage not in (TRAINING_TEACH, TRAINING_DISTILL))
    peak = max(disk[TRAINING_TEACH], kept + disk[TRAINING_DISTILL])
    numbers = disk | {"kept": kept, "peak": peak, "free": free}
    if peak > free:
        return Check("disk", "budget", "fail", Kind.DISK_TOO_SMALL, numbers, "output_dir=A_LARGER_DISK/RUN")
    return Check("disk", "budget", "passed", numbers=numbers)


def _memory(recipe: Recipe, fitting: FittingRows, timings: Timings) -> Check:
    """Peaks in training, against what this machine has."""
    total = machine_memory()
    each = 2 if recipe.cache.dtype == "bfloat16" else 4
    head = fitting.vocabulary * (hidden_size(recipe.teacher) or 0) * each
    teach, anchor = timings.models["teacher"].memory, timings.models["student"].memory
    numbers = {"teach": teach, "anchor": anchor, "machine": total, "distill": anchor + head}
    if max(teach, anchor + head) > USABLE_MEMORY * total:
        return Check("memory", "budget", "look", Kind.MEMORY_TIGHT, numbers, smaller_batch(recipe))
    return Check("memory", "budget", "passed", numbers=numbers)


def smaller_batch(recipe: Recipe) -> str:
    """The line that halves the batch."""
    batch = recipe.trainer_arguments("teach")["per_device_train_batch_size"]
    return f"trainer.per_device_train_batch_size={max(1, batch // 2)}"
