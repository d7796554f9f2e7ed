"""One run as the stages see it: recipe, folder, prepared rows, tokenizer, task; loaded when first asked for, shared after that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.artifacts import Work, fingerprint, read_json
from tutelage.config import flatten
from tutelage.lineage import inputs_of
from tutelage.recipe_schema import Recipe
from tutelage.records import Example, read_records
from tutelage.tasks import make_task
from tutelage.tasks.base import BaseTask
from tutelage.ui import Screen

if TYPE_CHECKING:
    from tutelage.data import EncodedRow, Encoder
    from tutelage.evaluation import Evaluator


@dataclass
class Workspace:
    """A run folder with its recipe. `force` remakes what a stage has already finished."""

    recipe: Recipe
    screen: Screen = field(default_factory=Screen)
    force: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir)

    def settings(self, *sections: str) -> dict[str, Any]:
        """Values of the recipe under these dotted names, flat: what a stage's result depends on."""
        flat = flatten(self.recipe)
        return {k: v for k, v in flat.items() if any(k == s or k.startswith(s + ".") for s in sections)}

    def upstream(self, *folders: str) -> dict[str, str]:
        """Fingerprints of the stages that a result is made from. Raises StaleArtifactError if one is missing or stale."""
        return {f"stage {name}": fingerprint(self.folder / name, inputs_of(self, name)) for name in folders}

    @contextmanager
    def work(self, name: str, inputs: dict[str, Any], *, rebuild_stale: bool = False) -> Iterator[Work | None]:
        """Work in a folder of the run: None if its result is there and fresh, otherwise its record; finished on leaving."""
        work = Work(self.folder / name, inputs, force=self.force, rebuild_stale=rebuild_stale)
        began = time.monotonic()
        if not work.prepare():
            self.screen.say(f"{name}: done already")
            yield None
            return
        for note in work.notes:
            self.screen.say(note)
        yield work
        work.finish(time.monotonic() - began)

    # --- what `prepare` wrote -----------------------------------------------------------------------------------------------

    @cached_property
    def about(self) -> dict[str, Any]:
        """prepare/data.json: labels, choice, vocabulary, max_new_tokens."""
        return read_json(self.folder / "prepare" / "data.json")

    @cached_property
    def _examples(self) -> list[Example]:
        return read_records(self.folder / "prepare" / "rows.jsonl", Example)

    def examples(self, split: str) -> list[Example]:
        """Prepared rows of a split."""
        return [example for example in self._examples if example.split == split]

    @cached_property
    def task(self) -> BaseTask:
        """The task with its resolved label set."""
        return make_task(self.recipe.task, self.about["labels"], choice=self.about["choice"])

    # --- torch from here on -------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer; `prepare` has checked that the teacher's is the same."""
        from tutelage.models import load_tokenizer

        return load_tokenizer(self.recipe.student)

    @cached_property
    def encoder(self) -> Encoder:
        """Rendering of rows as token ids, shared by all models."""
        return make_encoder(self.recipe, self.tokenizer)

    def encoded(self, split: str) -> list[EncodedRow]:
        """Rows of a split as token ids; those that do not fit were left out by `prepare`."""
        return self.encoder.rows(self.examples(split))[0]

    @cached_property
    def evaluator(self) -> Evaluator:
        """Decoding and scoring, the same for all models."""
        from tutelage.evaluation import Evaluator

        return Evaluator(
            self.task,
            self.encoder,
            self.about["vocabulary"],
            self.about["max_new_tokens"],
            self.recipe.task.decoding,
            self.recipe.evaluate.batch_size,
        )


def make_encoder(recipe: Recipe, tokenizer: Any) -> Encoder:
    """The encoder that a recipe's data section describes."""
    from tutelage.data import Encoder

    data = recipe.data
    prefix = data.answer_prefix if data.answer_prefix is not None else ("" if data.chat_template else " ")
    return Encoder(tokenizer, prefix, data.max_length, data.too_long)
