"""Can distillation pay: how far the teacher is ahead on held-out rows, where, and what weights and schedule can do.

Judged by the validation losses of anchor and T*, of finished stages or of a timing run. Scores on test rows, or before
`evaluate` on validation rows, are shown, and decide nothing but the smallest gap. A reason to stop the run decides all.
Before all that: whether TF-IDF with logistic regression answers as well as the teacher, so that no student is needed,
and what more rows would be worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from tutelage.analysis import worth
from tutelage.analysis.run_results import read_results
from tutelage.analysis.training_dynamics import places_in, training_losses
from tutelage.analysis.worth import SMALL_LEAD, reason_to_stop
from tutelage.data.near_duplicates import distinct_texts
from tutelage.doctor.checkpoint_checks import validation_losses
from tutelage.doctor.checks import Check
from tutelage.doctor.stall import predict_stall, recorded_stalls
from tutelage.errors import DamagedArtifactError, Kind, UserError
from tutelage.errors.wording import first_line
from tutelage.method.methods import find_method
from tutelage.method.risk_split import SMALLEST_GAP, Split, interval, oracle_risk, split_risk
from tutelage.method.weighting import adaptive_weight
from tutelage.recipe.schema import Recipe, row_metric
from tutelage.records import Example, Interval
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.tasks.base import BaseTask
from tutelage.tasks.learning_curve import Curve, learning_curve
from tutelage.tasks.tfidf import MOST_FEATURES, TfidfAnswers, suits, tfidf_answers
from tutelage.training import recorded_losses as losses
from tutelage.training.run_models import RunModels
from tutelage.utils.bootstrap import wilson_interval
from tutelage.utils.spool import Joined

CLEAR_SCORE_GAP = 0.02
"""Lead of the teacher in score that is worth trying where its loss is not better."""
FEW_ROWS = 200
"""Validation rows below which an interval that holds 0 asks for more rows."""
MEMORISED_NATS = 0.01
"""A median training loss below which the ratio of losses shows who memorised more."""
UNIFORM_SPREAD = 0.1
"""Distance of the quartiles of the weights below which adaptive weights are nearly constant."""
BINS = 10


@dataclass(frozen=True)
class PairedLosses:
    """Losses of anchor and teacher on the same rows, in nats per token."""

    anchor: np.ndarray
    teacher: np.ndarray
    source: str
    """Where they come from, for people."""
    training: tuple[np.ndarray, np.ndarray] | None = None
    """The same on training rows, if `*-aw` makes its weights of them."""
    timing_run: bool = False
    """Whether they are those of a few steps of training only."""


class Scores(NamedTuple):
    """Scores that the run has measured."""

    metric: str | None
    """Of anchor and teacher: the task's on test rows, the mean of the rows' own scores on validation rows."""
    anchor: float
    teacher: float
    oracle: float | None
    """Mean of the better score of the two, row by row."""
    split: str


def check_payoff(models: RunModels, timed: PairedLosses | None) -> list[Check]:
    """Headroom, SFS and TFS, weights, stalls, and the verdict; by finished stages, else by the timing run."""
    pair, reason = _finished(models)
    pair = pair or timed
    if pair is None:
        return [Check("payoff", "payoff", "skipped", Kind.LOSSES_MISSING, details=reason)]
    stall = recorded_stalls(models) or (None if pair.timing_run else predict_stall(models))
    return _judged(models, pair, [stall] if stall else [])


def judge_losses(models: RunModels) -> list[Check]:
    """The checks of `check_payoff` that read finished stages and load no model; none without their losses."""
    pair, _ = _finished(models)
    return _judged(models, pair, []) if pair else []


def _judged(models: RunModels, pair: PairedLosses, stalls: list[Check]) -> list[Check]:
    scores = None if pair.timing_run else _scores(models)
    checks = [_headroom(pair, scores), _subdomains(pair)]
    # After a few steps the two models are still alike: weights and stalls are judged once both are trained.
    if not pair.timing_run:
        checks.append(_weights(pair, models.run.recipe))
    checks += stalls
    reason = None if pair.timing_run else reason_to_stop(models.run)
    if reason:
        return [*checks, Check("verdict", "payoff", "look", reason.kind, problems=(reason,))]
    return [*checks, verdict(pair, models.run.recipe, scores, checks)]


def _finished(models: RunModels) -> tuple[PairedLosses | None, dict[str, Any]]:
    """Validation losses of anchor and T*, or why there are none."""
    folder = models.run.folder
    if not ((folder / "teach" / "checkpoints.json").is_file() and (folder / "anchor" / "sample_loss.jsonl").is_file()):
        return None, {"missing": "anchor" if (folder / "teach").is_dir() else "both"}
    try:
        stage_inputs.upstream(models.run, "teach", "anchor")
        best = models.run.teacher_checkpoints["best"]
        anchor = losses.of_anchor(models.run, "validation", models.encoded("validation"))
        teacher = validation_losses(models, [best])[best]
    except (UserError, OSError) as error:
        return None, {"missing": None, "reason": first_line(error)}
    source = f"{len(anchor):,} validation rows, anchor against {best}"
    return PairedLosses(anchor, teacher, source, _training(models, best)), {}


def _training(models: RunModels, best: str) -> tuple[np.ndarray, np.ndarray] | None:
    path = models.run.folder / "cache" / best / "sample_loss.jsonl"
    if not path.is_file():
        return None
    teacher = training_losses(path)
    anchor = training_losses(models.run.folder / "anchor" / "sample_loss.jsonl")
    places, there = places_in(teacher.ids, anchor.ids)
    return anchor.nll[there], teacher.nll[places[there]]


def _scores(models: RunModels) -> Scores | None:
    results = read_results(models.run.folder)
    anchor, teacher = (results.score(name) for name in ("anchor", "teacher"))
    if anchor is None or teacher is None:
        gain = worth.gain(models.run.folder)
        metric = row_metric(models.run.task.metric)
        return gain and Scores(metric, gain.anchor, gain.teacher, gain.oracle, "validation")
    ids, (by_anchor, by_teacher) = results.paired("score", "anchor", "teacher")
    oracle = float(np.maximum(by_anchor, by_teacher).mean()) if ids else None
    return Scores(results.scores.get("metric"), anchor.value, teacher.value, oracle, "test")


# --- is a language model needed at all ---


def check_baseline(
    run: RunFolder, task: BaseTask, examples: Mapping[str, Sequence[Example]], unlabelled: int = 0
) -> list[Check]:
    """What TF-IDF with logistic regression scores on the validation rows, and whether teacher and anchor exceed it; and
    what more rows may bring.

    examples: by split; unlabelled: number of rows without gold. No baseline for free answers, or without rows.
    """
    training, validation = examples["train"], examples["validation"]
    if not (training and validation):
        return []
    checks, curve = [], None
    if task.closed and not suits(task, training):
        checks.append(Check("baseline", "payoff", "skipped", Kind.BASELINE_UNSUITABLE))
    elif task.closed:
        texts = distinct_texts(Joined(training, validation))
        found = tfidf_answers(training, validation, task, texts)
        checks.append(_judged_baseline(run, task, training, validation, found))
        curve = learning_curve(training, validation, task, texts, found)
    gain = worth.gain(run.folder) if unlabelled and _are_fresh(run, "teach", "anchor") else None
    more = check_more_rows(row_metric(task.metric), curve, gain, len(training), unlabelled)
    return [*checks, more] if more else checks


def _judged_baseline(
    run: RunFolder, task: BaseTask, training: Sequence[Example], validation: Sequence[Example], found: TfidfAnswers
) -> Check:
    score = task.metrics(found.answers, validation)[task.metric]
    guess = task.baseline((example.answer for example in training), validation).score
    teacher, anchor = _validation_scores(run, task.metric)
    numbers = {
        "metric": task.metric,
        "score": score.as_record(),
        "rows": len(validation),
        "guess": guess,
        "training_rows": found.training_rows,
        "features": found.features,
        "teacher": teacher,
        "anchor": anchor,
    }
    details = {"given": len(training), "most_features": MOST_FEATURES}
    enough = teacher is not None and score.high >= teacher and not worth.learned_nothing(score, guess)
    status, kind = ("look", Kind.BASELINE_ENOUGH) if enough else ("passed", Kind.OK)
    return Check("baseline", "payoff", status, kind, numbers, details=details)


def check_more_rows(
    metric: str | None, curve: Curve | None, gain: worth.Gain | None, gold: int, unlabelled: int
) -> Check | None:
    """What more rows with gold, and the rows without, may bring; None if nothing can be said.

    metric: what the mean of the rows' own scores is called. gain: of T* over the anchor, as far as both are trained.
    """
    numbers: dict[str, Any] = {"metric": metric, "curve": curve and asdict(curve), "unlabelled": None}
    if gain is not None and unlabelled:
        lead = gain.score.as_record()
        numbers["unlabelled"] = {"rows": unlabelled, "for_each_gold_row": unlabelled / gold, "lead": lead}
    if curve is None and numbers["unlabelled"] is None:
        return None
    return Check("more_rows", "payoff", "passed", numbers=numbers)


def _validation_scores(run: RunFolder, metric: str) -> tuple[float | None, float | None]:
    """A metric of T* and anchor on the validation rows, as far as up-to-date stages have recorded it.

    Of the anchor there are the rows' own scores only, which give no metric that is not their mean.
    """
    skill = worth.teacher_skill(run.folder)
    if skill is None or not _are_fresh(run, "teach"):
        return None, None
    pair = worth.gain(run.folder) if row_metric(metric) == metric and _are_fresh(run, "anchor") else None
    return skill.score.value, pair and pair.anchor


def _are_fresh(run: RunFolder, *stages: str) -> bool:
    try:
        stage_inputs.upstream(run, *stages)
    except DamagedArtifactError:
        raise
    except (UserError, OSError):  # other checks say what is missing
        return False
    return True


# --- how far the teacher is ahead, and where ---


def _headroom(pair: PairedLosses, scores: Scores | None) -> Check:
    old_keys = ("metric", "anchor", "teacher", "gate_of_rows", "split")
    numbers = {
        "anchor_nll": float(pair.anchor.mean()),
        "teacher_nll": float(pair.teacher.mean()),
        "gate_nll": oracle_risk(pair.anchor, pair.teacher),
        "rows": len(pair.anchor),
        "score": dict(zip(old_keys, scores, strict=True)) if scores else None,
    }
    return Check("headroom", "payoff", "passed", numbers=numbers, details={"source": pair.source})


def _subdomains(pair: PairedLosses) -> Check:
    split, bounds = split_risk(pair.anchor, pair.teacher), interval(pair.anchor, pair.teacher)
    mass = wilson_interval(round(split.sfs_mass * split.rows), split.rows)
    numbers = {
        "sfs_mass": split.sfs_mass,
        "tfs_mass": split.tfs_mass,
        "sfs_mass_low": mass.low,
        "sfs_mass_high": mass.high,
        "advantage": bounds.advantage._asdict(),
        "deficit": bounds.deficit._asdict(),
        "difference": bounds.difference._asdict(),
    }
    return Check("subdomains", "payoff", "passed", numbers=numbers)


# --- weights ---


def histogram(weights: np.ndarray) -> tuple[list[int], float]:
    """Rows in ten bins of [0, 1], and their entropy as a fraction of the largest: 0 if all are in one bin."""
    counts = np.histogram(weights, BINS, (0.0, 1.0))[0]
    fractions = counts[counts > 0] / counts.sum()
    return counts.tolist(), float(-(fractions * np.log(fractions)).sum() / np.log(BINS)) + 0.0


def _weights(pair: PairedLosses, recipe: Recipe) -> Check:
    """Whether adaptive weights vary, by held-out losses; and whether training losses can give them."""
    methods = {name: find_method(name) for name in recipe.distill.methods}
    adaptive = [name for name, method in methods.items() if method.needs_anchor or method.needs_cross_fit]
    weights = adaptive_weight(pair.anchor, pair.teacher)
    counts, entropy = histogram(weights)
    low, high = (float(value) for value in np.quantile(weights, [0.25, 0.75]))
    numbers: dict[str, Any] = {"validation": {"histogram": counts, "entropy": entropy, "quartiles": [low, high]}}
    memorised = False
    if pair.training is not None:
        counts, train_entropy = histogram(adaptive_weight(*pair.training))
        medians = [float(np.median(nll)) for nll in pair.training]
        numbers["training"] = {"histogram": counts, "entropy": train_entropy, "median_nll": medians}
        memorised = max(medians) < MEMORISED_NATS
    details: dict[str, Any] = {"adaptive": bool(adaptive)}
    if adaptive and high - low < UNIFORM_SPREAD:
        change = f"distill.methods=[{_without_weights(adaptive[0])}]"
        return Check("weights", "payoff", "look", Kind.WEIGHTS_UNIFORM, numbers, change, details=details)
    in_sample = [name for name in adaptive if methods[name].needs_anchor]
    if in_sample and memorised:
        change = f"distill.methods=[{in_sample[0].split('-aw')[0]}-aw-cf]"
        details["method"] = in_sample[0]
        return Check("weights", "payoff", "look", Kind.LOSSES_MEMORISED, numbers, change, details=details)
    return Check("weights", "payoff", "passed", numbers=numbers, details=details)


def _without_weights(method: str) -> str:
    return method.replace("-aw-cf", "").replace("-aw", "")


# --- verdict ---


def verdict(pair: PairedLosses, recipe: Recipe, scores: Scores | None, checks: Sequence[Check]) -> Check:
    """Distil, and by which method; or just fine-tune; or get more rows. checks: what the others have found."""
    split, lead = split_risk(pair.anchor, pair.teacher), interval(pair.anchor, pair.teacher).difference
    gap = 0.0 if scores is None else scores.teacher - scores.anchor
    fraction = lead.value / max(split.risk_student, 1e-12)
    numbers = {
        "lead_nats": lead._asdict(),
        "lead_share": fraction,
        "score_gap": scores and gap,
        "timing_run": pair.timing_run,
    }
    details = {"timing_run": pair.timing_run, "rows": split.rows, "metric": scores and scores.metric}

    def result(status: str, kind: Kind, change: str | None, **more: Any) -> Check:
        return Check("verdict", "payoff", status, kind, numbers, change, details=details | more)

    if lead.low <= 0 <= lead.high and split.rows < FEW_ROWS:
        return result("look", Kind.LEAD_UNCERTAIN, "data.validation=MORE_ROWS")
    small = lead.low <= 0 or fraction < SMALL_LEAD
    if small and gap >= CLEAR_SCORE_GAP:
        return result("look", Kind.LEAD_IN_SCORE_ONLY, "distill.methods=[sft, scd-aw-cf]")
    distils = any(find_method(name).schedule != "none" for name in recipe.distill.methods)
    if small or (scores is not None and gap < SMALLEST_GAP):
        change = "distill.methods=[sft]" if distils else None
        return result("look" if distils else "passed", Kind.LEAD_TOO_SMALL, change, small_loss=small)
    stall = any(check.name == "stall" and check.status == "look" for check in checks)
    method = "scd-aw" if pair.timing_run else _method(split, lead, checks)
    more = {"method": method, "advance": stall, "sfs_mass": split.sfs_mass}
    if distils:
        return result("passed", Kind.OK, None, **more)
    return result("look", Kind.LEAD_NOT_USED, f"distill.methods=[{method}]", **more)


def _method(split: Split, lead: Interval, checks: Sequence[Check]) -> str:
    """The method to distil with, by the advantage of the student and by what the check of the weights suggests."""
    for check in checks:
        if check.name == "weights" and check.status == "look":
            return (check.change or "").partition("[")[2].rstrip("]")
    return "scd-aw" if split.advantage > SMALL_LEAD * split.deficit else "scd"
