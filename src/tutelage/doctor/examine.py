"""The checks of a recipe, in order: cheap ones first, and none that a failed one makes pointless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tutelage.doctor.checks import Check, exit_code, failed, located
from tutelage.errors import ConfigError, DamagedArtifactError, Kind, Problem, UserError
from tutelage.errors.secrets import redacted
from tutelage.errors.wording import first_line
from tutelage.recipe.schema import Recipe
from tutelage.utils.integrity import check_run

if TYPE_CHECKING:
    from tutelage.data.dataset import Rows
    from tutelage.doctor.fit_checks import FittingRows
    from tutelage.doctor.headroom import PairedLosses

Say = Callable[[str], None]
READ = (
    *("prepare/*", "teach/*.json*", "teach/validation/*", "anchor/*.json*", "cache/*/*.json*", "cache/*.safetensors"),
    *("evaluate/*.json*", "distill/*/*/stages.json"),
)
"""Patterns of the files of a run's finished stages that the checks read, the cache's shards aside."""
"""Gets what is going on, for people."""


def _silent(text: str) -> None:
    pass


def examine_file(
    path: Path | str, overrides: Sequence[str] = (), *, timing_rows: int | None = None, say: Say = _silent
) -> list[Check]:
    """Examine a recipe file with its overrides; each check names the line of the file to change.

    A recipe that cannot be read is itself a list of failed checks. Arguments as for `examine`.
    """
    from tutelage.recipe.load import load_recipe

    try:
        loaded = load_recipe(path, overrides)
    except ConfigError as error:
        return [_recipe_problem(problem) for problem in error.problems]
    for note in loaded.notes:
        say(note)
    say("rows, models and the run folder ...")
    return located(examine(loaded.recipe, timing_rows=timing_rows, say=say), loaded.origins)


def examine(recipe: Recipe, *, timing_rows: int | None = None, say: Say = _silent) -> list[Check]:
    """Every check of a valid recipe. Nothing is written but into a temporary folder.

    timing_rows: rows of a timing run of both models; None for the cheap checks only.
    """
    from tutelage.doctor.model_checks import check_loaded, check_settings

    with TemporaryDirectory(prefix="tutelage-doctor-") as scratch:
        rows, fitting, seconds, checks = _rows_and_tokens(recipe, Path(scratch))
        checks += check_settings(recipe)
        if not any(check.status == "fail" and check.area in ("models", "recipe") for check in checks):
            checks += check_loaded(recipe, fitting, even_large=timing_rows is not None)
        losses = None
        if timing_rows is not None and rows and fitting and exit_code(checks) < 2:
            losses, more = _timing_run(recipe, rows, fitting, Path(scratch) / "timing", timing_rows, seconds, say)
            checks += more
        elif timing_rows is not None:
            checks.append(Check("time", "budget", "skipped", Kind.TIMING_RUN_NEEDED))
        return [*checks, *_baseline(recipe, rows, fitting, checks), *_finished_stages(recipe, losses)]


def _recipe_problem(problem: Problem) -> Check:
    """A problem of the recipe, with the line of the file that it is in."""
    in_file = problem.place is not None and problem.place.number is not None
    change = redacted(f"{problem.key}=...") if problem.key else None
    line = str(problem.place) if in_file else None
    return Check("recipe", "recipe", "fail", problem.kind, change=change, line=line, problems=(problem,))


def _rows_and_tokens(recipe: Recipe, scratch: Path) -> tuple[Rows | None, FittingRows | None, float, list[Check]]:
    """The rows, the same as token ids, the seconds that `prepare` will take for both, and their checks."""
    from tutelage.doctor.data_checks import check_data, read
    from tutelage.doctor.fit_checks import check_fit
    from tutelage.doctor.model_checks import check_tokenizers

    start = time.perf_counter()
    rows, checks = read(recipe)
    seconds = time.perf_counter() - start
    if rows:
        checks += [*_task(rows, recipe), *check_data(rows, recipe)]
    pair, more = check_tokenizers(recipe)
    checks += more
    renders = not any(check.kind == Kind.CHAT_TEMPLATE_MISSING for check in checks)
    fitting = None
    if rows and pair is not None and renders:
        start = time.perf_counter()
        fitting, more = check_fit(rows, recipe, pair, scratch)
        seconds += time.perf_counter() - start
        checks += more
    return rows, fitting, seconds, checks


def _task(rows: Rows, recipe: Recipe) -> list[Check]:
    """Metric and decoding against the rows, as `prepare` checks them."""
    from tutelage.tasks import make_task

    try:
        task = make_task(recipe.task, rows.labels, choice=rows.choice)
    except ConfigError as error:
        return [failed("task", "recipe", error.problems[0], "task.metric=...")]
    if recipe.task.decoding == "labels" and not task.closed:
        problem = Problem(Kind.DECODING_UNSUITABLE, key="task.decoding")
        return [failed("task", "recipe", problem, "task.decoding=generate")]
    return []


def _timing_run(
    recipe: Recipe, rows: Rows, fitting: FittingRows, folder: Path, count: int, prepare_seconds: float, say: Say
) -> tuple[PairedLosses | None, list[Check]]:
    """Losses after a few steps, and the checks of the budget."""
    from tutelage.doctor.cost_estimate import check_budget
    from tutelage.doctor.timing_run import TimingRun
    from tutelage.run.threads import settle_threads
    from tutelage.tasks import make_task

    settle_threads(say)
    task = make_task(recipe.task, rows.labels, choice=rows.choice)
    try:
        timings = TimingRun(recipe, fitting, task, folder, count).run(say)
    except (UserError, RuntimeError, ValueError, MemoryError, OSError) as error:
        return None, [_failed_timing_run(recipe, error)]
    return timings.losses, check_budget(recipe, fitting, timings, prepare_seconds)


def _failed_timing_run(recipe: Recipe, error: Exception) -> Check:
    import torch

    from tutelage.doctor.cost_estimate import smaller_batch

    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    change, details = smaller_batch(recipe) if out_of_memory else None, {"reason": first_line(error)}
    return Check("timing_run", "budget", "fail", Kind.TIMING_RUN_FAILED, change=change, details=details)


def _baseline(recipe: Recipe, rows: Rows | None, fitting: FittingRows | None, checks: Sequence[Check]) -> list[Check]:
    """What a task needs no language model for, on the rows that the run would use, as far as these are sound."""
    from tutelage.doctor.headroom import check_baseline
    from tutelage.run.run_folder import RunFolder
    from tutelage.tasks import make_task

    if rows is None or any(check.status == "fail" and check.area in ("recipe", "data") for check in checks):
        return []
    task = make_task(recipe.task, rows.labels, choice=rows.choice)
    try:
        examples, unlabelled = (fitting.examples, fitting.unlabelled) if fitting else (rows.examples, 0)
        return check_baseline(RunFolder(recipe), task, examples, unlabelled)
    except DamagedArtifactError:  # the checks of finished stages report it
        return []


def _finished_stages(recipe: Recipe, losses: PairedLosses | None) -> list[Check]:
    """What the finished stages of the run show."""
    from tutelage.doctor.checkpoint_checks import check_trajectory
    from tutelage.doctor.headroom import check_payoff
    from tutelage.run.run_folder import RunFolder
    from tutelage.training.run_models import RunModels

    models = RunModels(RunFolder(recipe))
    try:
        check_run(models.run.folder, READ)
        return [*check_trajectory(models), *check_payoff(models, losses)]
    except DamagedArtifactError as error:  # nothing can be said about results that are not as they were written
        return [failed("run_files", "trajectory", error.problems[0])]
