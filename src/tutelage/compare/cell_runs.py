"""Running the cells of a comparison, or of its learning-rate search, and recording each as it ends."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tutelage.compare.cell_table import CellTable
from tutelage.compare.cells import RESULTS, Cell, ResultRow, ResultsFile
from tutelage.compare.executors import Executor, LocalExecutor, Outcome
from tutelage.compare.plan import ComparisonPlan
from tutelage.compare.summary.scores import has_predictions, validation_of_kept_stage
from tutelage.compare.tuning import TUNED
from tutelage.errors import StaleArtifactError, problems
from tutelage.recipe.load import load_recipe
from tutelage.run import stage_inputs
from tutelage.run.manifest import MANIFEST, Work
from tutelage.run.run_folder import RunFolder
from tutelage.stages import distill, evaluate
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json

# --- one cell, in a process of its own ---


def make_cell(cell: Cell, rebuild: bool = False) -> None:
    """Train and score one student."""
    run = train_cell(cell, rebuild)
    models = RunModels(run)
    evaluate.score(run, models, evaluate.student(run, models, cell.name, cell.seed))


def train_cell(cell: Cell, rebuild: bool = False) -> RunFolder:
    """Train one student, without scoring it on test: learning rates are chosen on validation."""
    only_cell = [f"distill.methods=[{json.dumps(cell.name)}]", f"distill.seeds=[{cell.seed}]"]
    run = RunFolder(load_recipe(Path(cell.run) / "recipe.yaml", only_cell).recipe, rebuild=rebuild)
    distill.cell(run, RunModels(run), cell.name, cell.seed)
    return run


# --- what is recorded of a cell ---


def validation_rows(outcome: Outcome) -> list[ResultRow]:
    """A row for every metric of the kept student on validation, or one with the error."""
    if outcome.error is not None:
        return [{"status": "failed", "error": outcome.error, "seconds": round(outcome.seconds, 3)}]
    student = Path(outcome.cell.run) / "distill" / outcome.cell.student
    shared = {"status": "done", "seconds": read_json(student / MANIFEST)["seconds"], "split": "validation"}
    values = validation_of_kept_stage(student)
    return [{**shared, "metric": metric, "value": value} for metric, value in values.items() if value is not None]


def all_rows(outcome: Outcome) -> list[ResultRow]:
    """A row for every metric on validation and on test, or one with the error."""
    rows = validation_rows(outcome)
    if outcome.error is not None:
        return rows
    scores = read_json(Path(outcome.cell.run) / "evaluate" / outcome.cell.student / "scores.json")
    shared = {"status": "done", "seconds": rows[0]["seconds"], "split": "test"}
    return rows + [{**shared, "metric": metric, **interval} for metric, interval in scores.items()]


# --- all cells ---


@dataclass(frozen=True)
class CellProcedure:
    """What is done with each cell, and where it is recorded."""

    name: str
    """For messages."""
    file: str
    """In the folder of the comparison."""
    task: Callable[..., object]
    """Called with a cell and `rebuild`; importable, since it is sent to another process."""
    rows_of: Callable[[Outcome], list[ResultRow]]
    has_predictions: Callable[[Cell], bool]


COMPARE = CellProcedure("compare", RESULTS, make_cell, all_rows, has_predictions)
TUNE = CellProcedure("tune", TUNED, train_cell, validation_rows, lambda cell: True)


def run_cells(plan: ComparisonPlan, procedure: CellProcedure, runs: Mapping[Cell, RunFolder]) -> dict[Cell, str]:
    """Run the cells without a result from today's inputs; record each as it ends. runs: by cell to be asked for.

    Returns the fingerprints of the cells' inputs. Raises StaleArtifactError if the folders of cells to run hold
    students trained from other inputs, unless the plan says `force`.
    """
    inputs = {cell: stage_inputs.student(run, cell.name) for cell, run in runs.items()}
    students = {cell: Work(Path(cell.run) / "distill" / cell.student, values) for cell, values in inputs.items()}
    fingerprints = {cell: student.fingerprint() for cell, student in students.items()}
    results = ResultsFile(plan.folder / procedure.file)
    to_run = CellTable(results.records(), fingerprints, has_predictions=procedure.has_predictions).to_run()
    if not plan.force:
        _refuse_stale_students({cell: students[cell] for cell in to_run})
    screen, began = next(iter(runs.values())).screen, time.monotonic()
    executor = make_executor(plan, procedure.task, runs.values())
    if warning := _other_threads(students.values(), executor.threads):
        screen.warn(warning)
    screen.say(f"{procedure.name}: {len(runs)} cells, {len(runs) - len(to_run)} of them up to date")
    for number, outcome in enumerate(executor.run(to_run), start=1):
        rows = procedure.rows_of(outcome)
        results.append(outcome.cell, fingerprints[outcome.cell], rows)
        left = (time.monotonic() - began) / number * (len(to_run) - number)
        time_left = f"; about {left / 60:.0f} min left" if left > 60 else ""
        metric = runs[outcome.cell].task.metric
        screen.say(f"[{number}/{len(to_run)}] {_describe(outcome, rows, metric)}{time_left}")
    return fingerprints


def make_executor(plan: ComparisonPlan, task: Callable[..., object], runs: Iterable[RunFolder]) -> Executor:
    """The executor that the plan names."""
    logs, cell_task = plan.folder / "logs", partial(task, rebuild=plan.force)
    if plan.executor == "local":
        return LocalExecutor(cell_task, logs, plan.jobs)
    from tutelage.compare.ray_executor import RayExecutor

    resources = plan.recipes[0].compare
    folders = list(dict.fromkeys([plan.folder, *(run.folder for run in runs)]))
    return RayExecutor(cell_task, logs, folders, num_cpus=resources.num_cpus, num_gpus=resources.num_gpus)


def _refuse_stale_students(students: Mapping[Cell, Work]) -> None:
    changes = {cell: lines for cell, student in students.items() if (lines := student.changed())}
    if not changes:
        return
    first = next(iter(changes))
    title = f"{len(changes)} students were trained from other inputs than now; first {students[first].folder}:"
    raise StaleArtifactError(
        f"{problems(title, changes[first])}\n"
        "  delete and rebuild them:           add --force to this command\n"
        "  keep them, and compare with them:  write the setting into a method's name, as in td+kd_ratio=0.7, instead of"
        " changing the recipe\n"
        "  keep them, and run elsewhere:      output_dir=runs/ANOTHER_NAME"
    )


def _other_threads(students: Collection[Work], threads: int) -> str | None:
    """A warning if finished students were trained on processors with another number of threads than the next ones."""
    finished = [s for s in students if (s.folder / MANIFEST).is_file() and not s.changed()]
    trained_with = (read_json(student.folder / MANIFEST).get("threads", threads) for student in finished)
    others = Counter(number for number in trained_with if number != threads)
    if not others or len(finished) == len(students):
        return None
    listed = ", ".join(f"{number} for {count} of the finished ones" for number, count in sorted(others.items()))
    return (
        f"processor threads: {threads} for the students still to train, {listed}. Another number of threads rounds sums"
        " differently, which can change a student as much as another seed does. Keep the same --jobs (on a cluster,"
        " compare.num_cpus); `tutelage run` trains as --jobs 1 does"
    )


def _describe(outcome: Outcome, rows: list[ResultRow], metric: str) -> str:
    """One line about a cell that ended. metric: the recipe's."""
    if outcome.error is not None:
        return f"{outcome.cell}: FAILED, {outcome.error.splitlines()[0]}"
    last_split = rows[-1]["split"]  # test, if the student was scored on it
    values = {row["metric"]: row["value"] for row in rows if row["split"] == last_split}
    score = values.get(metric, values.get("score"))
    return f"{outcome.cell}: {metric} {score:.3f}, loss {values['nll']:.3f} nats, {rows[0]['seconds']:.0f} s"
