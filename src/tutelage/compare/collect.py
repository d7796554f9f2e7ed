"""What was scored in the runs of a comparison, read back: which cells count, and every model's values on the test rows.

Needs no model. What results.jsonl says of a cell is held against its files, and cells of other inputs are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.analysis.crossed_intervals import RunScores, score_runs, stack
from tutelage.compare.cells import Cell
from tutelage.errors import StaleArtifactError, UserError, problems
from tutelage.method.methods import find_method
from tutelage.recipe.load import load_recipe
from tutelage.records import Example, Prediction
from tutelage.run.manifest import MANIFEST
from tutelage.tasks import make_task
from tutelage.utils.files import read_json, read_jsonl, read_records

Lines = Mapping[Cell, list[dict[str, Any]]]
"""Of results.jsonl, by cell."""
Inputs = Mapping[Cell, str | None]
"""Fingerprints of what cells are made from now; None where that is not there."""
Key = tuple[int, int]
"""Teacher trajectory and seed of a training."""

MEANS = ("accuracy", "exact_match", "token_f1")
"""Metrics that are means of numbers of the rows."""
AGREE = 1e-9
"""A value in results.jsonl and the same from predictions.jsonl may differ by this, which is rounding."""
_MOST_SHOWN = 10


def in_order(lines: Lines, plan: Sequence[Cell]) -> dict[Cell, list[dict[str, Any]]]:
    """The cells by recipe, method, teacher trajectory and seed: names as the plan has them, then others by the
    alphabet.

    With several cells at a time they end in an order that differs from one comparison to the next.
    """
    recipes, methods = (list(dict.fromkeys(getattr(cell, part) for cell in plan)) for part in ("recipe", "method"))

    def place(cell: Cell) -> tuple[Any, ...]:
        names = ((cell.recipe, recipes), (cell.method, methods))
        planned = [(known.index(name) if name in known else len(known), name) for name, known in names]
        return (*planned, cell.teacher_seed, cell.seed, cell.run, cell.options)

    return {cell: lines[cell] for cell in sorted(lines, key=place)}


def current(
    lines: Lines, inputs: Mapping[Cell, str | None] | None
) -> tuple[dict[Cell, list[dict[str, Any]]], list[dict[str, Any]]]:
    """(cells that count, those that were made from other inputs: the cell's fields, `inputs`, and `wanted`, or null).

    inputs: the same for all seeds of a method, so seeds that are not in it are held to it too; so is a cell with other
    options, or of another run folder of the same recipe and trajectory, for which nothing is wanted any more. Cells of
    which nothing is said count.
    Raises UserError where one recipe and trajectory has two run folders, or one training two sets of options.
    """
    planned = {(cell.recipe, cell.teacher_seed): cell.run for cell in inputs or {}}
    wanted = {_kind(cell): print for cell, print in (inputs or {}).items()}
    methods = {_kind(replace(cell, options="")) for cell in inputs or {}}
    kept, stale = {}, []
    for cell, rows in lines.items():
        found, kind = rows[0]["inputs"], _kind(cell)
        moved = planned.get((cell.recipe, cell.teacher_seed), cell.run) != cell.run
        named = kind in wanted or _kind(replace(cell, options="")) in methods
        if moved or (named and wanted.get(kind) != found):
            stale.append({**asdict(cell), "inputs": found, "wanted": wanted.get(kind)})
        else:
            kept[cell] = rows
    _refuse_two(kept)
    return kept, stale


def _kind(cell: Cell) -> Cell:
    return replace(cell, seed=0)


def _refuse_two(cells: Mapping[Cell, Any]) -> None:
    """Numbers of two runs, or of two settings, under one name would be averaged."""
    runs: dict[tuple[str, int], dict[str, None]] = {}
    options: dict[Cell, dict[str, None]] = {}
    for cell in cells:
        runs.setdefault((cell.recipe, cell.teacher_seed), {})[cell.run] = None
        options.setdefault(replace(cell, options=""), {})[cell.options] = None
    wrong = [
        f"recipe {name}, teacher seed {seed}: run folders {' and '.join(found)}"
        for (name, seed), found in runs.items() if len(found) > 1
    ]  # fmt: skip
    wrong += [f"{cell}: options {' and '.join(map(repr, found))}" for cell, found in options.items() if len(found) > 1]
    if wrong:
        end = "\nGive each recipe a `name` of its own, or name another folder with --output; or remove the lines of one of the two."
        raise UserError(problems("results.jsonl has two results under one name, which would be averaged:", wrong) + end)


class Scored(NamedTuple):
    """One model on the rows."""

    metrics: dict[str, float]
    """Every metric of the task and `nll`, on all test rows."""
    samples: dict[str, RunScores]
    """Of one model each: `score`, the recipe's metric, and `nll`, nats an answer token."""
    validation: dict[str, float]
    """Losses on the validation rows, by id."""

    @property
    def losses(self) -> np.ndarray:
        """[rows], in the order of the rows."""
        return self.samples["nll"].table[0]


@dataclass(frozen=True)
class _Read:
    """A model as its files have it; `table` is what the score is made of: [rows] numbers, or [rows, k] for a
    statistic."""

    metrics: dict[str, float]
    table: np.ndarray
    losses: np.ndarray
    validation: dict[str, float]


class ScoredRecipe:
    """One recipe's runs (one for each teacher trajectory) with everything that was scored in them."""

    def __init__(self, name: str, lines: Lines) -> None:
        """lines: of the cells that came to a good end. Raises StaleArtifactError where the run folders say
        otherwise."""
        self.name, self.lines = name, lines
        self.runs = {cell.teacher_seed: cell.run for cell in lines}
        first = Path(next(iter(self.runs.values())))
        loaded, about = load_recipe(first / "recipe.yaml").recipe, read_json(first / "prepare" / "data.json")
        self.task = make_task(loaded.task, about["labels"], choice=about["choice"])
        rows = (line for line in read_jsonl(first / "prepare" / "rows.jsonl") if line["split"] == "test")
        self.examples = [Example(**line) for line in rows]
        self.methods = list(dict.fromkeys(cell.method for cell in lines))
        self.cells: dict[str, dict[Key, Cell]] = {method: {} for method in self.methods}
        for cell in sorted(lines, key=lambda cell: (cell.teacher_seed, cell.seed)):
            self.cells[cell.method][cell.teacher_seed, cell.seed] = cell
        self._untaught = {method: self._by_seed(method) for method in self.methods if not has_teacher(method)}
        self.models = self._read_all()
        self._hold_against_files()

    def keys(self, *methods: str) -> list[Key]:
        """The trainings that all of the methods have, in order. One without a teacher is the same under every
        trajectory."""
        untaught = [self._untaught[name] for name in methods if name in self._untaught]
        taught = [self.cells[name] for name in methods if name not in self._untaught]
        keys = taught[0] if taught else [(0, seed) for seed in untaught[0]]
        return [
            key for key in keys if all(key in cells for cells in taught) and all(key[1] in seeds for seeds in untaught)
        ]

    def cell(self, method: str, key: Key) -> Cell:
        """A method's training; of a method without a teacher the one of this seed under the first trajectory that has
        it."""
        return self._untaught[method][key[1]] if method in self._untaught else self.cells[method][key]

    def sample(self, what: str, method: str, keys: Sequence[Key]) -> RunScores:
        """`score` or `nll` of a method's trainings, in the order of the keys."""
        cells = (self.cell(method, key) for key in keys)
        return stack([self.models[cell.run, cell.student].samples[what] for cell in cells])

    def base(self, what: str, name: str, keys: Sequence[Key]) -> RunScores:
        """The same of the teacher of each key's trajectory, or of the anchor, which is the same in all."""
        first = next(iter(self.runs.values()))
        runs = [self.runs.get(key[0], first) if name == "teacher" else first for key in keys]
        return stack([self.models[run, name].samples[what] for run in runs])

    def under_teachers(self, keys: Sequence[Key], *methods: str) -> list[Key]:
        """The keys of some methods' trainings; where none of these has a teacher, under each trajectory in turn."""
        return (
            [(run, seed) for run in self.runs for _, seed in keys]
            if set(methods) <= self._untaught.keys()
            else list(keys)
        )

    def _by_seed(self, method: str) -> dict[int, Cell]:
        found: dict[int, Cell] = {}
        for (_, seed), cell in self.cells[method].items():
            found.setdefault(seed, cell)
        return dict(sorted(found.items()))

    def _read_all(self) -> dict[tuple[str, str], Scored]:
        """By run and name in it."""
        names = {(run, name): None for run in self.runs.values() for name in ("teacher", "anchor")}
        names |= {(cell.run, cell.student): None for cell in self.lines}
        read = {(run, name): self._read(Path(run) / "evaluate" / name) for run, name in names}
        tables = {f"{run}/evaluate/{name}": found.table[None] for (run, name), found in read.items()}
        losses = {f"losses of {run}/evaluate/{name}": found.losses[None] for (run, name), found in read.items()}
        metric = self.task.metric
        statistic = None if metric in MEANS else lambda draws, rows: self._metrics(draws, rows)[metric]
        samples = zip(score_runs(tables, statistic), score_runs(losses), strict=True)
        return {
            key: Scored(found.metrics, {"score": score, "nll": nll}, found.validation)
            for (key, found), (score, nll) in zip(read.items(), samples, strict=True)
        }

    def _read(self, folder: Path) -> _Read:
        if not (folder / "predictions.jsonl").is_file():
            raise StaleArtifactError(
                f"{folder / 'predictions.jsonl'} is not there, and results.jsonl has scores made of it: bring it back, or remove"
                " the lines of that cell from results.jsonl"
            )
        rows = {row.id: row for row in read_records(folder / "predictions.jsonl", Prediction)}
        lost = [example.id for example in self.examples if example.id not in rows]
        if lost:
            raise StaleArtifactError(
                f"{folder / 'predictions.jsonl'} lacks {len(lost)} of {len(self.examples)} test rows, {lost[0]} for one: it was"
                " written for other rows. Remove that folder and type the same command again."
            )
        ordered = [rows[example.id] for example in self.examples]
        table, self._metrics = self.task.table([row.prediction for row in ordered], self.examples)
        losses = np.array([row.nll for row in ordered], dtype=np.float64)
        whole = self._metrics(np.ones((1, len(table))), table)
        metrics = {name: float(value[0]) for name, value in whole.items()} | {"nll": float(losses.mean())}
        if self.task.metric in MEANS:
            table = self._row_scores(table)
        validation = {row["id"]: row["nll"] for row in read_jsonl(folder / "validation_loss.jsonl")}
        return _Read(metrics, table, losses, validation)

    def _row_scores(self, table: np.ndarray) -> np.ndarray:
        """[rows] the metric of each row alone."""
        patterns, places = np.unique(table, axis=0, return_inverse=True)
        return np.asarray(self._metrics(np.eye(len(patterns)), patterns)[self.task.metric])[places.ravel()]

    def _hold_against_files(self) -> None:
        wrong = []
        for cell, rows in self.lines.items():
            student = Path(cell.run) / "distill" / cell.student
            tested = self.models[cell.run, cell.student].metrics
            kept = (
                kept_on_validation(student) if (student / MANIFEST).is_file() else {}
            )  # somebody may have cleared it away
            sources = {"test": (tested, "predictions.jsonl"), "validation": (kept, "stages.json")}
            for row in rows:
                values, source = sources[row["split"]]
                said, found = row["value"], values.get(row["metric"])
                if found is not None and not _agree(said, found):
                    wrong.append(f"{cell}: {row['split']} {row['metric']} is {said} there and {found} from {source}")
        if wrong:
            more = [f"and {len(wrong) - _MOST_SHOWN} more"] if len(wrong) > _MOST_SHOWN else []
            title = (
                "results.jsonl and the run folders say different things of the same students; remove these cells' lines from"
                " results.jsonl and type the same command again, which scores them anew:"
            )
            raise StaleArtifactError(problems(title, wrong[:_MOST_SHOWN] + more))


def _agree(said: float | None, found: float) -> bool:
    if said is None or math.isnan(said) or math.isnan(found):
        return said is None or (math.isnan(said) and math.isnan(found))
    return abs(said - found) <= AGREE


def kept_on_validation(student: Path) -> dict[str, float | None]:
    """`score` and `nll` on validation of the stage that was kept, of a student's folder."""
    number = read_json(student / MANIFEST)["kept_stage"]
    return next(stage for stage in read_json(student / "stages.json") if stage["stage"] == number)["validation"]


def has_teacher(method: str) -> bool:
    """Whether a method's students depend on the teacher; one that is not installed is taken to."""
    try:
        parts = find_method(method)
    except KeyError:
        return True
    return parts.schedule != "none" or parts.answers != "gold"
