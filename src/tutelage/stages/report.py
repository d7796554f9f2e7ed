"""report: one self-contained HTML page out of what a run folder holds. Reads artefacts only: no model, no torch.

One function a section turns results into numbers and places; the templates word and draw them. A section whose files
are not there is left out, and the page says what is missing and which stage writes it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.analysis.run_results import Results, read_results
from tutelage.report import insight, sections

if TYPE_CHECKING:
    from tutelage.run.workspace import Workspace

INPUTS = (
    "recipe.yaml",
    "prepare/rows.jsonl",
    "teach/checkpoints.json",
    "teach/log.jsonl",
    "anchor/log.jsonl",
    "anchor/sample_loss.jsonl",
    "evaluate/*.json*",
    "distill/*/*/stages.json",
    "distill/*/*/weights.jsonl",
    "distill/*/*/log.jsonl",
    "distill/*/*/manifest.json",
    "diagnose/*.json*",
    "*/manifest.json",
    "evaluate/**/manifest.json",
    "compare/index.html",
)
NEEDS = {
    "scores": ("evaluate/scores.json", "evaluate"),
    "predictions": ("evaluate/predictions.jsonl", "evaluate"),
    "teacher": ("teach/checkpoints.json", "teach"),
    "schedule": ("distill/*/*/stages.json", "distill"),
    "weights": ("distill/*/*/weights.jsonl", "distill"),
    "rows": ("prepare/rows.jsonl", "prepare"),
    "diagnosis": ("diagnose/slices.json", "diagnose"),
}
"""What the sections are made of: the files, and the stage that writes them."""


def run(space: Workspace) -> None:
    """Do the stage."""
    lang = space.recipe.report.lang
    with space.work("report", {**inputs(space.folder), "report.lang": lang}, rebuild_stale=True) as work:
        if work is not None:
            build_report(space.folder, title=space.recipe.name, lang=lang)


def build_report(run: Path, *, title: str, lang: str = "en") -> Path:
    """Write run/report/index.html from the artefacts of a run folder and return its path.

    title: heading of the page; escaped, like everything that comes from data. lang: a code of wording.LANGUAGES. Absent
    artefacts leave sections out. Raises DataError if an artefact is there but cannot be read, UserError for an unknown
    language.
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
    path = run / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name("index.html.part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def _sections(results: Results) -> dict[str, Any]:
    """What each section shows, in the order of the page; None or empty: it is left out."""
    from tutelage.report.row_browser import browser_data

    run, students = results.folder, sections.ordered(results)
    weighed = [student for student in students if student.weights]
    slices, calibration = insight.slice_table(results), insight.calibration(results)
    return {
        "missing": {part: need for part, need in NEEDS.items() if not any(run.glob(need[0]))},
        "no_confidences": bool(results.summary) and calibration is None,
        "comparison": (run / "compare" / "index.html").is_file(),
        "verdict": sections.verdict(results),
        "size": sections.size(results),
        "scores": sections.score_table(results),
        "gap": sections.gap_table(results),
        "teacher": sections.trajectory(results),
        "schedules": [sections.schedule(results, student) for student in students if student.stages],
        "splits": insight.splits(results),
        "examples": insight.examples(results),
        "slices": slices,
        "known_slices": [] if slices else insight.known_slices(results),
        "weights": [insight.weights(results, student) for student in weighed],
        "ends": next((ends for student in weighed if (ends := insight.weight_ends(results, student))), None),
        "effects": insight.effects(results),
        "learning": sections.learning(results),
        "calibration": calibration,
        "cascade": insight.cascade(results),
        "browser": browser_data(results, run),
        "made": sections.how_it_was_made(results),
    }


def inputs(folder: Path) -> dict[str, str]:
    """Fingerprint of every file of a run that the page is made from, and the version that words it."""
    from tutelage import __version__

    paths = sorted({path for pattern in INPUTS for path in folder.glob(pattern) if path.parent.name != "report"})
    hashes = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in paths}
    return {"tutelage": __version__, **hashes}
