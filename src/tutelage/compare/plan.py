"""What a comparison is asked to do: the command's arguments as a checked plan, and the recipes that follow from it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.errors import ConfigError, problems
from tutelage.recipe.load import check, varied
from tutelage.recipe.schema import Recipe


@dataclass(frozen=True)
class ComparisonPlan:
    """Recipes x teacher seeds x methods x seeds, and how they are run."""

    recipes: Sequence[Recipe]
    methods: Sequence[str]
    seeds: Sequence[int]
    teacher_seeds: int
    """Number of teacher fine-tuning runs per recipe, with its `teacher_seed` and the seeds after it."""
    jobs: int
    """Cells at a time, of the local executor."""
    folder: Path
    """Of the comparison."""
    tune: bool = False
    """Search the students' learning rate first, as the recipes' `tune` sections say."""
    executor: Literal["local", "ray"] = "local"
    force: bool = False
    """Delete and rebuild stale results."""
    anyway: bool = False
    """Go on with a teacher that learned nothing, or that the anchor already equals."""


def make_plan(
    recipes: Sequence[Recipe],
    methods: str,
    seeds: int,
    teacher_seeds: int = 1,
    jobs: int = 1,
    folder: Path | None = None,
    *,
    tune: bool = False,
    executor: Literal["local", "ray"] = "local",
    force: bool = False,
    anyway: bool = False,
) -> ComparisonPlan:
    """A checked plan. methods: names separated by commas; seeds, teacher_seeds: how many. Raises ConfigError."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    refusals = [
        *_recipe_refusals(recipes, names, seeds),
        *_method_refusals(recipes, names, tune),
        *_teacher_refusals(recipes, teacher_seeds),
        *_folder_refusals(recipes, folder),
    ]
    if refusals:
        raise ConfigError(problems("this cannot be compared:", refusals))
    folder = folder or Path(recipes[0].output_dir) / "compare"
    return ComparisonPlan(recipes, names, range(seeds), teacher_seeds, jobs, folder, tune, executor, force, anyway)


def _recipe_refusals(recipes: Sequence[Recipe], methods: Sequence[str], seeds: int) -> list[str]:
    refusals = (line for recipe in recipes for line in check(with_methods(recipe, methods, range(seeds))))
    return list(dict.fromkeys(refusals))  # recipes with the same problem report it once


def _method_refusals(recipes: Sequence[Recipe], methods: Sequence[str], tune: bool) -> Iterator[str]:
    tuned = [recipe.tune.method for recipe in recipes] if tune else []
    for recipe, method in itertools.product(recipes, [*methods, *tuned]):
        try:
            varied(recipe, method)
        except ConfigError as error:
            yield str(error)


def _teacher_refusals(recipes: Sequence[Recipe], teacher_seeds: int) -> Iterator[str]:
    for recipe in recipes:
        if teacher_seeds > 1 and recipe.teach.checkpoints:
            yield f"{recipe.name}: --teacher-seeds trains teachers, but teach.checkpoints names yours; leave it out"


def _folder_refusals(recipes: Sequence[Recipe], folder: Path | None) -> Iterator[str]:
    if not recipes:
        yield "no recipe: name at least one file"
    for output_dir, count in sorted(Counter(recipe.output_dir for recipe in recipes).items()):
        if count > 1:
            yield f"{output_dir}: two recipes write there; give each its own output_dir"
    if len({recipe.name for recipe in recipes}) < len(recipes):
        yield "two recipes have the same name; give each its own `name`"
    if folder is None and len(recipes) > 1:
        yield "several recipes have no folder in common: name one with --output"


# --- recipes ---


def with_methods(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> Recipe:
    """The recipe with these methods and seeds to distil."""
    distill = recipe.distill.model_copy(update={"methods": [*methods], "seeds": [*seeds]})
    return recipe.model_copy(update={"distill": distill})


def with_teacher_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another teacher seed, in a run folder of its own; the recipe itself for its own seed."""
    if seed == recipe.teacher_seed:
        return recipe
    teach = recipe.teach.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"output_dir": f"{recipe.output_dir}-teacher-{seed}", "teach": teach})


def with_learning_rate(recipe: Recipe, rate: float) -> Recipe:
    """A copy of the recipe with this learning rate for the students."""
    distill = recipe.distill.model_copy(update={"trainer": recipe.distill.trainer | {"learning_rate": rate}})
    return recipe.model_copy(update={"distill": distill})
