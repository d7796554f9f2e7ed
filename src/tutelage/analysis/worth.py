"""Whether a run is worth going on with: what the teacher learned, and what is left for the student to gain from it.

Both are judged on the validation rows, by files that `teach` and `anchor` leave; once there are test rows with answers,
every model is judged on these. Files of earlier versions lack some numbers; nothing is judged then. docs/checks.md
explains the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tutelage.analysis.run_results import Results
from tutelage.errors import Kind, Problem, StaleArtifactError
from tutelage.method.methods import find_method
from tutelage.method.risk_split import interval, score_lead
from tutelage.recipe.schema import Task, row_metric
from tutelage.records import Example, Interval
from tutelage.run import stage_inputs
from tutelage.run.artifacts import TeacherCheckpoints
from tutelage.run.run_folder import RunFolder
from tutelage.tasks import make_task
from tutelage.utils.files import read_json, read_jsonl
from tutelage.utils.format import metric_words
from tutelage.utils.integrity import present

LITTLE = 0.25
"""A teacher has learned nothing if its score's interval includes the baseline and ends below baseline + this fraction
of (1 - baseline)."""
HALF = 0.5
"""The same where the score itself does not exceed the baseline: only a very wide interval, of few rows, excuses it."""
MANY_UNREADABLE = 0.2
"""At or above this fraction of invalid answers no score counts in favour of a model."""
SMALL_GAIN, SMALLEST_GAIN = 0.05, 0.02
"""A gain in score that an interval has to rule out; the second where the teacher is ahead in loss."""
SMALL_LEAD = 0.1
"""Fraction of the anchor's loss by which a teacher must be ahead to be worth following."""
SMALLEST_LEAD = 0.01
"""A lead in nats per token that no score shows."""


def learned_nothing(score: Interval, baseline: float) -> bool:
    """Whether a score is 0, or not above the baseline as far as its interval can say.

    score: higher is better, in [0, 1]. An interval that holds the baseline may do so because the rows are few: it only
    counts if it also rules out a score that is clearly above.
    """
    if score.value <= 0:
        return True
    clearly_above = baseline + (LITTLE if score.value > baseline else HALF) * (1 - baseline)
    return score.low <= baseline and score.high < clearly_above


@dataclass(frozen=True, slots=True)
class Skill:
    """A model's score, next to that of answers that read no prompt."""

    score: Interval
    baseline: float
    source: Literal["majority", "chance"]
    rows: int
    unreadable: float
    """Fraction of the rows whose answer could not be parsed."""

    @property
    def nothing(self) -> bool:
        """Whether the model has learned nothing, as far as the rows can say."""
        return learned_nothing(self.score, self.baseline)

    @property
    def many_unreadable(self) -> bool:
        """Whether so many answers are invalid that no score speaks for the model."""
        return self.unreadable >= MANY_UNREADABLE

    @property
    def surely_something(self) -> bool:
        """Whether the interval lies above the baseline, and answers can be read."""
        return self.score.low > self.baseline and not self.many_unreadable


def teacher_skill(folder: Path) -> Skill | None:
    """T* of a run folder on the validation rows; None if that was not recorded."""
    path = folder / "teach" / "checkpoints.json"
    taught: TeacherCheckpoints | dict[str, Any] = read_json(path) if present(path) else {}
    best = next((c for c in taught.get("checkpoints", ()) if c["name"] == taught["best"]), {})
    if "baseline" not in taught or "low" not in best:
        return None
    baseline, score = taught["baseline"], Interval(best["score"], best["low"], best["high"])
    return Skill(score, baseline["score"], baseline["source"], baseline["rows"], best["unreadable"])


def skill_on_test(results: Results, model: str) -> Skill | None:
    """A model of a run on the test rows; None without its answers, or if task and rows cannot be read."""
    lines, score = results.predictions.get(model, {}), results.score(model)
    path = results.folder / "prepare" / "data.json"
    if not (lines and results.rows and score and results.training_answers and present(path)):
        return None
    prepared, names = read_json(path), {field.name for field in fields(Example)}
    try:
        rows = [Example(**{key: row[key] for key in names & row.keys()}) for row in results.rows.values()]
        task = make_task(Task(**results.recipe["task"]), prepared["labels"], choice=prepared.get("choice", False))
        baseline = task.baseline(results.training_answers, rows)
    except (KeyError, TypeError, ValueError):  # a run of another version
        return None
    unreadable = sum(line["prediction"] is None for line in lines.values()) / len(lines)
    return Skill(score, *baseline, rows=len(rows), unreadable=unreadable)


@dataclass(frozen=True, slots=True)
class Gain:
    """T* minus the anchor on the validation rows, paired by row."""

    anchor: float
    """Mean of the rows' own scores."""
    teacher: float
    oracle: float
    """Mean of the better score of the two, row by row."""
    score: Interval
    """teacher - anchor."""
    loss: Interval
    """Loss of the anchor minus the teacher's: above 0 the teacher is ahead. Nats per token."""
    anchor_loss: float
    rows: int

    @property
    def nothing(self) -> bool:
        """Whether the anchor equals the teacher, as far as the rows can say."""
        ahead_in_loss = self.loss.value >= max(SMALL_LEAD * self.anchor_loss, SMALLEST_LEAD)
        return self.score.low <= 0 and self.score.high < (SMALLEST_GAIN if ahead_in_loss else SMALL_GAIN)


def gain(folder: Path) -> Gain | None:
    """What the student of a run folder can gain from T*; None if the scores of both were not recorded."""
    path = folder / "teach" / "checkpoints.json"
    if not present(path):
        return None
    teacher = _validation_rows(folder / "teach" / "validation" / f"{read_json(path)['best']}.jsonl")
    anchor = _validation_rows(folder / "anchor" / "sample_loss.jsonl")
    ids = sorted(teacher.keys() & anchor.keys())
    if not ids:
        return None
    scores, losses = (
        [np.array([rows[id][key] for id in ids]) for rows in (teacher, anchor)] for key in ("score", "nll")
    )
    return Gain(
        anchor=float(scores[1].mean()),
        teacher=float(scores[0].mean()),
        oracle=float(np.maximum(*scores).mean()),
        score=score_lead(*scores),
        loss=interval(losses[1], losses[0]).difference,
        anchor_loss=float(losses[1].mean()),
        rows=len(ids),
    )


def _validation_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of validation rows that have a score, by id."""
    lines = read_jsonl(path) if present(path) else ()
    return {line["id"]: line for line in lines if line["split"] == "validation" and "score" in line}


# --- whether to stop ---


def reason_to_stop(run: RunFolder, *, by_anchor: bool = True) -> Problem | None:
    """What finished, up-to-date stages say against distilling; None if nothing does, or no method has a teacher.

    by_anchor: whether to ask the anchor, too.
    """
    methods = [find_method(name) for name in run.recipe.distill.methods]
    skill = teacher_skill(run.folder)
    if skill is None or all(method.schedule == "none" and method.answers == "gold" for method in methods):
        return None
    metric = run.task.metric
    if skill.nothing:
        kind, found, names, stages = Kind.TEACHER_LEARNED_NOTHING, skill, ("score", "baseline", "source"), ["teach"]
    else:
        left = gain(run.folder) if by_anchor else None
        if left is None or not left.nothing:
            return None
        kind, found, names = Kind.NOTHING_TO_GAIN, left, ("anchor", "teacher", "score", "loss")
        metric, stages = row_metric(metric), ["teach", "anchor"]
    if not _are_fresh(run, stages):
        return None
    numbers = {name: getattr(found, name) for name in (*names, "rows")}
    about = {"metric": metric_words(metric), "folder": str(run.folder / "anchor")}
    return Problem(kind, values=about | numbers | _causes(run, skill))


def _are_fresh(run: RunFolder, stages: Sequence[str]) -> bool:
    try:
        stage_inputs.upstream(run, *stages)
    except StaleArtifactError:
        return False
    return True


def _causes(run: RunFolder, skill: Skill) -> dict[str, Any]:
    """What of the recipe most often keeps a teacher from learning."""
    recipe, given = run.recipe, run.recipe.trainer_arguments("teach")
    return {
        "template": recipe.data.template,
        "own": recipe.teach.checkpoints is not None,
        "learning_rate": given.get("learning_rate", 5e-5),
        "epochs": given.get("num_train_epochs", 3),
        "longest": max(lengths["longest_answer"] for lengths in run.prepared["lengths"].values()),
        "generated": run.prepared["max_new_tokens"],
        "unreadable": skill.unreadable,
    }
