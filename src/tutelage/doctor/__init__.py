"""`tutelage doctor`: what is wrong, or looks wrong, before hours of work; and whether distillation can pay.

Only what is cheap is done: rows are read and tokenized, small models loaded for one step, finished stages read. With a
probe both models are trained for a few steps in a temporary folder, which foretells time, disk, memory and payoff. What
the stages check themselves is asked of the same functions, and their refusals become checks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tutelage.doctor.checks import Check, exit_code, located, show, to_json, verdict
from tutelage.errors import ConfigError, UserError
from tutelage.recipe.schema import Recipe

if TYPE_CHECKING:
    from tutelage.data.dataset import Rows
    from tutelage.doctor.fit_checks import Fitted
    from tutelage.doctor.headroom import Pair

__all__ = ["Check", "examine", "examine_file", "exit_code", "show", "to_json", "verdict"]


def examine_file(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    probe: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Examine a recipe file, with its overrides; each check names the line of the file that is to be changed.

    A recipe that cannot be read is itself a list of checks that fail. Arguments as for `examine`.
    """
    from tutelage.recipe.load import load_recipe

    try:
        loaded = load_recipe(path, overrides)
    except ConfigError as error:
        return [
            _recipe_problem(line)
            for line in str(error).splitlines()
            if not line.endswith("problems:") and not line.endswith("problem:")
        ]
    say("rows, models and what is in the run folder ...")
    return located(examine(loaded.recipe, probe=probe, say=say), loaded.origins)


def examine(recipe: Recipe, *, probe: int | None = None, say: Callable[[str], None] = lambda text: None) -> list[Check]:
    """Every check of a recipe whose values are right. probe: rows of a short trial of both models; without, only what
    is cheap.

    say: told in words what is going on. Nothing is written but into a temporary folder.
    """
    from tutelage.doctor.data_checks import check_data
    from tutelage.doctor.fit_checks import check_fit
    from tutelage.doctor.model_checks import check_loaded, check_settings, check_tokenizers
    from tutelage.doctor.row_checks import read

    with TemporaryDirectory(prefix="tutelage-doctor-") as scratch:
        began = time.perf_counter()
        rows, checks = read(recipe)
        seconds = time.perf_counter() - began
        if rows:
            checks += [*_task(rows, recipe), *check_data(rows, recipe)]
        tokenizer, vocabulary, found = check_tokenizers(recipe)
        checks += found
        fitted = None
        if rows and tokenizer is not None and vocabulary and not _lacks_chat(checks):
            began = time.perf_counter()
            fitted, found = check_fit(rows, recipe, tokenizer, vocabulary, Path(scratch))
            seconds += time.perf_counter() - began
            checks += found
        checks += check_settings(recipe)
        broken = [check for check in checks if check.status == "fail" and check.area in ("models", "recipe")]
        if not broken:
            checks += check_loaded(recipe, fitted, even_large=probe is not None)
        pair = None
        if probe is not None and fitted is not None and exit_code(checks) < 2:
            pair, found = _trial(recipe, rows, fitted, Path(scratch), probe, seconds, say)
            checks += found
        elif probe is not None:
            checks.append(Check("time", "budget", "skipped", "a trial makes sense once nothing fails any more"))
        return checks + _stages(recipe, pair)


def _recipe_problem(line: str) -> Check:
    """A line of a ConfigError: `bank.yaml:14: task.type: what, and what to do`."""
    text = line.removeprefix("  - ")
    match = re.match(r"(?:(?P<place>.+?:\d+): )?(?:override[^:]*: )?(?P<key>[a-z_]+(?:\.\w+)*): ", text)
    change = f"{match['key']}=..." if match else None
    return Check("recipe", "recipe", "fail", text, {}, change, match["place"] if match else None)


def _task(rows: Rows, recipe: Recipe) -> list[Check]:
    """Metric and decoding against the rows, as `prepare` does."""
    from tutelage.tasks import make_task

    try:
        task = make_task(recipe.task, rows.labels, choice=rows.choice)
    except ConfigError as error:
        return [Check("task", "recipe", "fail", str(error), {}, "task.metric=...")]
    if recipe.task.decoding == "labels" and not task.closed:
        text = "labels needs closed answers, and these rows have free text"
        return [Check("task", "recipe", "fail", text, {}, "task.decoding=generate")]
    return []


def _lacks_chat(checks: Sequence[Check]) -> bool:
    return any(check.name == "chat template" and check.status == "fail" for check in checks)


def _trial(
    recipe: Recipe, rows: Rows, fitted: Fitted, scratch: Path, probe: int, seconds: float, say: Callable[[str], None]
) -> tuple[Pair | None, list[Check]]:
    """The budget, and losses for a first sight of the payoff."""
    from tutelage.doctor.cost_estimate import check_budget
    from tutelage.doctor.timing_run import Trials
    from tutelage.tasks import make_task

    task = make_task(recipe.task, rows.labels, choice=rows.choice)
    try:
        trial = Trials(recipe, fitted, task, scratch / "trial", probe).run(say)
    except (
        UserError,
        RuntimeError,
        ValueError,
        MemoryError,
        OSError,
    ) as error:  # torch's out of memory is a RuntimeError
        first = next(iter(str(error).splitlines()), type(error).__name__)
        batch = recipe.trainer_arguments("teach")["per_device_train_batch_size"]
        memory = "memory" in str(error).lower() or isinstance(error, MemoryError)
        change = f"trainer.per_device_train_batch_size={max(1, batch // 2)}" if memory else None
        return None, [Check("trial", "budget", "fail", f"a few steps of training end with: {first}", {}, change)]
    return trial.pair, check_budget(recipe, fitted, trial, seconds)


def _stages(recipe: Recipe, pair: Pair | None) -> list[Check]:
    """What finished stages of the run tell."""
    from tutelage.doctor.checkpoint_checks import check_trajectory
    from tutelage.doctor.headroom import check_payoff
    from tutelage.run.run_folder import RunFolder
    from tutelage.training.run_models import RunModels

    models = RunModels(RunFolder(recipe))
    return [*check_trajectory(models), *check_payoff(models, pair)]
