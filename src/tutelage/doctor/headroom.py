"""Will distillation pay: how far the teacher is ahead on rows nobody has learned, where, and what weights and schedule
make of it.

Judged on validation losses of anchor and T*, from stages that are done or from a short probe. Test rows are read only
for what the run has already scored there, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.analysis.run_results import read_results
from tutelage.doctor.checkpoint_checks import validation_losses
from tutelage.doctor.checks import Check
from tutelage.doctor.stall import foresee_stall
from tutelage.errors import UserError
from tutelage.method.methods import find_method
from tutelage.method.risk_split import SMALLEST_GAP, interval, perfect_gate, split_risk
from tutelage.method.weighting import adaptive_weight
from tutelage.recipe.schema import Recipe
from tutelage.records import SampleLoss
from tutelage.run import stage_inputs
from tutelage.training import recorded_losses as losses
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json, read_records

LITTLE_LEAD = 0.1
"""Share of the anchor's loss by which a teacher must be ahead to be worth following."""
WORTH_A_TRY = 0.02
"""Lead of the teacher in score that is worth a try where its loss is no better."""
FEW_ROWS = 200
"""Validation rows below which an interval that holds 0 asks for more rows rather than for another plan."""
MEMORISED_NATS = 0.01
"""A median training loss below which ratios of losses say who memorised better."""
SPREAD = 0.1
"""Distance of the quartiles of the weights below which adaptive weights are a constant in disguise."""
BINS = 10


@dataclass(frozen=True)
class Pair:
    """Losses of anchor and teacher on the same rows, in nats a token."""

    anchor: np.ndarray
    teacher: np.ndarray
    source: str
    """Where they come from, in words."""
    training: tuple[np.ndarray, np.ndarray] | None = None
    """The same on training rows, where the weights of `*-aw` are made of them."""
    probed: bool = False


def check_payoff(models: RunModels, probed: Pair | None) -> list[Check]:
    """Headroom, SFS and TFS, weights, stalls, and the verdict; from finished stages where there are some, else from the
    probe."""
    pair, why = _finished(models)
    pair = pair or probed
    if pair is None:
        text = f"{why}. `tutelage anchor RECIPE` after `teach` tells, or a first sight: --probe 200"
        return [Check("payoff", "payoff", "skipped", text)]
    score = _score_gap(models) if not pair.probed else None
    # After a few steps the two models are still much alike: weights are judged once both are trained.
    found = [_headroom(pair, score), _subdomains(pair), None if pair.probed else _weights(pair, models.run.recipe)]
    found.append(_stalls(models) or (None if pair.probed else foresee_stall(models)))
    checks = [check for check in found if check]
    return [*checks, verdict(pair, models.run.recipe, score, checks)]


def _finished(models: RunModels) -> tuple[Pair | None, str]:
    """Validation losses of anchor and T*, or why there are none."""
    folder = models.run.folder
    if not ((folder / "teach" / "checkpoints.json").is_file() and (folder / "anchor" / "sample_loss.jsonl").is_file()):
        return None, "neither teacher nor anchor has been trained" if not (
            folder / "teach"
        ).is_dir() else "there is no anchor yet"
    try:
        stage_inputs.upstream(models.run, "teach", "anchor")
        best = read_json(folder / "teach" / "checkpoints.json")["best"]
        anchor = losses.of_anchor(models.run, "validation", models.encoded("validation"))
        teacher = validation_losses(models, [best])[best]
        return Pair(
            anchor, teacher, f"{len(anchor):,} validation rows, anchor against {best}", _training(models, best)
        ), ""
    except (UserError, OSError) as error:
        return None, f"what is there cannot be judged ({str(error).splitlines()[0]})"


def _training(models: RunModels, best: str) -> tuple[np.ndarray, np.ndarray] | None:
    path = models.run.folder / "cache" / best / "sample_loss.jsonl"
    if not path.is_file():
        return None
    teacher = {loss.id: loss.nll for loss in read_records(path, SampleLoss)}
    rows = [
        row
        for row in read_records(models.run.folder / "anchor" / "sample_loss.jsonl", SampleLoss)
        if row.id in teacher and row.split == "train"
    ]
    return np.array([row.nll for row in rows]), np.array([teacher[row.id] for row in rows])


def _score_gap(models: RunModels) -> dict[str, Any] | None:
    """What the run has scored already: anchor, teacher, and the better of both row by row."""
    results = read_results(models.run.folder)
    scores = [results.score(name) for name in ("anchor", "teacher")]
    if None in scores:
        return None
    ids, (anchor, teacher) = results.paired("score", "anchor", "teacher")
    gate = float(np.maximum(anchor, teacher).mean()) if ids else None
    return {
        "metric": results.scores.get("metric"),
        "anchor": scores[0].value,
        "teacher": scores[1].value,
        "gate_of_rows": gate,
    }


def _headroom(pair: Pair, score: dict[str, Any] | None) -> Check:
    anchor, teacher = float(pair.anchor.mean()), float(pair.teacher.mean())
    gate = perfect_gate(pair.anchor, pair.teacher)
    numbers = {"anchor_nll": anchor, "teacher_nll": teacher, "gate_nll": gate, "rows": len(pair.anchor), "score": score}
    text = (
        f"{pair.source}: loss {anchor:.3f} and {teacher:.3f} nats; a perfect gate, which asks the better of the two on every row,"
        f" has {gate:.3f}"
    )
    if score and score["gate_of_rows"] is not None:
        text += (
            f". In {score['metric']} on test rows: {score['anchor']:.3f} and {score['teacher']:.3f}, a perfect gate"
            f" {score['gate_of_rows']:.3f} (mean score of rows)"
        )
    return Check("headroom", "payoff", "passed", text, numbers)


def _subdomains(pair: Pair) -> Check:
    split, sure = split_risk(pair.anchor, pair.teacher), interval(pair.anchor, pair.teacher)
    half = 1.96 * float(np.sqrt(split.sfs_mass * split.tfs_mass / split.rows))
    numbers = {
        "sfs_mass": split.sfs_mass, "tfs_mass": split.tfs_mass,
        "sfs_mass_low": max(0.0, split.sfs_mass - half), "sfs_mass_high": min(1.0, split.sfs_mass + half),
        "advantage": sure.advantage._asdict(), "deficit": sure.deficit._asdict(),
        "difference": sure.difference._asdict(),
    }  # fmt: skip
    text = (
        f"the fine-tuned student is better on {split.sfs_mass:.0%} of the rows (SFS, +-{100 * half:.0f} points), which wins it"
        f" {_nats(sure.advantage)}; on the other {split.tfs_mass:.0%} (TFS) it loses {_nats(sure.deficit)}"
    )
    return Check("SFS and TFS", "payoff", "passed", text, numbers)


def _nats(value: Any) -> str:
    return f"{value.value:.3f} nats ({value.low:.3f} to {value.high:.3f})"


def histogram(weights: np.ndarray) -> tuple[list[int], float]:
    """Rows in ten bins of [0, 1], and their entropy as a share of the largest: 0 where all weights are in one bin."""
    counts = np.histogram(weights, BINS, (0.0, 1.0))[0]
    shares = counts[counts > 0] / counts.sum()
    return counts.tolist(), float(-(shares * np.log(shares)).sum() / np.log(BINS)) + 0.0


def _weights(pair: Pair, recipe: Recipe) -> Check | None:
    """Whether adaptive weighting has anything to do, by losses out of sample; and whether training losses can show
    it."""
    adaptive = [
        name for name in recipe.distill.methods if find_method(name).needs_anchor or find_method(name).needs_cross_fit
    ]
    counts, entropy = histogram(fair := adaptive_weight(pair.anchor, pair.teacher))
    low, high = np.quantile(fair, [0.25, 0.75])
    numbers: dict[str, Any] = {
        "validation": {"histogram": counts, "entropy": entropy, "quartiles": [float(low), float(high)]}
    }
    if pair.training is not None:
        made = adaptive_weight(*pair.training)
        counts, train_entropy = histogram(made)
        medians = [float(np.median(nll)) for nll in pair.training]
        numbers["training"] = {"histogram": counts, "entropy": train_entropy, "median_nll": medians}
    listed = f"quartiles {low:.2f} and {high:.2f}, entropy {entropy:.2f} of 1"
    if not adaptive:
        return Check("weights", "payoff", "passed", f"no method here weighs rows; weights would have {listed}", numbers)
    if high - low < SPREAD:
        text = f"adaptive weights are nearly the same on all rows ({listed}), so AW has nothing to do: a constant weight does the same"
        return Check("weights", "payoff", "look", text, numbers, f"distill.methods=[{_constant(adaptive[0])}]")
    in_sample = [name for name in adaptive if find_method(name).needs_anchor and not recipe.distill.weighting.calibrate]
    if in_sample and pair.training is not None and max(numbers["training"]["median_nll"]) < MEMORISED_NATS:
        median = " and ".join(f"{value:.1g}" for value in numbers["training"]["median_nll"])
        text = (
            f"anchor and teacher know their training rows by heart (median loss {median} nats), so weights of {in_sample[0]} say"
            " who memorised better, not who is right. Losses out of sample tell: *-aw-cf, or distill.weighting.calibrate=true;"
            " cheaper, anchor.keep=loss takes the anchor before it knew them"
        )
        return Check(
            "weights", "payoff", "look", text, numbers, f"distill.methods=[{in_sample[0].split('-aw')[0]}-aw-cf]"
        )
    return Check("weights", "payoff", "passed", f"adaptive weights tell rows apart: {listed} on validation", numbers)


def _constant(method: str) -> str:
    return method.replace("-aw-cf", "").replace("-aw", "")


def _stalls(models: RunModels) -> Check | None:
    """Stages of the run that stayed with a checkpoint the student had not reached."""
    records = [
        (student.name, stage) for student in read_results(models.run.folder).students for stage in student.stages
    ]
    looked = [(name, stage) for name, stage in records if stage.get("candidates")]
    if not looked:
        return None
    stalled = [(name, stage) for name, stage in looked if stage.get("stall")]
    path = {name: [stage["chosen"] for other, stage in looked if other == name] for name, _ in looked}
    numbers = {"stages": len(looked), "stalled": len(stalled), "chosen": path}
    if stalled:
        name, stage = stalled[0]
        text = f"{len(stalled)} of {len(looked)} stages stalled; {name}, stage {stage['stage']}: {stage['stall']}"
        return Check("stall", "payoff", "look", text, numbers, "distill.schedule.advance=true")
    return Check("stall", "payoff", "passed", f"the schedule moved on in all {len(looked)} stages", numbers)


def verdict(pair: Pair, recipe: Recipe, score: dict[str, Any] | None, checks: Sequence[Check]) -> Check:
    """One sentence: distil, and with what; or just fine-tune; or get more rows. checks: what the others have found."""
    split, lead = split_risk(pair.anchor, pair.teacher), interval(pair.anchor, pair.teacher).difference
    gap = 0.0 if score is None else score["teacher"] - score["anchor"]
    share = lead.value / max(split.risk_student, 1e-12)
    numbers = {"lead_nats": lead._asdict(), "lead_share": share, "score_gap": score and gap, "probed": pair.probed}
    first = "By a first sight of a few steps: " if pair.probed else ""
    where = "ahead" if lead.value > 0 else "behind"
    ahead = f"the teacher is {where} by {abs(lead.value):.3f} nats (95 %: {lead.low:+.3f} to {lead.high:+.3f})"
    taught = any(find_method(name).schedule != "none" for name in recipe.distill.methods)
    if lead.low <= 0 <= lead.high and split.rows < FEW_ROWS:
        text = f"{first}Get more rows: on {split.rows} validation rows {ahead}, which may as well be none."
        return Check("verdict", "payoff", "look", text, numbers, "data.validation=MORE_ROWS")
    little = lead.low <= 0 or share < LITTLE_LEAD
    if little and gap >= WORTH_A_TRY:
        text = f"Try it beside plain fine-tuning, expecting little: {ahead}, though by {gap:.3f} ahead in {score['metric']}."
        return Check("verdict", "payoff", "look", text, numbers, "distill.methods=[sft, scd-aw-cf]")
    if little or (score is not None and gap < SMALLEST_GAP):
        reason = f"{ahead}, which" if little else f"in {score['metric']} the teacher is ahead by {gap:.3f} only, which"
        text = f"{first}Just fine-tune the student: {reason} leaves distillation next to nothing to add."
        status, change = ("look", "distill.methods=[sft]") if taught else ("passed", None)
        return Check("verdict", "payoff", status, text, numbers, change)
    looks = {check.name: check.change or "" for check in checks if check.status == "look"}
    plan = "scd-aw" if split.advantage > LITTLE_LEAD * split.deficit else "scd"
    if "weights" in looks:
        plan = looks["weights"].partition("[")[2].rstrip("]")
    keep = "constant weights will do"
    if pair.probed:
        plan, keep = "scd-aw", "whether its weights have something to do shows once both models are trained"
    elif "-aw" in plan:
        keep = f"adaptive weights keep what the student knows better ({split.sfs_mass:.0%} of the rows)"
    text = f"{first}Distil, with {plan}{' and schedule.advance' if 'stall' in looks else ''}: {ahead}; {keep}."
    status, change = ("passed", None) if taught else ("look", f"distill.methods=[{plan}]")
    return Check("verdict", "payoff", status, text, numbers, change)
