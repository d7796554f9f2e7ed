"""teach: fine-tune the teacher and keep N checkpoints at equal spacing, or take the user's; then find T* on validation.

Writes teach/checkpoint-STEP/ (Hugging Face layout, or PEFT adapters) and teach/checkpoints.json: name, folder,
validation score and loss of each, and which is best; teach/validation/ holds their scores and losses on the validation
rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tutelage.errors import ModelError
from tutelage.models.evaluation import ValidationScores, validation_records
from tutelage.records import Example
from tutelage.run import stage_inputs
from tutelage.run.artifacts import BaselineRecord, CheckpointScore, TeacherCheckpoints
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.live_reader import dig, read_or_none
from tutelage.run.own_files import RESUME_ONLY
from tutelage.run.run_folder import RunFolder
from tutelage.training.callbacks import WHOLE, seconds_before
from tutelage.training.finetuning import best_checkpoint, spaced_steps
from tutelage.training.run_models import RunModels
from tutelage.training.trainer import training_arguments
from tutelage.utils import ranks
from tutelage.utils.files import read_json, read_jsonl, replacing, write_json, write_jsonl

CANDIDATES_PER_CHECKPOINT = 4
"""With `teach.spacing: loss`, checkpoints saved for each one that is kept."""


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    recipe = run.recipe
    with run.work("teach", stage_inputs.teach(run), restart_only=_restart_only) as work:
        if work is None:
            return
        models = models.taught
        given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else None
        work.seconds_before = seconds_before(work.folder)
        folders = given or _train(run, models, work.folder)
        checkpoints = [_validate(models, work.folder, folder) for folder in folders]
        if given is None:
            kept = evenly_falling([c["nll"] for c in checkpoints], recipe.teach.num_checkpoints)
            checkpoints = [checkpoints[index] for index in kept]
        best = best_checkpoint(checkpoints, recipe.teach.best_by)
        result: TeacherCheckpoints = {"best": best, "by": recipe.teach.best_by, "checkpoints": checkpoints}
        result["baseline"] = _baseline(run, models.eval_set("validation").examples)
        ranks.once(lambda: write_json(work.folder / "checkpoints.json", result))
        models.say_scores("teach", checkpoints, f"best is {best}")


def evenly_falling(losses: Sequence[float], count: int) -> list[int]:
    """Indices of `count` checkpoints between which the loss falls about evenly; the last one is always kept.

    losses: of all checkpoints on the same rows, in training order. Each counts as the lowest loss so far, so that a
    rise late in training is not taken for progress.
    """
    lowest = np.minimum.accumulate(losses)
    kept = [len(losses) - 1]
    for step in range(1, count):
        wanted = lowest[0] + (lowest[-1] - lowest[0]) * (step - 1) / max(1, count - 1)
        free = [index for index in range(len(losses)) if index not in kept]
        kept.append(min(free, key=lambda index: abs(lowest[index] - wanted)))
    return sorted(kept)


def _train(run: RunFolder, models: RunModels, folder: Path) -> list[Path]:
    """Fine-tune the teacher. Returns the folders of its checkpoints, oldest first."""
    recipe, rows, seed = run.recipe, models.encoded("train"), run.recipe.teacher_seed
    args = training_arguments(folder, run.trainer_arguments("teach"), seed=seed)
    candidates = CANDIDATES_PER_CHECKPOINT if recipe.teach.spacing == "loss" else 1
    steps = spaced_steps(args, len(rows), candidates * recipe.teach.num_checkpoints)
    if len(steps) < recipe.teach.num_checkpoints:
        raise ModelError(
            f"the teacher is fine-tuned for {steps[-1]} steps, too few for {recipe.teach.num_checkpoints} checkpoints:"
            f" set teach.num_checkpoints to {steps[-1]} or less, or teach.trainer.num_train_epochs higher"
        )
    folders = [folder / f"checkpoint-{step}" for step in steps]
    if not (folders[-1] / WHOLE).exists():
        models.fine_tuned("teach", recipe.teacher, args, rows, seed=seed, save_at=steps, log=folder / "log.jsonl")
    ranks.once(lambda: _add_tokenizer(models, folders))
    return folders


def _add_tokenizer(models: RunModels, folders: Sequence[Path]) -> None:
    for path in folders:
        with replacing(path) as draft:
            models.tokenizer.save_pretrained(str(draft))


def _validate(models: RunModels, folder: Path, checkpoint: Path) -> CheckpointScore:
    """Score and loss of one checkpoint on the validation rows; saved, so that a resumed stage does not repeat it."""
    saved = folder / "validation" / f"{checkpoint.name}.json"
    if saved.is_file():
        return read_json(saved)
    score, found = models.score_checkpoint(models.run.recipe.teacher, checkpoint)
    score = {"name": score.pop("name"), "folder": _relative(models.run.folder, checkpoint), **score}
    ranks.once(lambda: _save_scores(models, saved, score, found))
    return score


def _save_scores(models: RunModels, path: Path, score: CheckpointScore, found: ValidationScores) -> None:
    """The record last: a checkpoint that has one is not scored again."""
    write_jsonl(path.with_suffix(".jsonl"), validation_records(models.eval_set("validation").rows, found))
    write_json(path, score)


def _baseline(run: RunFolder, validation: Sequence[Example]) -> BaselineRecord:
    """What answers that read no prompt have on the validation rows."""
    rows = read_jsonl(run.folder / "prepare" / "rows.jsonl")
    baseline = run.task.baseline((row["answer"] for row in rows if row["split"] == "train"), validation)
    return {**baseline._asdict(), "rows": len(validation)}


def _relative(run: Path, checkpoint: Path) -> str:
    """The folder as checkpoints.json has it: relative to the run if it lies in it, so that the run can be moved."""
    return checkpoint.relative_to(run).as_posix() if checkpoint.parent.parent == run else str(checkpoint)


def _restart_only(folder: Path) -> Iterator[Path]:
    """Checkpoints that were not kept, and of the others the optimizer's state and the like."""
    taught = read_or_none(folder / "checkpoints.json")
    kept = {checkpoint["name"] for checkpoint in dig(taught, "checkpoints", default=())}
    for path in folder.glob("checkpoint-*") if kept else ():
        yield from (found for pattern in RESUME_ONLY for found in path.glob(pattern)) if path.name in kept else [path]
