"""Texts of the checks of trajectory, payoff and budget (`wording.py` has the others)."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.errors import Kind
from tutelage.errors.wording import Text, Values
from tutelage.recipe.schema import row_metric
from tutelage.utils.console import rough_duration
from tutelage.utils.format import metric_words


def in_bytes(count: float) -> str:
    """1.2 GB, 34.5 MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


# --- trajectory and payoff ---


def _baseline(v: Values) -> str:
    score, metric = v["score"], metric_words(v["metric"])
    sampled = f" of {v['given']:,}" if v["training_rows"] < v["given"] else ""
    cut = f" and the {v['features']:,} most frequent features" if v["features"] == v["most_features"] else ""
    text = (
        f"TF-IDF with logistic regression, on {v['training_rows']:,}{sampled} training rows{cut}: {metric}"
        f" {score['value']:.3f} (95 %: {score['low']:.3f} to {score['high']:.3f}) on {v['rows']:,} validation rows;"
        f" answers that read no prompt {v['guess']:.3f}"
    )
    models = {"teacher": v["teacher"], "plain fine-tuning": v["anchor"]}
    known = [f"{name} {value:.3f} ({_place(value, score)})" for name, value in models.items() if value is not None]
    return f"{text}; {', '.join(known)}" if known else text


def _place(value: float, interval: Values) -> str:
    """Where a score lies."""
    if value > interval["high"]:
        return "above that interval"
    return "below that interval" if value < interval["low"] else "inside that interval"


def _more_rows(v: Values) -> str:
    metric, lines = metric_words(v["metric"]), []
    if curve := v["curve"]:
        gain, points = curve["doubling"], zip(curve["rows"], curve["scores"], strict=True)
        listed = ", ".join(f"{score:.3f} with {rows:,}" for rows, score in points)
        lines.append(
            f"twice as many rows with gold would add {gain['low']:+.3f} to {gain['high']:+.3f} {metric} to TF-IDF with"
            f" logistic regression ({listed}): a curve of that baseline, not of the student"
        )
    if own := v["unlabelled"]:
        lead, answers = own["lead"], f"its answers to {own['rows']:,} rows without labels"
        answers += f" ({own['for_each_gold_row']:.1f} for each training row with gold)"
        numbers = f"{lead['value']:+.3f} {metric} (95 %: {lead['low']:+.3f} to {lead['high']:+.3f})"
        lines.append(
            f"the teacher is ahead of plain fine-tuning by {numbers}: about the most that {answers} can bring"
            if lead["value"] > 0
            else f"the teacher is not ahead of plain fine-tuning, {numbers}: {answers} can bring little"
        )
    return "\n".join(lines)


def _distinct(v: Values) -> str:
    listed = ", ".join(f"{nats:.3f}" for nats in v["mean_difference"].values()) or "nothing to compare"
    return f"{len(v['nll'])} checkpoints; mean differences of their validation losses, one to the next: {listed} nats"


def _best_checkpoint(v: Values) -> str:
    if v["of"] == 1:
        return "there is one checkpoint"
    close = "" if v["significant"] else f"; its loss is not significantly lower than that of {v['runner_up']}"
    return f"the best checkpoint is {v['best']}, number {v['place']} of {v['of']} by validation {v['by']}{close}"


def _overfits(v: Values) -> str:
    train = v["training_ce"]
    falls = f", while the training loss falls from {train[0]:.3f} to {train[-1]:.3f}" if len(train) > 1 else ""
    return (
        f"the validation loss is lowest at {v['lowest']} ({v['nats']:.3f} nats) and {v['rise']:.0%} higher at the end"
        f"{falls}: the teacher overfits, and its last checkpoints are overconfident"
    )


def _no_losses(v: Values) -> str:
    reasons = {"anchor": "there is no anchor yet", "both": "neither teacher nor anchor has been trained"}
    reason = reasons.get(v["missing"]) or f"the losses cannot be read ({v['reason']})"
    return f"{reason}. Run `tutelage anchor RECIPE` after `teach`, or estimate it with --timing-run 200"


def _headroom(v: Values) -> str:
    text = (
        f"{v['source']}: loss {v['anchor_nll']:.3f} and {v['teacher_nll']:.3f} nats; an oracle router between them"
        f" {v['gate_nll']:.3f}"
    )
    score = v["score"]
    if not score or score["gate_of_rows"] is None:
        return text
    metric, rows = (metric_words(name) for name in (score["metric"], row_metric(score["metric"])))
    of_rows = "" if rows == metric else f" in {rows}"
    return (
        f"{text}. {metric} on {score['split']} rows: {score['anchor']:.3f} and {score['teacher']:.3f}, oracle router"
        f" {score['gate_of_rows']:.3f}{of_rows}"
    )


def _subdomains(v: Values) -> str:
    gain, loss = (
        f"{v[side]['value']:.3f} nats ({v[side]['low']:.3f} to {v[side]['high']:.3f})"
        for side in ("advantage", "deficit")
    )
    return (
        f"the fine-tuned student is better on {v['sfs_mass']:.0%} of the rows (SFS, 95 %: {v['sfs_mass_low']:.0%} to"
        f" {v['sfs_mass_high']:.0%}), an advantage of {gain}; on the other {v['tfs_mass']:.0%} (TFS) it has a deficit"
        f" of {loss}"
    )


def _spread(v: Values) -> str:
    low, high = v["validation"]["quartiles"]
    return f"quartiles {low:.2f} and {high:.2f}, entropy {v['validation']['entropy']:.2f} of 1"


def _memorised(v: Values) -> str:
    medians = " and ".join(f"{value:.1g}" for value in v["training"]["median_nll"])
    return (
        f"anchor and teacher have memorised their training rows (median loss {medians} nats), so the weights of"
        f" {v['method']} show who memorised more, not who is right. Use out-of-fold losses: *-aw-cf; or, cheaper,"
        " anchor.keep=loss, which keeps the anchor before it overfits"
    )


def _stall(v: Values) -> str:
    if "stages" in v:
        return f"the schedule moved on in all {v['stages']} stages"
    return f"the schedule would give {v['untrained']} to the untrained student and {v['anchor']} to the fine-tuned one"


def _lead(v: Values) -> str:
    lead = v["lead_nats"]
    where = "ahead" if lead["value"] > 0 else "behind"
    return f"the teacher is {where} by {abs(lead['value']):.3f} nats (95 %: {lead['low']:+.3f} to {lead['high']:+.3f})"


def _verdict(text: Callable[[Values], str]) -> Callable[[Values], str]:
    """Puts first that the verdict rests on a few steps only, if it does."""
    return lambda v: ("By a few steps of training: " if v["timing_run"] else "") + text(v)


def _fine_tune_only(v: Values) -> str:
    small_gap = f"the teacher is ahead by {v['score_gap'] or 0.0:.3f} in {v['metric']}"
    return f"Just fine-tune the student: {_lead(v) if v['small_loss'] else small_gap}; distillation can add little."


def _distil(v: Values) -> str:
    keep = "constant weights are enough"
    if v["timing_run"]:
        keep = "whether adaptive weights help shows once both models are trained"
    elif "-aw" in v["method"]:
        keep = f"adaptive weights keep what the student does better ({v['sfs_mass']:.0%} of the rows)"
    advance = " and schedule.advance" if v["advance"] else ""
    return f"Distil with {v['method']}{advance}: {_lead(v)}; {keep}."


# --- budget ---


def _time(v: Values) -> str:
    predicted, taken = v["predicted"], v["taken"]
    total = rough_duration(sum(predicted.values()))
    lines = [f"about {total} in all, predicted from {v['steps']} timed steps of each model"]
    for stage in v["stages"]:
        seconds = taken.get(stage)
        then = f", took {rough_duration(seconds)} ({predicted[stage] / seconds - 1:+.0%})" if seconds else ""
        lines.append(f"{stage}: {rough_duration(predicted[stage])}{then}")
    return "\n".join(lines)


def _disk(v: Values) -> str:
    kept, peak, free = (in_bytes(v[key]) for key in ("kept", "peak", "free"))
    return f"{kept} stay, at most {peak} while it trains; {free} are free"


def _memory(v: Values) -> str:
    teach, distill, machine = (in_bytes(v[key]) for key in ("teach", "distill", "machine"))
    return f"teach {teach}, distill {distill}, of {machine} on this machine"


PASSED: dict[str, Text] = {
    "baseline": _baseline,
    "more_rows": _more_rows,
    "distinct_checkpoints": _distinct,
    "best_checkpoint": _best_checkpoint,
    "overfitting": "the validation loss ends {rise:.0%} above its lowest value",
    "headroom": _headroom,
    "subdomains": _subdomains,
    "weights": lambda v: (
        f"adaptive weights vary between rows: {_spread(v)} on validation"
        if v["adaptive"]
        else f"no method of this recipe weighs rows; weights would have {_spread(v)}"
    ),
    "stall": _stall,
    "verdict": _verdict(lambda v: _distil(v) if "method" in v else _fine_tune_only(v)),
    "time": _time,
    "disk": _disk,
    "memory": _memory,
}
"""What to say about a check that passed, by its name."""

TEXTS: dict[Kind, Text] = {
    Kind.CHECKPOINTS_MISSING: "the teacher has no checkpoints yet: run `tutelage teach RECIPE`",
    Kind.CHECKPOINTS_NOT_JUDGED: "the checkpoints cannot be judged: {reason}",
    Kind.CHECKPOINTS_ALIKE: lambda v: (
        f"{', '.join(v['same'])}: losses on validation rows differ by less than {v['same_nats']} nats, so these"
        " checkpoints teach the same. Training had converged (or its learning rate is close to 0): use fewer"
        " checkpoints, or train shorter"
    ),
    Kind.BEST_IS_FIRST: (
        "the best checkpoint (T*) is the first of {of}: further training made the teacher no better, so there is no"
        " trajectory to follow. Use a lower learning rate, or train shorter"
    ),
    Kind.BEST_IS_LAST: (
        "the best checkpoint (T*) is the last, and its loss is still falling ({from:.3f} to {to:.3f} nats): training of"
        " the teacher stopped too early. Train it longer"
    ),
    Kind.TEACHER_OVERFITS: _overfits,
    Kind.LOSSES_MISSING: _no_losses,
    Kind.WEIGHTS_UNIFORM: lambda v: (
        f"adaptive weights are nearly the same on all rows ({_spread(v)}): a constant weight does the same"
    ),
    Kind.LOSSES_MEMORISED: _memorised,
    Kind.STAGES_STALLED: "{stalled} of {stages} stages stalled; {student}, stage {stage}: {reason}",
    Kind.STALL_PREDICTED: (
        "the schedule would stall: it gives the untrained and the fine-tuned student the same checkpoint: {reason}"
    ),
    Kind.LEAD_UNCERTAIN: _verdict(
        lambda v: f"Get more rows: on {v['rows']} validation rows {_lead(v)}, which is not distinguishable from zero."
    ),
    Kind.LEAD_IN_SCORE_ONLY: lambda v: (
        f"Try it next to plain fine-tuning, with low expectations: {_lead(v)}, though ahead by {v['score_gap']:.3f} in"
        f" {v['metric']}."
    ),
    Kind.LEAD_TOO_SMALL: _verdict(_fine_tune_only),
    Kind.LEAD_NOT_USED: _verdict(_distil),
    Kind.BASELINE_ENOUGH: lambda v: (
        f"{_baseline(v)}. It solves the task about as well as the teacher, in seconds: this task may not need an LLM"
        " student. See whether it keeps up on more rows before you train one"
    ),
    Kind.BASELINE_UNSUITABLE: (
        "TF-IDF with logistic regression does not apply: the answers are letters, and name other choices on every row"
    ),
    Kind.TIMING_RUN_NEEDED: "a timing run makes sense once no check fails",
    Kind.TIMING_RUN_FAILED: "a few steps of training end with: {reason}",
    Kind.DISK_TOO_SMALL: _disk,
    Kind.MEMORY_TIGHT: lambda v: f"{_memory(v)}. Rows longer than those of the timing run may not fit",
}
"""What to say about a finding, by its kind."""
