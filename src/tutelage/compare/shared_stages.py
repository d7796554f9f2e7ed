"""The stages that the cells of a comparison share: rows, teacher, cache, anchor, folds, and the base models' scores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.compare.plan import ComparisonPlan, with_methods, with_teacher_seed
from tutelage.recipe.schema import Recipe
from tutelage.run.manifest import MANIFEST
from tutelage.run.own_files import clear
from tutelage.run.run_folder import RunFolder
from tutelage.stages import evaluate
from tutelage.stages.pipeline import run_stages
from tutelage.training.run_models import RunModels
from tutelage.utils.files import replacing


def run_folders(recipe: Recipe, plan: ComparisonPlan) -> list[RunFolder]:
    """One for every teacher seed; the first is the recipe's own run folder."""
    seeds = range(recipe.teacher_seed, recipe.teacher_seed + plan.teacher_seeds)
    recipes = (with_teacher_seed(with_methods(recipe, plan.methods, plan.seeds), seed) for seed in seeds)
    return [RunFolder(recipe, rebuild=plan.force, anyway=plan.anyway) for recipe in recipes]


def run_shared_stages(run: RunFolder, methods: Sequence[str], first_anchor: Path) -> None:
    """All stages before the students, and the scores of teacher, anchor, and TF-IDF with logistic regression.

    first_anchor: anchor of the recipe's own run folder. It does not depend on the teacher, so the run folders of other
    teacher seeds get a copy.
    """
    teacher_stages(run, methods)
    _copy_anchor(first_anchor, run.folder)
    anchor_stages(run, methods)
    models = RunModels(run)
    for model in evaluate.base_models(run, models):
        evaluate.score(run, models, model)
    evaluate.score_baseline(run)


def prepare_rows(run: RunFolder, methods: Sequence[str]) -> None:
    """The first stage alone: bad rows of any recipe are reported before anything is trained."""
    _run_stages(run, methods, ["prepare"])


def teacher_stages(run: RunFolder, methods: Sequence[str]) -> None:
    """The stages that do not depend on how students are trained."""
    _run_stages(run, methods, ["prepare", "teach", "silver", "cache"])


def anchor_stages(run: RunFolder, methods: Sequence[str]) -> None:
    """The stages that train students with the same arguments as the cells."""
    _run_stages(run, methods, ["anchor", "cross_fit"])


def _copy_anchor(first_anchor: Path, run: Path) -> None:
    folder = run / "anchor"
    if folder == first_anchor or (folder / MANIFEST).is_file():
        return
    clear(folder, aside=run)
    with replacing(folder) as draft:
        shutil.copytree(first_anchor, draft)


def _run_stages(run: RunFolder, methods: Sequence[str], stages: Sequence[str]) -> None:
    run_stages(replace(run, recipe=with_methods(run.recipe, methods, run.recipe.distill.seeds)), stages)
