"""The command line: one subcommand for each stage, and `run`, which is all of them in order.

Stages are imported when they are chosen, so `--help` and a mistake in a recipe take well under a second. Exit codes: 0
done, 1 our fault, 2 the user's to mend (a message, no traceback), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tutelage.errors import UserError
from tutelage.stages.pipeline import STAGES, run_stages

if TYPE_CHECKING:
    from tutelage.recipe.load import LoadedRecipe
    from tutelage.run.run_folder import RunFolder

FULL = ("No space left on device", "PytorchStreamWriter", "unexpected pos")
"""What a full disk looks like: to Python and safetensors, and to torch, which does not call it by its name."""
ON_THEIR_OWN = ("diagnose", "report")
"""Stages whose commands are written out below: they have more to say than that the stage is done."""

app = typer.Typer(
    help="Distil a fine-tuned LLM into a small, fast model for one domain task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML), or the run folder of one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Values that win over the file.")
]
Force = Annotated[bool, typer.Option("--force", help="Make the result again, deleting the one that is there.")]


def _load(recipe: Path | str, overrides: Sequence[str] | None) -> LoadedRecipe:
    """The recipe; its notes go to standard error."""
    from tutelage.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    for note in loaded.notes:
        print(note, file=sys.stderr)
    return loaded


def _open_run(recipe: Path, overrides: list[str] | None, force: bool) -> RunFolder:
    from tutelage.run.run_folder import RunFolder

    return RunFolder(_load(recipe, overrides).recipe, force=force)


def _go(run_folder: RunFolder, stages: list[str]) -> None:
    """Run stages under the folder's lock."""
    from tutelage.run.manifest import locked

    with locked(run_folder.folder):
        run_stages(run_folder, stages)


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, force: Force = False) -> None:
    """All stages: from raw rows to a distilled student, its scores and a report. Continues where a killed run
    stopped."""
    run_folder = _open_run(recipe, overrides, force)
    _go(run_folder, list(STAGES))
    _show(run_folder)


def _show(run_folder: RunFolder) -> None:
    """What a whole run came to."""
    from tutelage.stages.evaluate import show_scores

    show_scores(run_folder.folder)
    run_folder.screen.say(f"report: {run_folder.folder / 'report' / 'index.html'}")


def _add_stage(name: str, text: str) -> None:
    def command(recipe: RecipeFile, overrides: Overrides = None, force: Force = False) -> None:
        _go(_open_run(recipe, overrides, force), [name])

    app.command(name.replace("_", "-"), help=text)(command)


for _name, _text in STAGES.items():
    if _name not in ON_THEIR_OWN:
        _add_stage(_name, _text)


@app.command()
def report(
    recipe: RecipeFile,
    overrides: Overrides = None,
    lang: Annotated[
        Literal["en", "ko", "ja"] | None, typer.Option(help="Language of the page; default: report.lang.")
    ] = None,
    force: Force = False,
) -> None:
    """Write report/index.html, one file that needs nothing else, from what is in the run folder."""
    run_folder = _open_run(recipe, [*(overrides or []), *([f"report.lang={lang}"] if lang else [])], force)
    _go(run_folder, ["report"])
    run_folder.screen.say(f"report: {run_folder.folder / 'report' / 'index.html'}")


@app.command()
def compare(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [section.key=value]...", help="Recipe files, then values.")
    ],
    methods: Annotated[
        str, typer.Option(help="Names of methods, separated by commas.")
    ] = "sft,td,td-aw,scd,scd-aw,ccd",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per method: 0, 1, ...")] = 3,
    teacher_seeds: Annotated[
        int, typer.Option(min=1, help="Number of teachers per recipe, each with its own seed.")
    ] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Number of students to train at a time on this machine.")] = 1,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the learning rate first, see the recipe's `tune` section.")
    ] = False,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or a running Ray cluster.")
    ] = "local",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the comparison; default: RUN/compare.")
    ] = None,
    format: Annotated[
        Literal["table", "markdown", "latex", "csv", "json"], typer.Option(help="Format of the printed table.")
    ] = "table",
    force: Annotated[bool, typer.Option("--force", help="Delete and rebuild stale results.")] = False,
) -> None:
    """Compare methods on the same teacher, anchor, rows and steps, with several seeds. Continues where it stopped.

    Exit code 1 if students failed; the same command runs them again.
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
    plan = make_plan(loaded, methods, seeds, teacher_seeds, jobs, output, tune=tune, executor=executor, force=force)
    table = run_comparison(plan)
    summary = write_summary(plan.folder, table)
    write_page(summary, plan.folder / "index.html")
    show(summary, format)
    states = [entry.state for entry in table.planned()]
    if failed := sum(state is not CellState.DONE for state in states):
        print(f"{failed} of {len(states)} students failed; the same command runs them again", file=sys.stderr)
        raise typer.Exit(1)


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
StudentName = Annotated[str | None, typer.Option(help="METHOD/seed-K; default: the best on validation.")]


@app.command()
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    timing_run: Annotated[
        int | None,
        typer.Option(
            "--timing-run",
            min=8,
            metavar="ROWS",
            help="Train both models for a few steps on so many rows, to predict time, memory and disk.",
        ),
    ] = None,
    probe: Annotated[int | None, typer.Option(min=8, hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The checks as JSON.")] = False,
) -> None:
    """Preflight checks: what will fail, what is worth a look, whether distillation can pay. Exit code 0, 1 (look) or 2
    (will fail)."""
    from tutelage.doctor import examine_file, exit_code, show, to_json

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    if probe is not None:
        say("--probe is now --timing-run; the old name will go with the next version")
    checks = examine_file(recipe, overrides or [], timing_rows=timing_run or probe, say=say)
    if as_json:
        print(to_json(checks))
    else:
        show(checks)
    raise typer.Exit(exit_code(checks))


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="A file of rows, or a folder with train, validation and test files.")],
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="Hub id or folder of the student.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The recipe; default: NAME.yaml here.")] = None,
) -> None:
    """Write a commented recipe for some data: task, columns, language, lengths and batch are guessed from the rows."""
    from tutelage.cli.init import initialise

    sketch = initialise(data, teacher, student, output)
    for line in sketch.found:
        print(line)
    for line in sketch.missing:
        print(f"still to do: {line}")
    print(f"wrote {sketch.path}: look it over, then `tutelage doctor {sketch.path}`")


@app.command()
def diagnose(run: RunPath) -> None:
    """When and where each student wins or loses against its teacher: slices, calibration, a cascade. Writes
    RUN/diagnose."""
    from tutelage.stages import diagnose

    diagnose.run_stage(run)
    diagnose.show(run)


@app.command()
def watch(
    run: RunPath,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
) -> None:
    """A run at work, live: stage, time left, losses, scores, the checkpoint followed and why. From files alone."""
    from tutelage.cli.watch import watch

    watch(run, once, interval)


@app.command("ls")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("runs"),
    format: Annotated[
        Literal["table", "markdown", "latex", "csv", "json"], typer.Option(help="Format of the printed table.")
    ] = "table",
) -> None:
    """Runs as a table: task, models, method, score, share of the gap, date, state, size."""
    from tutelage.cli.list_runs import show_runs

    show_runs(folder, format)


@app.command()
def clean(run: RunPath, yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False) -> None:
    """What of a run can be deleted and made again, with sizes. Nothing is deleted without --yes."""
    from tutelage.cli.clean import clean

    clean(run, yes)


@app.command()
def explain(
    id: Annotated[str, typer.Argument(help="A row's id.")],
    run: Annotated[Path, typer.Option("--run", help="The run folder.")],
) -> None:
    """One row's story: losses by checkpoint, weight in each stage, answers of every model."""
    from tutelage.cli.explain import explain

    explain(run, id)


@app.command()
def card(run: RunPath, student: StudentName = None) -> None:
    """Write a student's model card (README.md beside it): method, scores with intervals, where it loses, how to use
    it."""
    from tutelage.report.model_card import write_card

    print(write_card(run, student))


@app.command()
def push(
    run: RunPath,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository of the Hugging Face Hub.")],
    student: StudentName = None,
    public: Annotated[bool, typer.Option("--public", help="Open to all; private without it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; touch no network.")] = False,
) -> None:
    """Upload a student with its card."""
    from tutelage.report.model_card import push

    push(run, student, repo, not public, dry_run)


@app.command("show")
def show_recipe(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """The resolved recipe: each value with where it comes from (default, file, override)."""
    from tutelage.recipe.load import show_rows
    from tutelage.utils.console import print_table

    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), origin]
        for key, value, origin, _ in show_rows(_load(recipe, overrides))
    ]
    print_table(str(recipe), ["key", "value", "origin"], rows)


@app.command()
def shrink(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model to prune.")],
    out: Annotated[Path, typer.Argument(help="Folder for the smaller model; must not exist yet.")],
    layers: Annotated[int, typer.Option(help="Layers to keep: evenly spaced, first and last among them.")],
) -> None:
    """Make a student by depth pruning: it has the teacher's tokenizer, so any teacher has a student."""
    from tutelage.models.prune import shrink_model

    shrink_model(model, out, layers)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a distilled student (it holds tutelage.json).")],
    input: Annotated[str, typer.Option("--input", help="File of rows, or - for JSON lines from standard input.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="File for the answers; default: standard output.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in one batch of decoding.")] = 16,
) -> None:
    """The student at work on new rows: one JSON line a row (id, prediction, raw), in the order of the input."""
    from tutelage.models.predict import predict_file

    predict_file(model, input, output, batch_size)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where data, models and runs go.")] = Path("runs/demo"),
    task: Annotated[
        list[str] | None, typer.Option(help="classification, ner or qa; may be given more than once.")
    ] = None,
) -> None:
    """Write a small clinic data set and two tiny models, and distil one into the other: the whole road in minutes."""
    from tutelage.demo.setup import DEFAULT_TASKS, prepare, recipe_for

    tasks = task or list(DEFAULT_TASKS)
    prepare(folder, tasks)
    for name in tasks:
        recipe, overrides = recipe_for(folder, name)
        run_folder = _open_run(recipe, overrides, force=False)
        _go(run_folder, list(STAGES))
        _show(run_folder)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from tutelage import __version__

        typer.echo(__version__)
        raise typer.Exit


class Interrupted(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which the command-line library would turn into exit code 1."""


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted


def main() -> None:
    """Entry point of the `tutelage` command."""
    signal.signal(signal.SIGINT, _interrupt)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not any(words in str(error) for words in FULL):
            raise
        print(
            f"the disk is full ({error}): free some space; the same command continues from the last whole piece",
            file=sys.stderr,
        )
        sys.exit(2)
    except Interrupted:
        print("interrupted; the same command continues from the last whole piece", file=sys.stderr)
        sys.exit(130)
