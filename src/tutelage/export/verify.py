"""The test rows of a run, answered by the student in transformers and by its export in the runtime that will serve it.

Both get the same prompts, one at a time, each in a process of its own on the CPU. The result is verified.json beside
the export, and a copy in the run, export/METHOD/seed-K/, for the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.significance import paired_difference
from tutelage.errors import DataError, Kind, Problem, UserError
from tutelage.export.formats import Exported, setting_of, student_folder
from tutelage.export.measure import AT_ONCE, Measured, measure
from tutelage.export.prompts import asks_for
from tutelage.export.runtimes import Ask, Setting
from tutelage.models.evaluation import Evaluator
from tutelage.predict.find_model import FoundModel
from tutelage.predict.predictor import Predictor
from tutelage.predict.usage import other_answers, usage_of
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import row_metric
from tutelage.records import Example, Interval
from tutelage.run.artifacts import prepared_rows
from tutelage.run.manifest import folder_fingerprint
from tutelage.run.run_folder import RunFolder
from tutelage.utils.bootstrap import widened
from tutelage.utils.console import Screen, print_table
from tutelage.utils.files import read_jsonl, write_json
from tutelage.utils.format import file_size, metric_words, signed_span, span

VERIFIED = "verified.json"


@dataclass(frozen=True)
class Served:
    """A model in a runtime, on the test rows."""

    runtime: str
    versions: dict[str, str]
    scores: dict[str, dict[str, Any]]
    """Every metric of the task with its 95 % interval: `value`, `low`, `high`."""
    bytes: int
    """Of its files of weights."""
    loading_seconds: float
    row_ms: dict[str, float]
    """Milliseconds of a row that is answered alone: `median`, `p90`."""
    row_ms_together: float
    """Milliseconds a row, when `at_once` rows are answered together."""
    peak_memory: int
    """Bytes of the process, libraries included, answering one row at a time."""


@dataclass(frozen=True)
class Verified:
    """Content of verified.json."""

    run: str
    """Name of the run whose test rows were answered."""
    model: str | None
    """METHOD/seed-K in that run; None for a student of another one."""
    student: str
    """Fingerprint of the student's files."""
    format: str
    precision: str
    threads: int
    rows: int
    at_once: int
    metric: str
    original: Served
    exported: Served
    row_metric: str
    difference: dict[str, float]
    """Export minus student in the mean of `row_metric` over the rows, paired: `value`, `low`, `high`."""
    same_answers: int
    """Rows that both answer alike, as parsed by the task."""
    same_prompts: int
    """Rows whose prompt the runtime reads in the tokens that the student was trained on."""
    same_as_recorded: int | None
    """Rows on which the student answers what `evaluate` has recorded; None if it has recorded nothing."""
    dropped: bool
    """Whether the whole interval of `difference` lies below 0."""


def verify(exported: Exported, found: FoundModel, run: Path, threads: int) -> Verified:
    """Answer the test rows of a run with both.

    Raises DataError for a run of another task or without test rows, ModelError if a runtime fails.
    """
    evaluator, examples = Predictor(found).evaluator, test_rows(run, found)
    asks, screen = asks_for(evaluator, evaluator.eval_set(examples)), Screen()
    setting = setting_of(evaluator, asks, exported, threads)
    measured: list[Measured] = []
    for runtime, folder in _both(exported, found):
        screen.say(f"{len(examples):,} test rows in {runtime} ...")
        of_folder: Setting = {**setting, "folder": str(folder)}
        measured.append(measure({"runtime": runtime, "setting": of_folder, "asks": asks, "only_tokens": False}))
    return _compared(exported, found, run, evaluator, examples, asks, measured, threads)


def _both(exported: Exported, found: FoundModel) -> list[tuple[str, Path]]:
    """Runtime and folder of the student and of its export."""
    return [("transformers", student_folder(found)), (exported.runtime, exported.folder)]


def test_rows(run: Path, found: FoundModel) -> list[Example]:
    """Raises DataError if the run has none, or asks for other answers than the student gives."""
    rows = list(prepared_rows(run, "test"))
    if not rows:
        raise DataError(f"{run} has no prepared test rows: name the run that the student was trained in")
    if why := other_answers(found.usage, usage_of(RunFolder(load_recipe(run).recipe))):
        raise DataError(f"{run} cannot be answered by this student: {why}. Name the run that it was trained in")
    return rows


def _compared(
    exported: Exported,
    found: FoundModel,
    run: Path,
    evaluator: Evaluator,
    examples: Sequence[Example],
    asks: Sequence[Ask],
    measured: Sequence[Measured],
    threads: int,
) -> Verified:
    task = evaluator.task
    parsed = [_parsed(evaluator, examples, part) for part in measured]
    before, after = ([task.score(a, e) for a, e in zip(answers, examples, strict=True)] for answers in parsed)
    estimate = paired_difference([after], [before])
    difference = widened(estimate.interval, estimate.rows, low=-1.0)
    model = name_in(run, found.fingerprint)
    both = zip(_both(exported, found), parsed, measured, strict=True)
    served = [_served(*place, evaluator, examples, answers, part) for place, answers, part in both]
    return Verified(
        run=run.resolve().name,
        model=model,
        student=found.fingerprint,
        format=exported.format,
        precision=exported.precision,
        threads=threads,
        rows=len(examples),
        at_once=AT_ONCE,
        metric=task.metric,
        original=served[0],
        exported=served[1],
        row_metric=row_metric(task.metric),
        difference=difference.as_record(),
        same_answers=sum(a == b for a, b in zip(*parsed, strict=True)),
        same_prompts=sum(read == ask["ids"] for read, ask in zip(measured[1]["tokens"], asks, strict=True)),
        same_as_recorded=_same_as_recorded(run, model, examples, parsed[0]),
        dropped=difference.high < 0,
    )


def _parsed(evaluator: Evaluator, examples: Sequence[Example], measured: Measured) -> list[Any]:
    tokenizer, read, answers = evaluator.encoder.tokenizer, evaluator.encoder.verbalizers.read, []
    for example, reply in zip(examples, measured["replies"], strict=True):
        text = reply["text"] if "text" in reply else tokenizer.decode(reply["ids"], skip_special_tokens=True)
        answers.append(evaluator.task.parse(read(text.strip()), example))
    return answers


def _served(
    runtime: str,
    folder: Path,
    evaluator: Evaluator,
    examples: Sequence[Example],
    answers: Sequence[Any],
    measured: Measured,
) -> Served:
    milliseconds = 1000 * np.array(measured["seconds"])
    metrics = evaluator.task.metrics(answers, examples)
    return Served(
        runtime=runtime,
        versions=measured["versions"],
        scores={name: interval.as_record() for name, interval in metrics.items()},
        bytes=sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS),
        loading_seconds=round(measured["loading"], 2),
        row_ms={"median": _round(np.median(milliseconds)), "p90": _round(np.quantile(milliseconds, 0.9))},
        row_ms_together=_round(1000 * measured["seconds_together"] / measured["rows_together"]),
        peak_memory=measured["peak_memory"],
    )


WEIGHTS = (".safetensors", ".gguf", ".bin")
"""Endings of files that hold weights."""


def _round(milliseconds: Any) -> float:
    return round(float(milliseconds), 2)


def name_in(run: Path, fingerprint: str) -> str | None:
    """METHOD/seed-K of the student with this fingerprint."""
    for manifest in sorted(run.glob("distill/*/*/manifest.json")):
        if folder_fingerprint(str(manifest.parent)) == fingerprint:
            return manifest.parent.relative_to(run / "distill").as_posix()
    return None


def _same_as_recorded(run: Path, model: str | None, examples: Sequence[Example], answers: Sequence[Any]) -> int | None:
    path = run / "evaluate" / str(model) / "predictions.jsonl"
    if model is None or not path.is_file():
        return None
    recorded = {line["id"]: line["prediction"] for line in read_jsonl(path)}
    return sum(recorded.get(e.id) == answer for e, answer in zip(examples, answers, strict=True))


def keep(verified: Verified, exported: Exported, run: Path) -> None:
    """Write verified.json beside the export, and for the model card into the run."""
    record = asdict(verified)
    write_json(exported.folder / VERIFIED, record)
    if verified.model:
        write_json(run / "export" / verified.model / f"{verified.format}-{verified.precision}.json", record)


def show(verified: Verified) -> None:
    """Print both in a table, and in how many answers they agree."""
    head = ["", verified.metric, "size", "ms/row", f"ms/row, {verified.at_once} at once", "peak memory"]
    rows = [
        [
            name,
            span(Interval(*(served.scores[verified.metric][end] for end in ("value", "low", "high")))),
            file_size(served.bytes),
            f"{served.row_ms['median']:.1f}",
            f"{served.row_ms_together:.1f}",
            file_size(served.peak_memory),
        ]
        for name, served in (
            ("student, transformers", verified.original),
            (f"{verified.format} {verified.precision}, {verified.exported.runtime}", verified.exported),
        )
    ]
    print_table(f"{verified.rows:,} test rows, {verified.threads} threads of the CPU", head, rows)
    difference = signed_span(Interval(*(verified.difference[end] for end in ("value", "low", "high"))))
    Screen().say(
        f"same answer on {verified.same_answers:,} of {verified.rows:,} rows; same tokens of the prompt on"
        f" {verified.same_prompts:,}; export minus student: {difference} {metric_words(verified.row_metric)}"
    )


def refuse_drop(verified: Verified) -> None:
    """Raises UserError for an export that scores less than the student beyond its interval."""
    if verified.dropped:
        metric = verified.metric
        values = {
            "export": f"{verified.format} {verified.precision}",
            "metric": metric,
            "exported": verified.exported.scores[metric]["value"],
            "original": verified.original.scores[metric]["value"],
            "rows": verified.rows,
            "difference": tuple(verified.difference[end] for end in ("value", "low", "high")),
        }
        raise UserError(Problem(Kind.EXPORT_SCORE_DROPPED, values=values))
