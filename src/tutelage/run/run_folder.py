"""One run as every stage sees it: its recipe, its folder, and which results in it are up to date. Loads no model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import Kind
from tutelage.recipe.load import flatten, varied
from tutelage.recipe.reserved import CHANGES_NOTHING
from tutelage.recipe.schema import Recipe
from tutelage.run.artifacts import PreparedData, TeacherCheckpoints, checkpoint_folder
from tutelage.run.manifest import Work, recorded_processes
from tutelage.run.threads import settle_threads
from tutelage.tasks import make_task
from tutelage.tasks.base import BaseTask
from tutelage.utils import ranks
from tutelage.utils.console import Screen
from tutelage.utils.files import read_json
from tutelage.utils.memory import peak_memory


@dataclass
class RunFolder:
    """A run folder with its recipe. Models, tokenizer and rows are loaded by `training.run_models.RunModels`."""

    recipe: Recipe
    screen: Screen = field(default_factory=Screen)
    force: bool = False
    """Rebuild what a stage has already finished."""
    rebuild: bool = False
    """Rebuild stale results; results that are up to date stay."""
    anyway: bool = False
    """Go on where finished stages say that it is not worth it."""
    warned: set[Kind] = field(default_factory=set)
    """What the user was told about that."""

    @property
    def folder(self) -> Path:
        """The run folder's path."""
        return Path(self.recipe.output_dir)

    def varied(self, method: str) -> RunFolder:
        """The same run with the settings that a method's name carries (`scd+schedule.advance=true`)."""
        recipe = varied(self.recipe, method)
        return self if recipe is self.recipe else replace(self, recipe=recipe)

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16: the recipe's `trainer` decides, else what `prepare` measured as faster."""
        given = self.recipe.trainer
        return bool(given.get("bf16")) if "bf16" in given or "fp16" in given else self.prepared["bf16"]

    def trainer_arguments(self, *sections: Literal["teach", "anchor", "distill"]) -> dict[str, Any]:
        """TrainingArguments of one training run, with the precision that this run computes in."""
        given = self.recipe.trainer_arguments(*sections) | {"planned_processes": self.processes}
        given["max_tokens_per_batch"] = self.recipe.max_tokens_per_batch
        return given if "fp16" in given else {"bf16": self.bf16} | given

    @cached_property
    def processes(self) -> int:
        """Number of processes that a batch of this run is meant for: those of its first training. Another number shares
        out the same batches, so that steps and methods stay comparable."""
        return ranks.once(lambda: recorded_processes(self.folder)) or ranks.size()

    def settings(self, *sections: str) -> dict[str, Any]:
        """The recipe's values under these dotted names, flat: what a stage's result depends on."""
        flat = {key: value for key, value in flatten(self.recipe).items() if not CHANGES_NOTHING.search(key)}
        return {k: v for k, v in flat.items() if any(k == s or k.startswith(s + ".") for s in sections)}

    @contextmanager
    def work(
        self,
        name: str,
        inputs: dict[str, Any],
        *,
        rebuild_stale: bool = False,
        restart_only: Callable[[Path], Iterable[Path]] = lambda folder: (),
    ) -> Iterator[Work | None]:
        """Work in a folder of the run: None if its result is up to date, else its record, which is finished on leaving.
        Of several processes the main one decides and writes.

        restart_only: see `Work`. Raises what `Work.prepare` raises.
        """
        work = Work(
            self.folder / name,
            inputs,
            force=self.force,
            rebuild_stale=rebuild_stale or self.rebuild,
            restart_only=restart_only,
            aside=self.folder,
        )
        began = time.monotonic()
        if not ranks.once(work.prepare):
            self.screen.say(f"{name}: up to date")
            yield None
            return
        for note in work.notes:
            self.screen.say(note)
        if "torch" in sys.modules:
            settle_threads(self.screen.say)
        self.screen.begin(name)
        with peak_memory() as peak:
            yield work
            work.about["memory"] = max(ranks.gather(peak()))
        ranks.once(lambda: work.finish(time.monotonic() - began))

    @cached_property
    def prepared(self) -> PreparedData:
        """prepare/data.json, which is there once `prepare` has finished."""
        return read_json(self.folder / "prepare" / "data.json")

    @property
    def budget_rows(self) -> int:
        """Rows that `distill.epochs_per_stage` counts: those with gold, and the unlabelled ones. Every method and the
        anchor get the steps that these rows make, however many of them they can use."""
        prepared = self.prepared
        return prepared["lengths"]["train"]["rows"] + prepared.get("unlabelled", {"rows": 0})["rows"]

    @cached_property
    def task(self) -> BaseTask:
        """The task with its resolved label set."""
        return make_task(self.recipe.task, self.prepared["labels"], choice=self.prepared["choice"])

    @property
    def teacher_checkpoints(self) -> TeacherCheckpoints:
        """teach/checkpoints.json, which is there once `teach` has finished."""
        return read_json(self.folder / "teach" / "checkpoints.json")

    @property
    def checkpoint_folders(self) -> dict[str, Path]:
        """Folder of each teacher checkpoint by name, oldest first: in this run, or the user's own."""
        own = bool(self.recipe.teach.checkpoints)
        records = self.teacher_checkpoints["checkpoints"]
        return {record["name"]: checkpoint_folder(self.folder, record, own) for record in records}

    @property
    def best_teacher(self) -> Path:
        """Folder of T*, the teacher checkpoint that is best on validation."""
        return self.checkpoint_folders[self.teacher_checkpoints["best"]]
