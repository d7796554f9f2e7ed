"""The command line: one subcommand per stage, `run` for all of them in order, and commands that look at runs.

Stages are imported when they are chosen, so that `--help` and a mistake in a recipe take well under a second.
`endings.py` has the exit codes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tutelage.cli import run_commands
from tutelage.cli.endings import run_command
from tutelage.cli.model_commands import export, shrink
from tutelage.stages import STAGES
from tutelage.utils import ranks
from tutelage.utils.console import err, out, print_table

if TYPE_CHECKING:
    from tutelage.recipe.load import LoadedRecipe
    from tutelage.run.run_folder import RunFolder

ON_THEIR_OWN = ("diagnose", "report")
"""Stages whose commands are written out, because they print or take more than the others."""
MAY_STOP = ("teach", "silver", "anchor", "cache", "cross_fit", "distill")
"""Stages whose commands stop where going on is not worth it."""

app = typer.Typer(
    help="Distil a fine-tuned LLM into a small, fast model for one domain task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), or a run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value", help="Values that override the recipe's, such as distill.num_stages=2."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Delete and rebuild finished results of these stages.")]
Anyway = Annotated[
    bool,
    typer.Option(
        "--anyway", help="Go on with a teacher that learned nothing, or that plain fine-tuning already equals."
    ),
]


def _load(recipe: Path | str, overrides: Sequence[str] | None) -> LoadedRecipe:
    """The recipe; its notes go to standard error."""
    from tutelage.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    for note in loaded.notes:
        err(note)
    return loaded


def _open_run(recipe: Path, overrides: list[str] | None, force: bool, anyway: bool = False) -> RunFolder:
    from tutelage.run.run_folder import RunFolder

    return RunFolder(_load(recipe, overrides).recipe, force=force, anyway=anyway)


def _go(run_folder: RunFolder, stages: list[str], then: Callable[[], object] | None = None) -> None:
    """Run stages under the folder's lock, which the main process holds. then: work for that process afterwards."""
    from tutelage.run.manifest import locked
    from tutelage.stages.pipeline import run_stages

    if ranks.started_one_of_several():
        run_folder.screen.warn("accelerate starts one process on a CPU: `torchrun --nproc_per_node N` starts several")
    ranks.check_shared(run_folder.folder)
    with ExitStack() as held:
        ranks.once(lambda: held.enter_context(locked(run_folder.folder, several=True)))
        run_stages(run_folder, stages)
        if then is not None:
            ranks.once(then)


@app.command()
def init(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="File of rows, or folder with train, validation and test files."),
    ] = None,
    train: Annotated[Path | None, typer.Option(help="File of training rows, instead of DATA.")] = None,
    validation: Annotated[Path | None, typer.Option(help="File of validation rows.")] = None,
    test: Annotated[Path | None, typer.Option(help="File of test rows.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="File of rows without labels.")] = None,
    task: Annotated[
        Literal["classification", "ner", "qa"] | None, typer.Option(help="The task. Default: guessed from the rows.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="Hub id or folder of the student.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with your teacher's checkpoint-*; then it is not fine-tuned.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Recipe file to write. Default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Write a commented recipe for your data. Guesses task, columns, language, lengths and batch size."""
    from tutelage.cli.init import initialise

    if data is None and train is None:
        raise typer.BadParameter("no rows were named: type a file or folder, DATA, or --train FILE")
    if data is not None and train is not None:
        raise typer.BadParameter("the training rows are named twice: DATA, or --train FILE, but not both")
    given = {"train": train, "validation": validation, "test": test}
    files = {split: file for split, file in given.items() if file is not None}
    sketch = initialise(
        data, teacher, student, output, task=task, files=files, unlabelled=unlabelled, checkpoints=checkpoints
    )
    for line in sketch.found:
        out(line)
    for line in sketch.missing:
        out(f"to do: {line}")
    out(f"wrote {sketch.path}: check it, then run `tutelage doctor {sketch.path}`")


@app.command()
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    timing_run: Annotated[
        int | None,
        typer.Option(
            "--timing-run",
            min=8,
            max=1_000_000,
            metavar="ROWS",
            help="Train both models for a few steps on this many rows, to predict time, memory and disk.",
        ),
    ] = None,
    probe: Annotated[int | None, typer.Option(min=8, max=1_000_000, hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Run preflight checks before training.

    They report errors, warnings, and whether distillation is likely to pay off. Exit code 0: all checks passed; 1: at
    least one warning; 2: the run would fail.
    """
    from tutelage.doctor import examine_file, exit_code, show, to_json

    if probe is not None:
        err("--probe is now --timing-run; the old name will be removed in the next version")
    checks = examine_file(recipe, overrides or [], timing_rows=timing_run or probe, say=err)
    if as_json:
        out(to_json(checks))
    else:
        show(checks)
    raise typer.Exit(exit_code(checks))


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, force: Force = False, anyway: Anyway = False) -> None:
    """Run all stages, from raw rows to a distilled student. Continues where an interrupted run stopped.

    Exit code 3: it stopped because the teacher learned nothing, or plain fine-tuning already equals it.
    """
    run_folder = _open_run(recipe, overrides, force, anyway)
    _go(run_folder, list(STAGES))
    ranks.once(lambda: _show(run_folder))


def _show(run_folder: RunFolder) -> None:
    """Print the scores of a finished run, and where the report is."""
    from tutelage.analysis.run_results import read_results
    from tutelage.report.sections_scores import selection
    from tutelage.stages.evaluate import show_scores
    from tutelage.utils.format import signed_span

    show_scores(run_folder.folder)
    if found := selection(read_results(run_folder.folder)):
        chosen, lead = found.chosen, found.chosen.over_sft
        sure = "" if lead is None else f", {signed_span(lead)} over sft"
        run_folder.screen.say(
            f"selected on {found.rows:,} validation rows: {run_folder.folder / 'distill' / chosen.model}"
            f" ({run_folder.task.metric} {chosen.score:.3f}{sure})"
        )
    run_folder.screen.say(f"report: {run_folder.folder / 'report' / 'index.html'}")


@app.command()
def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE|section.key=value", help="Recipe files, then values that override theirs."),
    ],
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas.")
    ] = "sft,td,td-aw,scd,scd-aw,ccd",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds per method; 3 means 0, 1, 2.")] = 3,
    teacher_seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of teacher fine-tuning runs per recipe.")
    ] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of students trained in parallel on this machine.")
    ] = 1,
    tune: Annotated[
        bool, typer.Option("--tune", help="First search for the learning rate, as the recipe's `tune` section says.")
    ] = False,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Train on this machine, or on a running Ray cluster.")
    ] = "local",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the comparison. Default: RUN/compare.")
    ] = None,
    format: Annotated[
        Literal["table", "markdown", "latex", "csv", "json"], typer.Option(help="Format of the printed table.")
    ] = "table",
    force: Annotated[bool, typer.Option("--force", help="Delete and rebuild stale results.")] = False,
    anyway: Anyway = False,
) -> None:
    """Compare methods on the same data, teacher, steps and seeds.

    The same command continues an interrupted comparison and retries failed students. Exit code 1 if students failed, 3
    as in `run`.
    """
    from tutelage.compare.cell_table import CellState
    from tutelage.compare.experiment import run_comparison
    from tutelage.compare.plan import make_plan
    from tutelage.compare.summary.page import write_page
    from tutelage.compare.summary.summarise import write_summary
    from tutelage.compare.summary.table import show

    files = [word for word in recipes if "=" not in word or Path(word).is_file()]
    overrides = [word for word in recipes if word not in files]
    loaded = [_load(file, overrides).recipe for file in files]
    options = {"tune": tune, "executor": executor, "force": force, "anyway": anyway}
    plan = make_plan(loaded, methods, seeds, teacher_seeds, jobs, output, **options)
    table = run_comparison(plan)
    summary = write_summary(plan.folder, table)
    write_page(summary, plan.folder / "index.html")
    show(summary, format)
    err(f"page: {plan.folder / 'index.html'}")
    states = [entry.state for entry in table.planned()]
    if failed := sum(state is not CellState.DONE for state in states):
        err(f"{failed} of {len(states)} students failed; the same command runs them again")
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for data, models and runs.")] = Path(
        "runs/demo"
    ),
    task: Annotated[
        list[str] | None, typer.Option(help="classification, ner or qa; may be given more than once.")
    ] = None,
) -> None:
    """Run the full pipeline on generated data, in minutes. Both models are tiny and trained from scratch."""
    from tutelage.demo.setup import DEFAULT_TASKS, prepare, recipe_for

    tasks = task or list(DEFAULT_TASKS)
    prepare(folder, tasks)
    for name in tasks:
        recipe, overrides = recipe_for(folder, name)
        run_folder = _open_run(recipe, overrides, force=False)
        _go(run_folder, list(STAGES))
        _show(run_folder)


def _add_stage(name: str, text: str) -> None:
    def command(recipe: RecipeFile, overrides: Overrides = None, force: Force = False) -> None:
        _go(_open_run(recipe, overrides, force), [name])

    def stopping(recipe: RecipeFile, overrides: Overrides = None, force: Force = False, anyway: Anyway = False) -> None:
        _go(_open_run(recipe, overrides, force, anyway), [name])

    app.command(name.replace("_", "-"), help=text)(stopping if name in MAY_STOP else command)


for _name, _text in STAGES.items():
    if _name not in ON_THEIR_OWN:
        _add_stage(_name, _text)


@app.command()
def report(
    recipe: RecipeFile,
    overrides: Overrides = None,
    lang: Annotated[
        Literal["en", "ko", "ja"] | None,
        typer.Option(help="Also write the page in this language, report/index.LANG.html. Default: report.lang alone."),
    ] = None,
    force: Force = False,
) -> None:
    """Write report/index.html from the run's files. The page is self-contained."""
    from tutelage.stages.report import write_in

    run_folder = _open_run(recipe, overrides, force)
    pages = [run_folder.folder / "report" / "index.html"]
    if lang in (None, run_folder.recipe.report.lang):
        _go(run_folder, ["report"])
    else:
        _go(run_folder, ["report"], lambda: pages.append(write_in(run_folder, lang)))
    for page in pages:
        run_folder.screen.say(f"report: {page}")


run_commands.add_to(app)


@app.command("show")
def show_recipe(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the recipe with all defaults. Each value is shown with its origin: default, file or override."""
    from tutelage.recipe.load import show_rows

    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), origin]
        for key, value, origin, _ in show_rows(_load(recipe, overrides))
    ]
    print_table(str(recipe), ["key", "value", "origin"], rows)


app.command()(shrink)
app.command()(export)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a distilled student, or a run folder.")],
    input: Annotated[str, typer.Option("--input", help="File of rows, or - for JSON lines on standard input.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File for the answers (.jsonl, .csv, .tsv, .parquet). Default: standard output."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Of a run: teacher, anchor, METHOD or METHOD/seed-K. Default: the student it hands over."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Name of a column in the input, e.g. text=review."),
    ] = None,
    defer_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="P", help="Let the teacher answer rows with a lower confidence than this."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run of that teacher, or folder of a model. Default: the student's own run."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows per batch.")] = 16,
) -> None:
    """Answer new rows with a student, or another model of a run.

    Writes one JSON line per row (id, prediction, raw, confidence), in the order of the input. A table (.csv, .tsv,
    .parquet) keeps the input's columns. From a file to --output, the same command continues after an interruption.
    """
    from tutelage.predict.command import predict as answer

    answer(
        folder, input, output, model=model, columns=column or (), defer_below=defer_below, teacher=teacher,
        batch_size=batch_size,
    )  # fmt: skip


@app.callback(invoke_without_command=True)
def _before_every_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    shared = ("run", *(name.replace("_", "-") for name in STAGES))
    if ranks.started() > 1 and context.invoked_subcommand not in shared:
        from tutelage.run.manifest import one_process

        one_process()
    if version:
        from tutelage import __version__

        out(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `tutelage` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(run_command(app))
