"""summary.json recomputed from the files that docs/artifacts.md names, in plain Python and NumPy.

Two made-up comparisons, of random answers and losses: `plain` is scored by accuracy, `rare` by macro-F1. Nothing here
but `write_summary` itself comes from the package, and each formula is written down anew; where resampling is behind a
number (macro-F1), own draws come within its Monte Carlo error.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from helpers.fake_comparison import cell_lines, read_lines, write_lines, write_run
from tutelage.compare.summary.summarise import write_summary

ROWS, SEEDS = 240, (0, 1, 2)
# Expected fraction of right answers of each model.
SKILLS = {
    "teacher": 0.93,
    "anchor": 0.6,
    "sft": 0.62,
    "td": 0.72,
    "td-aw": 0.74,
    "scd": 0.8,
    "scd-aw": 0.84,
    "jsd": 0.7,
}
METHODS = tuple(SKILLS)[2:]


def students(method: str) -> list[str]:
    """Names of a method's students; `jsd` has one seed only."""
    return [f"{method}/seed-{seed}" for seed in (SEEDS[:1] if method == "jsd" else SEEDS)]


def sample_skills(rng: np.random.Generator) -> dict[str, float]:
    """Fractions of right answers; those of students vary by seed."""
    skills = {name: SKILLS[name] for name in ("teacher", "anchor")}
    return skills | {
        student: SKILLS[name] + 0.02 * rng.standard_normal() for name in METHODS for student in students(name)
    }


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of both runs, and the summary that is to be checked. One cell failed once, and another for good."""
    folder, rng = tmp_path_factory.mktemp("comparison"), np.random.default_rng(3)
    lines = []
    for name, metric in (("plain", "accuracy"), ("rare", "macro_f1")):
        write_run(folder / name, name, metric, sample_skills(rng), rng, ROWS)
        lines += cell_lines(folder / name, name, "td/seed-1", status="failed", error="no room", seconds=999.0)
        for method in METHODS:
            for student in students(method):
                lines += cell_lines(folder / name, name, student, 2 if student == "td/seed-1" else 1)
    lines += cell_lines(folder / "plain", "plain", "jsd/seed-1", status="failed", error="not today", seconds=1.0)
    write_lines(folder / "compare" / "results.jsonl", lines)
    write_summary(folder / "compare")
    return folder, json.loads((folder / "compare" / "summary.json").read_text(encoding="utf-8"))


# --- the same numbers by other means ---


@cache
def by_row(run: Path, model: str) -> list[dict]:
    """A model's predictions in the order of the rows."""
    by_id = {line["id"]: line for line in read_lines(run / "evaluate" / model / "predictions.jsonl")}
    return [by_id[row["id"]] for row in read_lines(run / "prepare/rows.jsonl") if row["split"] == "test"]


def accuracy(rows: list[dict]) -> float:
    return sum(row["prediction"] == row["gold"] for row in rows) / len(rows)


def macro_f1(rows: list[dict]) -> float:
    """Mean over gold labels of 2 matched / (predicted + gold)."""
    f1_scores = []
    for label in {row["gold"] for row in rows}:
        matched = sum(row["prediction"] == label == row["gold"] for row in rows)
        f1_scores.append(
            2 * matched / (sum(row["prediction"] == label for row in rows) + sum(row["gold"] == label for row in rows))
        )
    return sum(f1_scores) / len(f1_scores)


METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}


def loss(rows: list[dict]) -> float:
    return sum(row["nll"] for row in rows) / len(rows)


def column(run: Path, models: list[str], key: str) -> np.ndarray:
    """[models, rows] accuracies (0, 1) or losses."""
    predictions = [by_row(run, model) for model in models]
    return np.array(
        [
            [float(row["prediction"] == row["gold"]) if key == "score" else row["nll"] for row in rows]
            for rows in predictions
        ]
    )


@dataclass(frozen=True)
class About:
    """A mean over seeds of a mean over rows [seeds, rows], with what docs/artifacts.md makes of it."""

    value: float
    error: float
    freedom: float

    @property
    def half(self) -> float:
        return float(stats.t.ppf(0.975, self.freedom)) * self.error

    @property
    def p_value(self) -> float:
        return 2 * float(stats.t.sf(abs(self.value) / self.error, self.freedom))


def about(y: np.ndarray) -> About:
    seeds, rows = y.shape
    mean = y.mean(axis=0)
    kept, part = mean.var(ddof=1) / rows, 0.0
    if seeds > 1:
        noise = sum((y[s] - mean).var(ddof=1) for s in range(seeds)) / rows / (seeds * (seeds - 1))
        part = max(y.mean(axis=1).var(ddof=1) / seeds, noise * stats.chi2.ppf(0.1, seeds - 1) / (seeds - 1))
        kept = max(kept - noise, 0.0)
    shares = {rows - 1: kept / (kept + part), max(seeds - 1, 1): part / (kept + part)}  # by degrees of freedom
    freedom = 1 / sum(share ** (2 - 1 / free) / free for free, share in shares.items())
    return About(float(y.mean()), math.sqrt(kept + part), max(freedom, 1.0))


def assert_interval(interval: dict, y: np.ndarray, least: float = -math.inf, most: float = math.inf) -> None:
    """least, most: what the metric can be."""
    expected = about(y)
    low, high = max(expected.value - expected.half, least), min(expected.value + expected.half, most)
    assert (interval["value"], interval["low"], interval["high"]) == pytest.approx(
        (expected.value, low, high), abs=1e-9
    )
    assert interval["rows_only"] is (len(y) == 1)


def recipes(comparison: tuple[Path, dict]) -> list[tuple[Path, dict]]:
    folder, summary = comparison
    return [(folder / recipe["name"], recipe) for recipe in summary["recipes"]]


# --- what must agree ---


def test_scores_losses_and_seconds(comparison):
    for run, recipe in recipes(comparison):
        metric = METRICS[recipe["metric"]]
        assert recipe["rows"] == ROWS and set(recipe["methods"]) == set(METHODS)
        for name in ("teacher", "anchor"):
            assert recipe["base"][name]["score"]["value"] == pytest.approx(metric(by_row(run, name)))
            assert recipe["base"][name]["nll"]["value"] == pytest.approx(loss(by_row(run, name)))
        for name, method in recipe["methods"].items():
            predictions = [by_row(run, student) for student in students(name)]
            assert method["seeds"] == len(predictions)
            assert method["score"]["value"] == pytest.approx(np.mean([metric(rows) for rows in predictions]))
            assert method["nll"]["value"] == pytest.approx(np.mean([loss(rows) for rows in predictions]))
            assert method["seconds"] == (
                10.0 if name == "jsd" else 20.0
            )  # 10, 20, 30; the failed attempt's 999 do not count
            assert method["score"]["rows_only"] is method["nll"]["rows_only"] is (name == "jsd")


def test_intervals(comparison):
    for run, recipe in recipes(comparison):
        for key, most in {"score": 1.0, "nll": math.inf}.items():
            if key == "nll" or recipe["metric"] == "accuracy":
                for name, method in recipe["methods"].items():
                    assert_interval(method[key], column(run, students(name), key), 0.0, most)
                for name in ("teacher", "anchor"):
                    assert_interval(recipe["base"][name][key], column(run, [name], key), 0.0, most)


def test_the_interval_of_a_score_that_is_no_mean_of_rows(comparison):
    run, recipe = next(pair for pair in recipes(comparison) if pair[1]["metric"] == "macro_f1")
    rows, rng = by_row(run, "anchor"), np.random.default_rng(6)
    draws = [macro_f1([rows[n] for n in rng.integers(ROWS, size=ROWS)]) for _ in range(800)]
    interval, half = recipe["base"]["anchor"]["score"], 1.97 * float(np.std(draws))  # t with 239 degrees of freedom
    assert (interval["low"], interval["high"]) == pytest.approx(
        (interval["value"] - half, interval["value"] + half), abs=0.12 * half
    )


def test_differences_from_the_best_on_validation_and_their_p_values(comparison):
    held_out = validation(comparison[0] / "compare" / "results.jsonl")
    for run, recipe in recipes(comparison):
        methods = recipe["methods"]
        for key in ("score", "nll"):
            means = {name: held_out[recipe["name"], name] for name in METHODS}
            assert methods["td"]["validation"] == pytest.approx(means["td"])
            order = sorted((name for name in METHODS if name != "jsd"), key=lambda name: standing(means[name], key))
            assert recipe["best"][key] == order[0] and f"{key}_against_best" not in methods[order[0]]
            against = {name: method[f"{key}_against_best"] for name, method in methods.items() if name != order[0]}
            assert set(METHODS) - {order[0]} == set(against) and {
                difference["best"] for difference in against.values()
            } == {order[0]}
            p_values = {name: difference["p_value"] for name, difference in against.items() if name != "jsd"}
            corrected = holm(p_values) | {"jsd": None}  # one seed has no place among tests of three
            assert {name: difference["p_holm"] for name, difference in against.items()} == pytest.approx(corrected)
            for name, difference in against.items():
                check_verdict(difference)
                if key == "nll" or recipe["metric"] == "accuracy":
                    check_difference(run, key, name, order[0], difference)


def validation(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Mean score and loss of every method on validation, by recipe and method."""
    recorded: dict = defaultdict(lambda: defaultdict(list))
    for line in read_lines(path):
        if line.get("split") == "validation":
            recorded[line["recipe"], line["method"]][line["metric"]].append(line["value"])
    return {
        key: {metric: float(np.mean(values)) for metric, values in by_metric.items()}
        for key, by_metric in recorded.items()
    }


def standing(means: dict[str, float], key: str) -> tuple[float, float]:
    """The best is the smallest."""
    score, nll = -round(means["score"], 12), means["nll"]
    return (score, nll) if key == "score" else (nll, score)


def check_verdict(against: dict) -> None:
    settled = against["p_holm"] is not None and against["p_holm"] <= 0.05
    assert (against["seeds_needed"]["verdict"] == "settled") is settled
    assert (against["seeds_needed"]["verdict"] == "seed_variance_unknown") is against["difference"]["rows_only"]


def check_difference(run: Path, key: str, name: str, best: str, against: dict) -> None:
    shared = SEEDS[:1] if "jsd" in (name, best) else SEEDS
    first, second = (column(run, [f"{method}/seed-{seed}" for seed in shared], key) for method in (name, best))
    assert_interval(against["difference"], first - second)
    if len(shared) > 1:
        assert against["test"] == "crossed_t" and against["p_value"] == pytest.approx(
            about(first - second).p_value, abs=1e-9
        )
    elif key == "score":  # McNemar
        only, other = int((first > second).sum()), int((first < second).sum())
        assert against["test"] == "mcnemar_exact"
        assert against["p_value"] == pytest.approx(stats.binomtest(only, only + other).pvalue)
    else:
        assert against["test"] == "randomisation"


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction by its definition: the smallest times their number, the next times one less, never falling, at
    most 1."""
    corrected, highest = {}, 0.0
    for index, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - index)))
        corrected[name] = highest
    return corrected


def test_ranks(comparison):
    all_ranks = defaultdict(list)
    for _, recipe in recipes(comparison):
        for key, sign in (("score", -1), ("nll", 1)):
            values = {name: sign * method[key]["value"] for name, method in recipe["methods"].items()}
            for name, method in recipe["methods"].items():
                rank = float(stats.rankdata(np.round(list(values.values()), 12))[list(values).index(name)])
                assert method[f"{key}_rank"] == rank
                all_ranks[key, name].append(rank)
    for (key, name), ranks in all_ranks.items():
        assert comparison[1]["mean_ranks"][key][name] == np.mean(ranks)


def test_the_2_by_2(comparison):
    for run, recipe in recipes(comparison):
        metric = METRICS[recipe["metric"]]
        for key in ("score", "nll"):
            measure = metric if key == "score" else loss
            cells = [[measure(by_row(run, s)) for s in students(name)] for name in ("td", "td-aw", "scd", "scd-aw")]
            td, td_aw, scd, scd_aw = map(np.mean, cells)
            effects = recipe["two_by_two"][key]
            assert effects["schedule"]["value"] == pytest.approx((scd + scd_aw - td - td_aw) / 2)
            assert effects["weighting"]["value"] == pytest.approx((td_aw + scd_aw - td - scd) / 2)
            assert effects["interaction"]["value"] == pytest.approx((scd_aw - scd) - (td_aw - td))
            if key == "nll" or metric is accuracy:
                td, td_aw, scd, scd_aw = (column(run, students(name), key) for name in ("td", "td-aw", "scd", "scd-aw"))
                assert_interval(effects["schedule"], (scd + scd_aw - td - td_aw) / 2)
                assert_interval(effects["weighting"], (td_aw + scd_aw - td - scd) / 2)
                assert_interval(effects["interaction"], (scd_aw - scd) - (td_aw - td))


def test_fractions_of_the_gap(comparison):
    run, recipe = next(pair for pair in recipes(comparison) if pair[1]["metric"] == "accuracy")
    teacher = column(run, ["teacher"], "score")
    assert recipe["methods"]["sft"]["gap_closed"] is None
    for name in ("td", "td-aw", "scd", "scd-aw"):
        sft, student, gap = (
            *(column(run, students(each), "score") for each in ("sft", name)),
            recipe["methods"][name]["gap_closed"],
        )
        assert gap["from"] == "sft"
        assert gap["share"] == pytest.approx((student.mean() - sft.mean()) / (teacher.mean() - sft.mean()))
        for end, side in (("low", -1), ("high", 1)):  # Fieller: at an end, the remainder is just significant
            left = about(student - sft - gap[end] * (teacher - sft))
            assert left.value == pytest.approx(-side * left.half, abs=1e-6)


def test_students_and_what_validation_predicts(comparison):
    folder, summary = comparison
    counts = {"score": [0, 0, 0, 0], "nll": [0, 0, 0, 0]}
    assert len(summary["cells"]) == 2 * (5 * 3 + 1)
    for cell in summary["cells"]:
        run, student = folder / cell["recipe"], f"{cell['method']}/seed-{cell['seed']}"
        student_rows, teacher_rows = by_row(run, student), by_row(run, "teacher")
        assert_split(cell["test"], [row["nll"] for row in student_rows], [row["nll"] for row in teacher_rows])
        held = [read_lines(run / "evaluate" / name / "validation_loss.jsonl") for name in (student, "teacher")]
        assert_split(cell["validation"], *([row["nll"] for row in rows] for rows in held))
        assert cell["identity_error"] <= 1e-9
        metric = METRICS["accuracy" if cell["recipe"] == "plain" else "macro_f1"]
        assert (cell["score"], cell["teacher_score"]) == pytest.approx((metric(student_rows), metric(teacher_rows)))
        won = {"score": metric(student_rows) > metric(teacher_rows), "nll": loss(student_rows) < loss(teacher_rows)}
        predicted = loss(held[0]) < loss(held[1])
        for key, truth in won.items():
            assert cell[f"beats_teacher_in_{key}"] is truth
            counts[key][2 * (not predicted) + (truth != predicted)] += 1
    for key, (true_wins, false_wins, true_losses, false_losses) in counts.items():
        table = summary["validation_foretells_test"][key]
        assert [table["true_wins"], table["false_wins"]] == [true_wins, false_wins]
        assert [table["true_losses"], table["false_losses"]] == [true_losses, false_losses]
        right = stats.binomtest(true_wins + true_losses, sum(counts[key]))
        assert table["accuracy"] == pytest.approx(
            {"value": right.statistic, **right.proportion_ci(method="wilson")._asdict()}
        )


def assert_split(split: dict, student: list[float], teacher: list[float]) -> None:
    lead = [teacher_loss - student_loss for student_loss, teacher_loss in zip(student, teacher, strict=True)]
    count, ahead = len(lead), [gain for gain in lead if gain > 0]
    expected = {
        "rows": count, "sfs_mass": len(ahead) / count, "tfs_mass": 1 - len(ahead) / count,
        "advantage": sum(ahead) / count, "deficit": -sum(gain for gain in lead if gain <= 0) / count,
        "risk_student": sum(student) / count, "risk_teacher": sum(teacher) / count, "difference": -sum(lead) / count,
    }  # fmt: skip
    assert split == pytest.approx(expected, abs=1e-12)
    assert split["difference"] == pytest.approx(split["deficit"] - split["advantage"], abs=1e-9)


def test_only_cells_whose_last_attempt_failed_are_listed(comparison):
    (failed,) = comparison[1]["failed"]
    assert (failed["recipe"], failed["method"], failed["seed"], failed["error"]) == ("plain", "jsd", 1, "not today")
