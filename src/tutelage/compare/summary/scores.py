"""Scores and losses of every model of a comparison on the test rows, read from the run folders.

Checks the entries of results.jsonl against the files of each cell. Loads no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from tutelage.analysis.crossed_intervals import RunScores, ScalarStatistic, score_runs, stack
from tutelage.analysis.slices import Measure
from tutelage.compare.cells import Cell, CellRecord, has_teacher
from tutelage.errors import StaleArtifactError, problems
from tutelage.recipe.load import load_recipe
from tutelage.records import Example, Prediction
from tutelage.run.manifest import MANIFEST
from tutelage.tasks import make_task
from tutelage.tasks.base import BaseTask
from tutelage.utils.bootstrap import Statistic
from tutelage.utils.files import read_json, read_jsonl, read_records
from tutelage.utils.integrity import present

Line = TypeVar("Line")
RunKey = tuple[int, int]
"""Teacher seed and seed of a training run."""

MEANS = ("accuracy", "exact_match", "token_f1")
"""Metrics that are means over rows of a number that each row has."""
TOLERANCE = 1e-9
"""A value in results.jsonl and the same value from predictions.jsonl may differ by this, which is rounding."""
_MOST_SHOWN = 10


class ModelScores(NamedTuple):
    """One model of a run: a student, the teacher or the anchor."""

    metrics: dict[str, float]
    """Every metric of the task and `nll`, on all test rows."""
    samples: dict[Measure, RunScores]
    """Of this model alone."""
    validation_losses: dict[str, float]
    """Nats per answer token, by row id."""

    @property
    def test_losses(self) -> np.ndarray:
        """[rows] in the order of the test rows."""
        return self.samples["nll"].table[0]


class _ModelFiles(NamedTuple):
    """A model as its files have it."""

    metrics: dict[str, float]
    score_table: np.ndarray
    """[rows] the metric of each row, for metrics that are means; otherwise [rows, k], which `score_statistic` reads."""
    score_statistic: ScalarStatistic | None
    test_losses: np.ndarray
    """[rows]"""
    validation_losses: dict[str, float]


class RecipeScores:
    """One recipe's models: students of its cells, and teacher and anchor of its runs, one run per teacher seed."""

    def __init__(self, name: str, records: Mapping[Cell, CellRecord]) -> None:
        """records: of the done cells, at least one. Raises StaleArtifactError if the run folders contradict them."""
        self.name, self.records = name, records
        self.runs = {cell.teacher_seed: cell.run for cell in records}
        self.task, self.examples = _task_and_test_rows(Path(next(iter(self.runs.values()))))
        self.methods = list(dict.fromkeys(cell.method for cell in records))
        self.cells: dict[str, dict[RunKey, Cell]] = {method: {} for method in self.methods}
        for cell in sorted(records, key=lambda cell: (cell.teacher_seed, cell.seed)):
            self.cells[cell.method][cell.teacher_seed, cell.seed] = cell
        self._without_teacher = {method: self._by_seed(method) for method in self.methods if not has_teacher(method)}
        self.models, self.text_baseline = self._read_models()
        self._check_against_files()

    def keys(self, *methods: str) -> list[RunKey]:
        """The training runs that all methods have, in order. One without a teacher belongs to every teacher seed."""
        by_seed = [self._without_teacher[name] for name in methods if name in self._without_teacher]
        by_key = [self.cells[name] for name in methods if name not in self._without_teacher]
        candidates = by_key[0] if by_key else [(0, seed) for seed in by_seed[0]]
        return [
            key for key in candidates
            if all(key in cells for cells in by_key) and all(key[1] in cells for cells in by_seed)
        ]  # fmt: skip

    def cell(self, method: str, key: RunKey) -> Cell:
        """A method's cell; of a method without a teacher, that of the first teacher seed that has this seed."""
        if method in self._without_teacher:
            return self._without_teacher[method][key[1]]
        return self.cells[method][key]

    def cell_records(self, method: str) -> list[CellRecord]:
        """What results.jsonl says of the method's training runs, in the order of `keys(method)`."""
        return [self.records[self.cell(method, key)] for key in self.keys(method)]

    def validation_means(self, method: str) -> dict[str, float]:
        """Mean over training runs of `score` and `nll` on validation rows; what is not recorded is left out."""
        rows = [row for record in self.cell_records(method) for row in record.of_split("validation")]
        metrics = dict.fromkeys(row["metric"] for row in rows)
        return {metric: float(np.mean([row["value"] for row in rows if row["metric"] == metric])) for metric in metrics}

    def student_sample(self, measure: Measure, method: str, keys: Sequence[RunKey]) -> RunScores:
        """A method's students on the test rows, in the order of the keys."""
        cells = (self.cell(method, key) for key in keys)
        return stack([self.models[cell.run, cell.student].samples[measure] for cell in cells])

    def base_sample(self, measure: Measure, model: Literal["teacher", "anchor"], keys: Sequence[RunKey]) -> RunScores:
        """The teacher of each key's teacher seed; or the anchor, which is the same for all."""
        first = next(iter(self.runs.values()))
        runs = [self.runs.get(key[0], first) if model == "teacher" else first for key in keys]
        return stack([self.models[run, model].samples[measure] for run in runs])

    def under_teachers(self, keys: Sequence[RunKey], *methods: str) -> list[RunKey]:
        """The keys of some methods' training runs; once for every teacher seed if none of them has a teacher."""
        if set(methods) <= self._without_teacher.keys():
            return [(teacher_seed, seed) for teacher_seed in self.runs for _, seed in keys]
        return list(keys)

    def _by_seed(self, method: str) -> dict[int, Cell]:
        cells: dict[int, Cell] = {}
        for (_, seed), cell in self.cells[method].items():
            cells.setdefault(seed, cell)
        return dict(sorted(cells.items()))

    def _read_models(self) -> tuple[dict[tuple[str, str], ModelScores], RunScores | None]:
        """Models by run and name; and TF-IDF with logistic regression, if it was scored, which has a score alone.

        All are resampled together, so that resample n has the same rows in all.
        """
        names = {(run, model): None for run in self.runs.values() for model in ("teacher", "anchor")}
        names |= {(cell.run, cell.student): None for cell in self.records}
        files = {
            (run, model): _read_model(Path(run) / "evaluate" / model, self.task, self.examples) for run, model in names
        }
        tables = {f"{run}/evaluate/{model}": read.score_table[None] for (run, model), read in files.items()}
        baseline = self._baseline_table()
        if baseline is not None:
            tables["baseline"] = baseline[None]
        losses = {f"losses of {run}/evaluate/{model}": read.test_losses[None] for (run, model), read in files.items()}
        statistic = next(iter(files.values())).score_statistic
        scores = score_runs(tables, statistic)
        samples = zip(scores[: len(files)], score_runs(losses), strict=True)
        models = {
            name: ModelScores(read.metrics, {"score": score, "nll": nll}, read.validation_losses)
            for (name, read), (score, nll) in zip(files.items(), samples, strict=True)
        }
        return models, None if baseline is None else scores[-1]

    def _baseline_table(self) -> np.ndarray | None:
        """As of `_score_table`, from any of the runs: the baseline answers the same under all teacher seeds."""
        paths = (Path(run) / "baseline" / "answers.jsonl" for run in self.runs.values())
        path = next((path for path in paths if present(path)), None)
        if path is None:
            return None
        lines = _of_all_rows({line["id"]: line for line in read_jsonl(path)}, path, self.examples)
        return _score_table(self.task, [line["prediction"] for line in lines], self.examples)[0]

    def _check_against_files(self) -> None:
        wrong = [line for cell, record in self.records.items() for line in self._contradictions(cell, record)]
        if wrong:
            more = [f"and {len(wrong) - _MOST_SHOWN} more"] if len(wrong) > _MOST_SHOWN else []
            title = (
                "results.jsonl and the run folders have different values for the same students; remove these cells'"
                " lines from results.jsonl and run the same command again, which scores them anew:"
            )
            raise StaleArtifactError(problems(title, wrong[:_MOST_SHOWN] + more))

    def _contradictions(self, cell: Cell, record: CellRecord) -> Iterator[str]:
        student = Path(cell.run) / "distill" / cell.student
        finished = (student / MANIFEST).is_file()  # the student may have been deleted since; its scores still count
        validation = validation_of_kept_stage(student) if finished else {}
        in_files = {
            "test": (self.models[cell.run, cell.student].metrics, "predictions.jsonl"),
            "validation": (validation, "stages.json"),
        }
        for row in record.rows:
            values, source = in_files[row["split"]]
            value = values.get(row["metric"])
            if value is not None and not _equal(row["value"], value):
                yield f"{cell}: {row['split']} {row['metric']} is {row['value']} there and {value} from {source}"


def has_predictions(cell: Cell) -> bool:
    """Whether the file exists that a cell's scores are made from; the user may have deleted it."""
    return (Path(cell.run) / "evaluate" / cell.student / "predictions.jsonl").is_file()


def validation_of_kept_stage(student: Path) -> dict[str, float | None]:
    """`score` and `nll` on validation of the stage that was kept. student: its folder below `distill`."""
    number = read_json(student / MANIFEST)["kept_stage"]
    return next(stage for stage in read_json(student / "stages.json") if stage["stage"] == number)["validation"]


def _task_and_test_rows(run: Path) -> tuple[BaseTask, list[Example]]:
    recipe, about = load_recipe(run / "recipe.yaml").recipe, read_json(run / "prepare" / "data.json")
    task = make_task(recipe.task, about["labels"], choice=about["choice"])
    rows = read_jsonl(run / "prepare" / "rows.jsonl")
    return task, [Example(**row) for row in rows if row["split"] == "test"]


def _read_model(folder: Path, task: BaseTask, examples: Sequence[Example]) -> _ModelFiles:
    """folder: below `evaluate`. Raises StaleArtifactError if it has no predictions for these rows."""
    predictions = _read_predictions(folder / "predictions.jsonl", examples)
    table, statistic, metrics = _score_table(task, [row.prediction for row in predictions], examples)
    losses = np.array([row.nll for row in predictions], dtype=np.float64)
    metrics |= {"nll": float(losses.mean())}
    validation = {row["id"]: row["nll"] for row in read_jsonl(folder / "validation_loss.jsonl")}
    return _ModelFiles(metrics, table, statistic, losses, validation)


def _score_table(
    task: BaseTask, answers: Sequence[Any], examples: Sequence[Example]
) -> tuple[np.ndarray, ScalarStatistic | None, dict[str, float]]:
    """(table, statistic) as in `_ModelFiles`, and every metric on all rows, of parsed answers."""
    table, metrics_of = task.table(answers, examples)
    on_all_rows = metrics_of(np.ones((1, len(table))), table)
    metrics = {name: float(value[0]) for name, value in on_all_rows.items()}
    statistic: ScalarStatistic | None = partial(_metric, metrics_of, task.metric)
    if task.metric in MEANS:
        patterns, pattern_of_row = np.unique(table, axis=0, return_inverse=True)
        table, statistic = statistic(np.eye(len(patterns)), patterns)[pattern_of_row.ravel()], None
    return table, statistic, metrics


def _metric(metrics_of: Statistic, name: str, draws: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(metrics_of(draws, rows)[name])


def _read_predictions(path: Path, examples: Iterable[Example]) -> list[Prediction]:
    """In the order of the examples."""
    if not path.is_file():
        raise StaleArtifactError(
            f"{path} does not exist, and results.jsonl has scores made from it: restore it, or remove the lines of that"
            " cell from results.jsonl"
        )
    return _of_all_rows({row.id: row for row in read_records(path, Prediction)}, path, examples)


def _of_all_rows(by_id: Mapping[str, Line], path: Path, examples: Iterable[Example]) -> list[Line]:
    """The lines of a file in the order of the examples."""
    ids = [example.id for example in examples]
    missing = [id for id in ids if id not in by_id]
    if missing:
        raise StaleArtifactError(
            f"{path} lacks {len(missing)} of {len(ids)} test rows, {missing[0]} for one: it was written for other rows."
            " Remove that folder and run the same command again."
        )
    return [by_id[id] for id in ids]


def _equal(recorded: float | None, value: float) -> bool:
    if recorded is None or math.isnan(recorded) or math.isnan(value):
        return recorded is None or (math.isnan(recorded) and math.isnan(value))
    return abs(recorded - value) <= TOLERANCE
