"""report: one self-contained HTML page from the files of a run folder. No model, no torch.

The `report.sections_*` modules turn results into typed records, the templates put them into words and draw them. A
section whose files are missing is left out, and the page says which files they are and which stage writes them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.analysis.run_results import INPUTS, Results, read_results
from tutelage.export.gguf_vocabulary import proposed_precision
from tutelage.report import sections_confidence as confidence
from tutelage.report import sections_run
from tutelage.report import sections_scores as scores
from tutelage.report import sections_slices as slices
from tutelage.report import sections_training as training
from tutelage.utils.files import write_text
from tutelage.utils.integrity import check_run, content_hash

if TYPE_CHECKING:
    from tutelage.run.run_folder import RunFolder

NEEDS = {
    "scores": ("evaluate/scores.json", "evaluate"),
    "predictions": ("evaluate/predictions.jsonl", "evaluate"),
    "teacher": ("teach/checkpoints.json", "teach"),
    "schedule": ("distill/*/*/stages.json", "distill"),
    "weights": ("distill/*/*/weights.jsonl", "distill"),
    "rows": ("prepare/rows.jsonl", "prepare"),
    "diagnosis": ("diagnose/slices.json", "diagnose"),
}
"""Part of the page to the files it is made from and the stage that writes them."""


def run_stage(run: RunFolder) -> None:
    """Build the report of a run, unless it is up to date."""
    lang = run.recipe.report.lang
    check_run(run.folder, INPUTS)
    with run.work("report", {**inputs(run.folder), "report.lang": lang}, rebuild_stale=True) as work:
        if work is not None:
            build_report(run.folder, title=run.recipe.name, lang=lang)


def write_in(run: RunFolder, lang: str) -> Path:
    """Write the page in another language than the recipe's beside it, report/index.LANG.html, and return its path.

    It goes when the first page is rebuilt. Raises what `build_report` raises.
    """
    check_run(run.folder, INPUTS)
    return build_report(run.folder, title=run.recipe.name, lang=lang, file=f"index.{lang}.html")


def build_report(run: Path, *, title: str, lang: str = "en", file: str = "index.html") -> Path:
    """Write run/report/FILE from the files of a run folder and return its path.

    title: heading of the page; escaped, like everything that comes from data. lang: a code of translations.LANGUAGES.
    Sections whose files are missing are left out. Raises DamagedArtifactError for a file that is not as it was written,
    UserError for an unknown language.
    """
    from tutelage import __version__
    from tutelage.report.page import render
    from tutelage.report.row_browser import page_script, script_hash

    results = read_results(run)
    page = render(
        lang=lang,
        title=title,
        version=__version__,
        date=time.strftime("%Y-%m-%d"),
        run=results,
        script=page_script(),
        script_hash=script_hash(),
        **_sections(results),
    )
    path = run / "report" / file
    write_text(path, page)
    return path


def _sections(results: Results) -> dict[str, Any]:
    """The record of each section, in the order of the page; a section whose record is None or empty is left out."""
    from tutelage.report.row_browser import browser_data

    run, students = results.folder, training.main_first(results)
    weighted = [student for student in students if student.weights]
    slice_table, calibration = slices.slice_table(results), confidence.calibration(results)
    verdict, cascade = scores.verdict(results), confidence.cascade(results)
    schedules = [training.schedule(results, student) for student in students if student.stages]
    stalled = any(plan.stalls for plan in schedules if plan.model == results.main)
    gguf = proposed_precision(run / "distill" / results.main) if results.main else None
    return {
        "missing": {part: need for part, need in NEEDS.items() if not any(run.glob(need[0]))},
        "no_confidences": bool(results.summary) and not calibration,
        "comparison": (run / "compare" / "index.html").is_file(),
        "verdict": verdict,
        "size": sections_run.size(results),
        "deployed": sections_run.deployed(results),
        "outcomes": slices.outcomes(results),
        "steps": sections_run.next_steps(results, verdict, cascade, stalled=stalled, gguf=gguf),
        "scores": scores.score_table(results),
        "gap": scores.gap_table(results),
        "selection": scores.selection(results),
        "teacher": training.trajectory(results),
        "silver": sections_run.silver_rows(run),
        "schedules": schedules,
        "splits": slices.splits(results),
        "examples": slices.examples(results),
        "slices": slice_table,
        "few_rows": slices.FEW_ROWS,
        "known_slices": [] if slice_table else slices.known_slices(results),
        "weights": [training.weights(results, student) for student in weighted],
        "extremes": next(filter(None, (training.weight_extremes(results, student) for student in weighted)), None),
        "effects": scores.effects(results),
        "learning": training.learning(results),
        "calibration": calibration,
        "cascade": cascade,
        "browser": browser_data(results, run),
        "made": sections_run.provenance(results),
    }


def inputs(folder: Path) -> dict[str, str]:
    """Fingerprint of every file of a run that the page is made from, and the version of tutelage that writes it."""
    from tutelage import __version__

    paths = sorted({path for pattern in INPUTS for path in folder.glob(pattern) if path.parent.name != "report"})
    hashes = {p.relative_to(folder).as_posix(): content_hash(p) for p in paths}
    return {"tutelage": __version__, **hashes}
