"""The stages that the cells of a comparison share: rows, teacher, cache, anchor, folds, and the base models' scores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tutelage.compare.plan import ComparisonPlan, with_methods, with_teacher_seed
from tutelage.recipe.load import dump_recipe
from tutelage.recipe.schema import Recipe
from tutelage.run.manifest import MANIFEST
from tutelage.run.workspace import Workspace
from tutelage.stages import anchor, cache, cross_fit, evaluate, prepare, teach


def workspaces_of(recipe: Recipe, plan: ComparisonPlan) -> list[Workspace]:
    """One for every teacher seed; the first is the recipe's own run folder."""
    seeds = range(recipe.teacher_seed, recipe.teacher_seed + plan.teacher_seeds)
    recipes = (with_teacher_seed(with_methods(recipe, plan.methods, plan.seeds), seed) for seed in seeds)
    return [Workspace(recipe, rebuild=plan.force) for recipe in recipes]


def run_shared_stages(space: Workspace, methods: Sequence[str], first_anchor: Path) -> None:
    """All stages before the students, and the scores of teacher and anchor.

    first_anchor: anchor of the recipe's own run folder. It does not depend on the teacher, so the run folders of other
    teacher seeds get a copy.
    """
    teacher_stages(space, methods)
    _copy_anchor(first_anchor, space.folder / "anchor")
    anchor_stages(space, methods)
    for model in evaluate.base_models(space):
        evaluate.score(space, model)


def prepare_rows(space: Workspace, methods: Sequence[str]) -> None:
    """The first stage alone: bad rows of any recipe are reported before anything is trained."""
    _run_stages(space, methods, [prepare])


def teacher_stages(space: Workspace, methods: Sequence[str]) -> None:
    """The stages that do not depend on how students are trained."""
    _run_stages(space, methods, [prepare, teach, cache])


def anchor_stages(space: Workspace, methods: Sequence[str]) -> None:
    """The stages that train students with the same arguments as the cells."""
    _run_stages(space, methods, [anchor, cross_fit])


def _copy_anchor(first_anchor: Path, folder: Path) -> None:
    if folder == first_anchor or (folder / MANIFEST).is_file():
        return
    draft = folder.with_name("anchor.part")
    for unfinished in (folder, draft):
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(first_anchor, draft)
    draft.replace(folder)


def _run_stages(space: Workspace, methods: Sequence[str], stages: Sequence[ModuleType]) -> None:
    space = replace(space, recipe=with_methods(space.recipe, methods, space.recipe.distill.seeds))
    for stage in stages:
        stage.run(space)
        (space.folder / "recipe.yaml").write_text(dump_recipe(space.recipe), encoding="utf-8")
