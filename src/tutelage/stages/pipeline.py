"""Runs stages in order; each is imported when its turn comes, so that torch is loaded only where a stage needs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from tutelage.analysis.worth import reason_to_stop
from tutelage.errors import ConfigError, RunStoppedError
from tutelage.recipe.load import dump_recipe
from tutelage.run.manifest import MANIFEST, rewriting
from tutelage.run.own_files import refuse_foreign
from tutelage.run.run_folder import RunFolder
from tutelage.utils import ranks
from tutelage.utils.files import write_text

if TYPE_CHECKING:
    from tutelage.training.run_models import RunModels

WITHOUT_MODELS = ("prepare", "diagnose", "report")
"""Stages that take the run folder alone; the others also take `RunModels`, which they share."""
NEED_A_TEACHER = ("silver", "anchor", "cache", "cross_fit", "distill")
"""Stages that are not worth their time after a teacher that learned nothing; those after `anchor`, after an anchor that
equals it."""


READ_THE_TEACHER = ("teach", "silver", "cache", "cross_fit", "evaluate")
"""Stages that load the teacher to read or answer rows."""


def run_stages(run: RunFolder, names: Iterable[str]) -> None:
    """Run stages in the order given; tokenizer, rows and evaluation are loaded once for all that need models. Several
    processes share the work of those; the others are work of the main process.

    Stages that are up to date do nothing. recipe.yaml is written after the first stage, which is when `prepare` has
    found the folder to be this recipe's own. Raises what the stages raise, a UserError where the user can mend it;
    RunStoppedError between stages that are not worth going on with.
    """
    models, names = None, list(names)
    _refuse_placement(run, names)
    if run.force:  # before anything is deleted
        ranks.once(lambda: _refuse_foreign(run, names))
    run.processes = ranks.size() if run.force and "teach" in names else run.processes
    if ranks.size() != run.processes:
        begun = f"{run.processes} process{'es' * (run.processes > 1)}"
        run.screen.say(f"the run was begun with {begun}: its batches stay as they are, shared out over {ranks.size()}")
    for name in names:
        if name in NEED_A_TEACHER:
            stop_if_hopeless(run, by_anchor=name not in ("silver", "anchor"))
        stage = importlib.import_module(f"tutelage.stages.{name}")
        if name in WITHOUT_MODELS:
            ranks.once(partial(stage.run_stage, run))
        else:
            if models is None:
                from tutelage.training.run_models import RunModels

                models = RunModels(run)
            stage.run_stage(run, models)
        ranks.once(lambda: _write_recipe(run))
        if name == "anchor":
            ranks.once(partial(_show_payoff, run, models))
    if (last := names[-1]) in ("teach", "anchor"):
        stop_if_hopeless(run, by_anchor=last == "anchor")


def _refuse_placement(run: RunFolder, names: Iterable[str]) -> None:
    """Raises ConfigError for what several processes cannot hold: a teacher that each would spread over the same GPUs,
    or quantized weights and optimizers that FSDP cannot divide."""
    if ranks.divides_models():
        from tutelage.training import fsdp

        fsdp.check(run.recipe)
        if run.recipe.fused_loss:
            run.screen.say("FSDP: head and loss are not fused, since the head's weight is whole only while it is run")
    reading = [name for name in names if name in READ_THE_TEACHER]
    if run.recipe.teacher.device_map and ranks.size() > 1 and reading:
        raise ConfigError(
            f"teacher.device_map: auto spreads the teacher over all GPUs, for one process, and {ranks.size()} were"
            f" started, with the stage {reading[0]}: start one process (no launcher) for {', '.join(reading)}, and"
            " several for anchor and distill; or set teacher.device_map=null, if the teacher fits on one GPU"
        )


def _refuse_foreign(run: RunFolder, names: Iterable[str]) -> None:
    for manifest in (path for name in names for path in (run.folder / name).glob(f"**/{MANIFEST}")):
        refuse_foreign(manifest.parent)


def _write_recipe(run: RunFolder) -> None:
    with rewriting(run.folder, "recipe.yaml"):
        write_text(run.folder / "recipe.yaml", dump_recipe(run.recipe))


def stop_if_hopeless(run: RunFolder, *, by_anchor: bool = True) -> None:
    """Raises RunStoppedError for a teacher that learned nothing, or an anchor that already equals its teacher.

    With `run.anyway` the user is told once, and the run goes on. by_anchor: whether to ask the anchor, too.
    """
    problem = reason_to_stop(run, by_anchor=by_anchor)
    if problem is None:
        return
    error = RunStoppedError(problem)
    if not run.anyway:
        raise error
    if problem.kind not in run.warned:
        run.warned.add(problem.kind)
        run.screen.warn(f"{str(error).splitlines()[0]}; going on, as --anyway asks")


def _show_payoff(run: RunFolder, models: RunModels) -> None:
    """Say whether distillation is likely to pay, as `tutelage doctor` does. Reasons to stop are reported separately."""
    from tutelage.doctor.headroom import judge_losses

    for check in judge_losses(models):
        if check.name in ("headroom", "verdict") and not check.problems:
            run.screen.say(f"{check.name}: {check.text}")
