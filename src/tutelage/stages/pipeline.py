"""Runs stages in order; each is imported when its turn comes, so that torch is loaded only where a stage needs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from tutelage.recipe.load import dump_recipe
from tutelage.run.manifest import MANIFEST, rewriting
from tutelage.run.own_files import refuse_foreign
from tutelage.run.run_folder import RunFolder
from tutelage.utils.files import write_text

WITHOUT_MODELS = ("prepare", "diagnose", "report")
"""Stages that take the run folder alone; the others also take `RunModels`, which they share."""


def run_stages(run: RunFolder, names: Iterable[str]) -> None:
    """Run stages in the order given; tokenizer, rows and evaluation are loaded once for all that need models.

    Stages that are up to date do nothing. recipe.yaml is written after the first stage, which is when `prepare` has
    found the folder to be this recipe's own. Raises what the stages raise, a UserError where the user can mend it.
    """
    models, names = None, list(names)
    if run.force:  # before anything is deleted
        for manifest in (path for name in names for path in (run.folder / name).glob(f"**/{MANIFEST}")):
            refuse_foreign(manifest.parent)
    for name in names:
        stage = importlib.import_module(f"tutelage.stages.{name}")
        if name in WITHOUT_MODELS:
            stage.run_stage(run)
        else:
            if models is None:
                from tutelage.training.run_models import RunModels

                models = RunModels(run)
            stage.run_stage(run, models)
        with rewriting(run.folder, "recipe.yaml"):
            write_text(run.folder / "recipe.yaml", dump_recipe(run.recipe))
