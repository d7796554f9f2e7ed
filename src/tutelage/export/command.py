"""What `tutelage export` does with its options."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import ConfigError, DataError, Kind, Problem, UserError
from tutelage.export.formats import FORMATS, Exported, check_possible, earlier_export, write_export
from tutelage.export.gguf_vocabulary import BLOCK
from tutelage.export.harness import recorded, write_harness_task
from tutelage.export.verify import keep, name_in, refuse_drop, show, test_rows, verify
from tutelage.predict.find_model import FoundModel, find_model, run_of
from tutelage.recipe.load import load_recipe
from tutelage.run.run_folder import RunFolder
from tutelage.run.threads import settle_threads
from tutelage.utils.console import Screen, out
from tutelage.utils.files import size_on_disk
from tutelage.utils.format import file_size

LM_EVAL = "lm-eval"


def export_task(folder: Path, output: Path | None = None) -> Path:
    """Write the test rows of a student's run as a task of lm-evaluation-harness; returns the folder.

    folder: a run, or a student's in one. output: default RUN-lm-eval in the current folder. Raises UserError for a
    folder that exists, DataError for a student outside of a run, and as `write_harness_task`.
    """
    found, run = find_model(folder), run_of(folder)
    if run is None:
        raise DataError(f"{folder} lies in no run folder, whose test rows the task is made of: name the run")
    output = output or Path(f"{found.usage['run']}-{LM_EVAL}")
    if output.exists():
        raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(output)}))
    scored = recorded(run, name_in(run, found.fingerprint))
    name = write_harness_task(found, test_rows(run, found), output, scored)
    screen = Screen()
    if scored:
        screen.say(
            f"{output / 'results.json'}: the scores that `evaluate` recorded for {scored.model}, as lm_eval does"
        )
    screen.say(f"{output}: task {name}. With `pip install 'tutelage[lm-eval]'`, in the precision of `evaluate`:")
    out(f"lm_eval --model hf --model_args {_model_arguments(found, run)} --tasks {name} --include_path {output}")
    return output


def _model_arguments(found: FoundModel, run: Path) -> str:
    """The student in the precision in which `evaluate` has scored it."""
    recipe = load_recipe(run).recipe
    narrow = RunFolder(recipe).bf16 and recipe.student.dtype == "float32"
    return f"pretrained={found.folder}" + (",dtype=bfloat16" if narrow else "")


def export(
    folder: Path,
    format: str,
    output: Path | None = None,
    *,
    precision: str | None = None,
    run: Path | None = None,
    accept_drop: bool = False,
    threads: int | None = None,
) -> Path:
    """Write a student in a format for another runtime; returns the folder.

    folder: of a student, or a run whose student is exported. format: key of FORMATS. output: default
    RUN-STUDENT-FORMAT[-PRECISION] in the current folder. precision: of the weights; None for the student's own. run:
    the run whose test rows are answered with both, by an export that is there already if it is this one; None: nothing
    is measured. threads: of both runtimes; default:
    torch's. Raises UserError for a folder that exists, a score that dropped (unless accept_drop;
    the export stays), and as `write_export` and `verify`.
    """
    check_possible(format, precision)
    if accept_drop and run is None:
        raise ConfigError("--accept-drop is about the score that --verify RUN measures: add --verify, or leave it out")
    found = find_model(folder)
    name = "-".join([found.usage["run"], *found.name.split("/"), format, *([precision] if precision else [])])
    output = output or Path(name)
    if run is not None:
        test_rows(run, found)  # refused before minutes of writing
    exported = _exported(found, output, format, precision, verified=run is not None)
    if run is None:
        Screen().say(f"its score in {FORMATS[format].runtime} was not measured: --verify RUN does that")
        return output
    verified = verify(exported, found, run, threads or settle_threads(Screen().say))
    keep(verified, exported, run)
    show(verified)
    if not accept_drop:
        refuse_drop(verified)
    return output


def _exported(found: FoundModel, output: Path, format: str, precision: str | None, *, verified: bool) -> Exported:
    """The export, written now or, if it is only to be verified, before."""
    screen = Screen()
    if output.exists():
        earlier = earlier_export(found, output, format, precision) if verified else None
        if earlier is None:
            raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(output)}))
        screen.say(f"{output}: this student was written there before, in {earlier.precision}")
        return earlier
    exported = write_export(found, output, format, precision)
    screen.say(f"{output}: {format}, {exported.precision}, {file_size(size_on_disk(output))}")
    if exported.kept:
        kept, matrices = exported.kept
        screen.warn(
            f"{kept} of {matrices} matrices kept in f16: {exported.precision} writes blocks of {BLOCK} numbers, and"
            " their rows are no multiple of that"
        )
    return exported
