"""Commands that read a run folder: what is in it, how it goes, one row of it; its student published or served."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage.utils.console import out

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
StudentName = Annotated[
    str | None, typer.Option(metavar="METHOD/seed-K", help="The student. Default: the best on validation.")
]


def _a_number(value: float) -> float:
    """NaN passes a check of bounds."""
    if math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("ls")(list_runs)
    for command in (watch, diagnose, explain, card, push, clean, serve):
        app.command()(command)


def diagnose(run: RunPath) -> None:
    """Compare each student with its teacher, slice by slice. Writes slices, calibration and cascade to RUN/diagnose."""
    from tutelage.stages import diagnose

    diagnose.run_stage(run)
    diagnose.show(run)


def watch(
    run: RunPath,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=86_400, callback=_a_number, help="Seconds between updates.")
    ] = 1.0,
) -> None:
    """Show a run live: stage, time left, losses, validation scores.

    Reads the run's files only, so it works from another machine that shares the folder.
    """
    from tutelage.cli.watch import watch

    watch(run, once, interval)


def clean(run: RunPath, yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False) -> None:
    """List files of a run that can be rebuilt; --yes deletes them."""
    from tutelage.cli.clean import clean

    clean(run, yes)


def explain(
    id: Annotated[str, typer.Argument(metavar="ID", help="The row's id.")],
    run: Annotated[Path, typer.Option("--run", help="The run folder.")],
) -> None:
    """Show all results for one row. Prints losses by checkpoint, weights by stage, and every model's answer."""
    from tutelage.cli.explain import explain

    explain(run, id)


def card(run: RunPath, student: StudentName = None) -> None:
    """Write a student's model card. It becomes README.md in the student's folder."""
    from tutelage.report.model_card import write_card

    out(str(write_card(run, student)))


def push(
    run: RunPath,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hugging Face Hub.")],
    student: StudentName = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public. Default: private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files without uploading them.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Do not ask about a student that is not significantly better than a guess.")
    ] = False,
) -> None:
    """Upload a student with its model card to the Hugging Face Hub."""
    from tutelage.report.model_card import push

    def confirm(doubt: str) -> bool:
        return anyway or (sys.stdin.isatty() and typer.confirm(doubt))

    push(run, student, repo, not public, dry_run, confirm=confirm)


def list_runs(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that is searched for runs, subfolders included.")
    ] = Path("runs"),
    format: Annotated[
        Literal["table", "markdown", "latex", "csv", "json"], typer.Option(help="Format of the printed table.")
    ] = "table",
) -> None:
    """List runs: models, best student, score, state, size."""
    from tutelage.cli.list_runs import show_runs

    show_runs(folder, format)


def serve(
    folder: Annotated[Path, typer.Argument(metavar="STUDENT", help="Folder of a student, or a run folder.")],
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|URL", help="Who answers unsure rows: a run, a model's folder, or a base URL of OpenAI's API."
        ),
    ] = None,
    defer_below: Annotated[
        str | None,
        typer.Option(
            metavar="P|auto",
            help="Confidence below which a row goes to the teacher (default: that of the student's run). auto, the"
            " default with --teacher: chosen on the run's validation rows at start.",
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model behind the URL. Default: the only one it lists.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of a run: teacher, anchor, METHOD or METHOD/seed-K. Default: the student it hands over."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Name of a column in the rows, e.g. text=review.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most rows that are answered together.")] = 16,
    queue: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Most rows that wait or are answered; more are refused (503).")
    ] = 1024,
    drain: Annotated[int, typer.Option(min=0, max=86_400, help="Seconds that requests have at shutdown.")] = 30,
) -> None:
    """Serve a student over HTTP.

    Rows and answers are at /v1/answer, OpenAI's completions at /v1/completions and /v1/chat/completions. With
    --teacher or --defer-below, the teacher answers the rows that the student is unsure of. Needs pip install
    "tutelage[serve]".
    """
    from tutelage.serve.command import Options, serve

    serve(
        Options(
            folder, model, teacher, teacher_model, defer_below, column or (), host, port, batch_size, queue, drain
        )
    )  # fmt: skip
