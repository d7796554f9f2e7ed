"""Time, disk and memory of every stage, foretold from a trial's timed steps; and beside the truth, where a stage is
done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tutelage.doctor.checks import Check, in_bytes
from tutelage.doctor.fit_checks import Fitted
from tutelage.doctor.foretold import STAGES, duration, taken
from tutelage.doctor.timing_run import Trial
from tutelage.method.methods import find_method
from tutelage.models.load import hidden_size
from tutelage.recipe.schema import Recipe
from tutelage.teacher.hidden_store import bytes_on_disk
from tutelage.training.trainer import steps_of, training_arguments
from tutelage.utils.memory import machine_memory

WITHIN = 0.3
"""How near foretold times should be to true ones."""


def check_budget(recipe: Recipe, fitted: Fitted, trial: Trial, prepare_seconds: float) -> list[Check]:
    """What the run will take, stage by stage."""
    seconds, disk = (
        foretell_seconds(recipe, fitted, trial) | {"prepare": prepare_seconds},
        foretell_disk(recipe, fitted, trial),
    )
    truth = taken(Path(recipe.output_dir), recipe.distill.students)
    stages = [name for name in STAGES if seconds.get(name)]
    lines = [f"in all about {duration(sum(seconds.values()))}, from {trial.steps} timed steps of each model"]
    for name in stages:
        true = f", took {duration(truth[name])} ({seconds[name] / truth[name] - 1:+.0%})" if truth.get(name) else ""
        lines.append(f"{name}: {duration(seconds[name])}{true}")
    times = Check("time", "budget", "passed", "\n".join(lines), {"foretold": seconds, "true": truth})
    return [times, _disk(recipe, disk), _memory(recipe, fitted, trial)]


def foretell_seconds(recipe: Recipe, fitted: Fitted, trial: Trial) -> dict[str, float]:
    """Seconds by stage; 0 for one that has nothing to do."""
    teacher, student, plan = trial.parts["teacher"], trial.parts["student"], recipe.distill
    rows = {split: len(store) for split, store in fitted.stores.items()}
    methods = [find_method(name) for name in plan.methods]
    count = (
        recipe.teach.num_checkpoints
        if isinstance(recipe.teach.checkpoints, str | None)
        else len(recipe.teach.checkpoints)
    )
    kept = count * (4 if recipe.teach.spacing == "loss" else 1)
    taught, fine, stage = (_steps(recipe, rows["train"], *part) for part in _trainings(recipe))
    judged = {role: rows["validation"] * (part.answer + part.read) for role, part in trial.parts.items()}
    own = recipe.teach.checkpoints is not None
    teach = kept * (teacher.load + judged["teacher"]) + (
        0 if own else teacher.load + taught * teacher.step + kept * teacher.save
    )
    anchor = (
        0 if recipe.anchor.model_name_or_path else student.load + fine * student.step + plan.num_stages * student.save
    )
    if recipe.anchor.keep != "last":
        anchor += plan.num_stages * (student.load + judged["student"])
    anchor += (rows["train"] + rows["validation"]) * student.read
    guided = any(method.schedule != "none" for method in methods)
    cells = 0.0
    for method in methods:
        step = student.step if method.schedule == "none" else student.guided_step
        cells += len(plan.seeds) * (
            2 * student.load + plan.num_stages * (stage * step + judged["student"] + student.save / 3)
        )
    longest = (recipe.task.max_new_tokens or fitted.max_new_tokens) / max(1, _usual(fitted))
    models = {"teacher": 1, "student": 1 + longest + len(methods) * len(plan.seeds)}
    evaluate = sum(
        models[role] * (part.load + rows["test"] * (part.answer + part.read) + rows["validation"] * part.read)
        for role, part in trial.parts.items()
    )
    crossed = any(method.needs_cross_fit for method in methods)
    return {
        "teach": teach,
        "anchor": anchor,
        "cache": count * (teacher.load + rows["train"] * teacher.cache) if guided else 0.0,
        "cross_fit": _cross_fit(recipe, trial, rows["train"], taught, fine, count) if crossed else 0.0,
        "distill": cells,
        "evaluate": evaluate,
    }


def _usual(fitted: Fitted) -> int:
    import numpy as np

    from tutelage.data.token_store import answer_lengths

    return int(np.quantile(answer_lengths(fitted.stores["train"]), 0.9))


def _trainings(recipe: Recipe) -> list[tuple[tuple[str, ...], float | None]]:
    """Sections and epochs of the teacher's training, the anchor's, and one stage of the student's."""
    plan = recipe.distill
    whole = plan.num_stages * plan.epochs_per_stage
    return [(("teach",), None), (("distill", "anchor"), whole), (("distill",), plan.epochs_per_stage)]


def _steps(recipe: Recipe, rows: int, sections: Any, epochs: float | None) -> int:
    return steps_of(
        training_arguments(Path("unused"), recipe.trainer_arguments(*sections), seed=0, epochs=epochs), rows
    )


def _cross_fit(recipe: Recipe, trial: Trial, rows: int, taught: int, fine: int, count: int) -> float:
    """Every fold: models trained on the others, their losses on it."""
    teacher, student, folds = trial.parts["teacher"], trial.parts["student"], recipe.cross_fit.folds
    share = (folds - 1) / folds
    each = student.load + share * fine * student.step + rows / folds * student.read
    if recipe.cross_fit.teacher:
        each += (
            teacher.load
            + share * taught * teacher.step
            + count * (teacher.save + teacher.load + rows / folds * teacher.read)
        )
    return folds * each


def foretell_disk(recipe: Recipe, fitted: Fitted, trial: Trial) -> dict[str, int]:
    """Bytes by stage: what stays, and under `teach while training` what its restart points take until it is done."""
    teacher, student, plan = trial.parts["teacher"], trial.parts["student"], recipe.distill
    count, width = recipe.teach.num_checkpoints, hidden_size(recipe.teacher) or 0
    each = 2 if recipe.cache.dtype == "bfloat16" else 4
    own, cells = recipe.teach.checkpoints is not None, len(plan.methods) * len(plan.seeds)
    states = bytes_on_disk(fitted.stores["train"], width, each) + (
        0 if recipe.teacher.lora else fitted.vocabulary * width * each
    )
    return {
        "teach": 0 if own else count * teacher.weight_bytes,
        "teach while training": 0
        if own
        else count * (4 if recipe.teach.spacing == "loss" else 1) * teacher.saved_bytes,
        "anchor": student.weight_bytes,
        "cache": count * states,
        "distill": cells * student.weight_bytes * (1 + plan.num_stages * plan.keep_stages),
        "distill while training": plan.num_stages * student.weight_bytes,
    }


def _disk(recipe: Recipe, disk: dict[str, int]) -> Check:
    folder = next(p for p in (Path(recipe.output_dir), *Path(recipe.output_dir).absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    kept = sum(size for name, size in disk.items() if "while" not in name)
    peak = max(disk["teach while training"], kept + disk["distill while training"])
    numbers = disk | {"kept": kept, "peak": peak, "free": free}
    text = f"{in_bytes(kept)} stay, {in_bytes(peak)} at the most while it trains; {in_bytes(free)} are free"
    if peak > free:
        return Check("disk", "budget", "fail", text, numbers, "output_dir=A_LARGER_DISK/RUN")
    return Check("disk", "budget", "passed", text, numbers)


def _memory(recipe: Recipe, fitted: Fitted, trial: Trial) -> Check:
    """Peaks in training, against what this machine has."""
    total = machine_memory()
    head = fitted.vocabulary * (hidden_size(recipe.teacher) or 0) * (2 if recipe.cache.dtype == "bfloat16" else 4)
    numbers = {"teach": trial.parts["teacher"].memory, "anchor": trial.parts["student"].memory, "machine": total}
    numbers["distill"] = numbers["anchor"] + head
    peak = max(numbers["teach"], numbers["distill"])
    text = f"teach {in_bytes(numbers['teach'])}, distill {in_bytes(numbers['distill'])}, of {in_bytes(total)} here"
    if peak > 0.9 * total:
        batch = recipe.trainer_arguments("teach")["per_device_train_batch_size"]
        text += ". Rows longer than the trial's may not fit"
        return Check(
            "memory", "budget", "look", text, numbers, f"trainer.per_device_train_batch_size={max(1, batch // 2)}"
        )
    return Check("memory", "budget", "passed", text, numbers)
