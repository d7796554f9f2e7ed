"""The stages in order, and running some of them: each is imported when its turn comes, so that torch may stay out."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from tutelage.recipe.load import dump_recipe
from tutelage.run.run_folder import RunFolder
from tutelage.utils.files import write_text

STAGES: dict[str, str] = {
    "prepare": "Read, check and render the rows; loads no model.",
    "teach": "Fine-tune the teacher and keep its checkpoints, or use yours. Selects the best on validation.",
    "anchor": "Fine-tune the student without a teacher: the anchor. Adaptive weights use its losses.",
    "cache": "Store the hidden states of every checkpoint. Distillation reads them in place of the teacher.",
    "cross_fit": "Compute out-of-fold losses, for methods ccd-aw and *-aw-cf.",
    "distill": "Train the students, stage by stage. Each stage follows one teacher checkpoint.",
    "evaluate": "Score every model on the test set.",
    "diagnose": "Compare each student with its teacher, slice by slice.",
    "report": "Write report/index.html from the files in the run folder.",
}
"""Stage by name, in the order of a full run, with its help text; each is `tutelage.stages.NAME.run_stage`."""
WITHOUT_MODELS = ("prepare", "diagnose", "report")
"""Stages that take the run folder alone; the others also take `RunModels`, which they share."""


def run_stages(run: RunFolder, names: Iterable[str]) -> None:
    """Run stages in the order given; tokenizer, rows and evaluation are loaded once for all that need models.

    Stages that are up to date do nothing. recipe.yaml is written after the first stage, which is when `prepare` has
    found the folder to be this recipe's own. Raises what the stages raise, a UserError where the user can mend it.
    """
    models = None
    for name in names:
        stage = importlib.import_module(f"tutelage.stages.{name}")
        if name in WITHOUT_MODELS:
            stage.run_stage(run)
        else:
            if models is None:
                from tutelage.training.run_models import RunModels

                models = RunModels(run)
            stage.run_stage(run, models)
        write_text(run.folder / "recipe.yaml", dump_recipe(run.recipe))
