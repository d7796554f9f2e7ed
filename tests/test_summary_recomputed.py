"""summary.json worked out again from the files that docs/artifacts.md names, in plain Python and NumPy.

Two made-up comparisons, of random answers and losses: `plain` is scored by accuracy, `rare` by macro-F1. Nothing here but
`write_summary` itself comes from the package, and each formula is written down anew; where a bootstrap is behind a number, own
draws come within its Monte Carlo error.
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

from tutelage.comparison import write_summary

LABELS = ("red", "green", "blue")
ROWS, HELD_OUT, SEEDS = 240, 60, (0, 1, 2)
# Share of right answers that each model tends to.
SKILLS = {"teacher": 0.93, "anchor": 0.6, "sft": 0.62, "td": 0.72, "td-aw": 0.74, "scd": 0.8, "scd-aw": 0.84, "jsd": 0.7}
METHODS = tuple(SKILLS)[2:]
MONTE_CARLO = 0.12  # of a half width: four standard errors of an end that 2,000 draws give


def students(method: str) -> list[str]:
    """Names of a method's students; `jsd` has one seed only."""
    return [f"{method}/seed-{seed}" for seed in (SEEDS[:1] if method == "jsd" else SEEDS)]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_model(run: Path, model: str, rows: list[dict], ease: np.ndarray, rng: np.random.Generator) -> None:
    """Random predictions and losses of one model; its seed's luck moves all of them."""
    luck = 0.04 * rng.standard_normal() if "/" in model else 0.0
    share = SKILLS[model.split("/")[0]] + luck
    predictions, losses = [], []
    for row, easy in zip(rows, ease, strict=True):
        right = 0.6 * easy + 0.4 * rng.random() < share
        nll = float(rng.gamma(1.0, 0.2 if right else 1.0))
        wrong = [None, *(label for label in LABELS if label != row["answer"])]
        said = row["answer"] if right else wrong[rng.integers(3)]
        if row["split"] == "test":
            line = {"id": row["id"], "model": model, "split": "test", "gold": row["answer"], "raw": said or "?"}
            predictions.append({**line, "prediction": said, "score": float(right), "nll": nll})
        else:
            losses.append({"id": row["id"], "split": "validation", "nll": nll, "tokens": 2})
    rng.shuffle(predictions)  # rows are joined by id, not by place
    write_lines(run / "evaluate" / model / "predictions.jsonl", predictions)
    write_lines(run / "evaluate" / model / "validation_loss.jsonl", losses)


def write_run(run: Path, name: str, metric: str, rng: np.random.Generator) -> None:
    splits = ["test"] * ROWS + ["validation"] * HELD_OUT
    rows = [
        {"id": f"{split}-{n}", "split": split, "prompt": f"thing {n}", "answer": LABELS[int(3 * rng.random() ** 2)]}
        for n, split in enumerate(splits)
    ]
    write_lines(run / "prepare" / "rows.jsonl", [{**row, "answers": [row["answer"]]} for row in rows])
    about = {"labels": list(LABELS), "choice": False}
    (run / "prepare" / "data.json").write_text(json.dumps(about), encoding="utf-8")
    recipe = {
        "name": name, "output_dir": str(run), "task": {"type": "classification", "metric": metric},
        "data": {"dataset": "somewhere", "template": "{text}:"},
        "teacher": {"model_name_or_path": "big"}, "student": {"model_name_or_path": "small"},
    }  # fmt: skip
    (run / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    ease = rng.random(len(rows))
    for model in ("teacher", "anchor", *(student for method in METHODS for student in students(method))):
        write_model(run, model, rows, ease, rng)


def cell_lines(run: Path, name: str, student: str, attempt: int = 1, **row: object) -> list[dict]:
    method, seed = student.split("/seed-")
    cell = {"recipe": name, "run": str(run), "method": method, "seed": int(seed), "teacher_seed": 0}
    kept = row or {"status": "done", "seconds": 10.0 * (int(seed) + 1)}
    fixed = {**cell, "inputs": "abc", "attempt": attempt, **kept}
    return [fixed] if row else [{**fixed, "split": "test", "metric": key, "value": 0.0, "low": 0.0, "high": 0.0} for key in "ab"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of both runs, and the summary that is to be checked. One cell failed once, and another for good."""
    folder, rng = tmp_path_factory.mktemp("comparison"), np.random.default_rng(3)
    lines = []
    for name, metric in (("plain", "accuracy"), ("rare", "macro_f1")):
        write_run(folder / name, name, metric, rng)
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
    found = {line["id"]: line for line in read_lines(run / "evaluate" / model / "predictions.jsonl")}
    return [found[row["id"]] for row in read_lines(run / "prepare/rows.jsonl") if row["split"] == "test"]


def accuracy(rows: list[dict]) -> float:
    return sum(row["prediction"] == row["gold"] for row in rows) / len(rows)


def macro_f1(rows: list[dict]) -> float:
    """Mean over gold labels of 2 matched / (predicted + gold)."""
    found = []
    for label in {row["gold"] for row in rows}:
        matched = sum(row["prediction"] == label == row["gold"] for row in rows)
        found.append(2 * matched / (sum(row["prediction"] == label for row in rows) + sum(row["gold"] == label for row in rows)))
    return sum(found) / len(found)


METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}


def loss(rows: list[dict]) -> float:
    return sum(row["nll"] for row in rows) / len(rows)


def column(run: Path, models: list[str], key: str) -> np.ndarray:
    """[models, rows] accuracies (0, 1) or losses."""
    found = [by_row(run, model) for model in models]
    return np.array([[float(row["prediction"] == row["gold"]) if key == "score" else row["nll"] for row in rows] for rows in found])


@dataclass(frozen=True)
class About:
    """A sum of means, one for each group [seeds, rows], with what docs/artifacts.md makes its interval of (K, D/S and f)."""

    value: float
    errors: np.ndarray
    """Standard errors sqrt(K + D/S) for K as found, and for others within Monte Carlo error of V - N."""
    freedoms: np.ndarray

    @property
    def halves(self) -> tuple[float, float]:
        """The least and the greatest half width of the 95 % interval."""
        found = stats.t.ppf(0.975, self.freedoms) * self.errors
        return (1 - MONTE_CARLO) * float(found.min()), (1 + MONTE_CARLO) * float(found.max())

    @property
    def p_values(self) -> tuple[float, float]:
        found = np.maximum(2 * stats.t.sf(abs(self.value) / self.errors, self.freedoms), 2 / 2001)
        return 0.8 * float(found.min()) - 0.005, 1.2 * float(found.max()) + 0.005


COUNTS = np.random.default_rng(99).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=2000) / ROWS


def about(*groups: np.ndarray) -> About:
    """Groups of one seed are fixed models."""
    seen = [COUNTS @ group.T for group in groups]
    over_seeds, seeds_part, doubt, noise = sum(values.mean(axis=1) for values in seen).var(), 0.0, 0.0, 0.0
    for group, values in zip(groups, seen, strict=True):
        size = len(group)
        if size > 1:
            own = sum((values[:, s] - values.mean(axis=1)).var() for s in range(size)) / (size * (size - 1))
            least = own * size * stats.chi2.ppf(0.1, size - 1) / (size - 1)
            part = max(group.mean(axis=1).var(ddof=1), least) / size
            noise, seeds_part, doubt = noise + own, seeds_part + part, doubt + part**2 / (size - 1)
    # A variance of 2,000 draws has a standard error of 3 %; two of them, and three standard errors.
    kept = np.maximum(over_seeds - noise + 0.15 * over_seeds * np.linspace(-1, 1, 41), 0.0)
    freedoms = (kept + seeds_part) ** 2 / (kept**2 / (ROWS - 1) + doubt)
    return About(float(sum(group.mean() for group in groups)), np.sqrt(kept + seeds_part), np.maximum(freedoms, 1.0))


def assert_interval(seen: dict, *groups: np.ndarray) -> None:
    expected = about(*groups)
    least, most = expected.halves
    assert seen["value"] == pytest.approx(expected.value, abs=1e-12)
    assert least <= seen["value"] - seen["low"] <= most
    assert least <= seen["high"] - seen["value"] <= most


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
        for name, seen in recipe["methods"].items():
            found = [by_row(run, student) for student in students(name)]
            assert seen["seeds"] == len(found)
            assert seen["score"]["value"] == pytest.approx(np.mean([metric(rows) for rows in found]))
            assert seen["nll"]["value"] == pytest.approx(np.mean([loss(rows) for rows in found]))
            assert seen["seconds"] == (10.0 if name == "jsd" else 20.0)  # 10, 20, 30; the failed attempt's 999 do not count
            assert seen["score"]["rows_only"] is seen["nll"]["rows_only"] is (name == "jsd")


def test_intervals(comparison):
    for run, recipe in recipes(comparison):
        for key in ("score", "nll")[recipe["metric"] != "accuracy" :]:
            for name, seen in recipe["methods"].items():
                if name != "jsd":
                    assert_interval(seen[key], column(run, students(name), key))
            draws = np.random.default_rng(5).integers(ROWS, size=(4000, ROWS))
            for name in ("teacher", "anchor"):  # one model: percentiles over rows alone
                seen, values = recipe["base"][name][key], column(run, [name], key)[0]
                low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
                assert (seen["low"], seen["high"]) == pytest.approx((low, high), abs=MONTE_CARLO * (high - low))
                assert seen["rows_only"]


def test_the_interval_of_a_score_that_is_no_mean_of_rows(comparison):
    run, recipe = next(found for found in recipes(comparison) if found[1]["metric"] == "macro_f1")
    rows, rng = by_row(run, "anchor"), np.random.default_rng(6)
    low, high = np.quantile([macro_f1([rows[n] for n in rng.integers(ROWS, size=ROWS)]) for _ in range(500)], [0.025, 0.975])
    seen = recipe["base"]["anchor"]["score"]
    assert (seen["low"], seen["high"]) == pytest.approx((low, high), abs=0.2 * (high - low))


def test_differences_from_the_best_and_their_p_values(comparison):
    for run, recipe in recipes(comparison):
        methods = recipe["methods"]
        for key, better in (("score", max), ("nll", min)):
            best = better(methods, key=lambda name: methods[name][key]["value"])
            assert f"{key}_against_best" not in methods[best] and methods[best][f"{key}_rank"] == 1
            against = {name: seen[f"{key}_against_best"] for name, seen in methods.items() if name != best}
            assert set(METHODS) - {best} == set(against) and {seen["best"] for seen in against.values()} == {best}
            assert holm({name: seen["p_value"] for name, seen in against.items()}) == pytest.approx(
                {name: seen["p_holm"] for name, seen in against.items()}
            )
            if key == "nll" or recipe["metric"] == "accuracy":
                for name, seen in against.items():
                    check_difference(run, key, name, best, seen)


def check_difference(run: Path, key: str, name: str, best: str, seen: dict) -> None:
    shared = [seed for seed in (SEEDS[:1] if "jsd" in (name, best) else SEEDS)]
    mine, theirs = (column(run, [f"{method}/seed-{seed}" for seed in shared], key) for method in (name, best))
    if len(shared) > 1:
        assert_interval(seen["difference"], mine - theirs)
        least, most = about(mine - theirs).p_values
        assert seen["test"] == "hierarchical_bootstrap" and least <= seen["p_value"] <= most
        return
    assert seen["difference"]["value"] == pytest.approx((mine - theirs).mean()) and seen["difference"]["rows_only"]
    if key == "score":  # swapping answers row by row is tossing a coin for each row that only one has right
        only, other = int((mine > theirs).sum()), int((mine < theirs).sum())
        tail = sum(math.comb(only + other, n) for n in range(min(only, other) + 1)) / 2 ** (only + other)
        assert seen["p_value"] == pytest.approx(min(1.0, 2 * tail), abs=0.04)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction by its definition: the smallest times their number, the next times one less, never falling, at most 1."""
    found, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - place)))
        found[name] = highest
    return found


def test_ranks(comparison):
    found = defaultdict(list)
    for _, recipe in recipes(comparison):
        for key, sign in (("score", -1), ("nll", 1)):
            values = {name: sign * seen[key]["value"] for name, seen in recipe["methods"].items()}
            for name, seen in recipe["methods"].items():
                rank = 1 + sum(other < values[name] for other in values.values())
                assert seen[f"{key}_rank"] == rank
                found[key, name].append(rank)
    for (key, name), ranks in found.items():
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


def test_shares_of_the_gap(comparison):
    run, recipe = next(found for found in recipes(comparison) if found[1]["metric"] == "accuracy")
    teacher = column(run, ["teacher"], "score")
    for name in ("td", "td-aw", "scd", "scd-aw"):
        sft, mine, seen = (*(column(run, students(each), "score") for each in ("sft", name)), recipe["methods"][name]["gap_closed"])
        assert seen["from"] == "sft"
        assert seen["share"] == pytest.approx((mine.mean() - sft.mean()) / (teacher.mean() - sft.mean()))
        for end, side in (("low", -1), ("high", 1)):  # Fieller: at an end, what is left over is just told from 0
            left = about(mine - sft + seen[end] * sft, -seen[end] * teacher)
            assert left.halves[0] <= -side * left.value <= left.halves[1]


def test_cells_and_what_validation_foretells(comparison):
    folder, summary = comparison
    counts = {"score": [0, 0, 0, 0], "nll": [0, 0, 0, 0]}
    assert len(summary["cells"]) == 2 * (5 * 3 + 1)
    for cell in summary["cells"]:
        run, student = folder / cell["recipe"], f"{cell['method']}/seed-{cell['seed']}"
        mine, theirs = by_row(run, student), by_row(run, "teacher")
        assert_split(cell["test"], [row["nll"] for row in mine], [row["nll"] for row in theirs])
        held = [read_lines(run / "evaluate" / name / "validation_loss.jsonl") for name in (student, "teacher")]
        assert_split(cell["validation"], *([row["nll"] for row in rows] for rows in held))
        assert cell["identity_error"] <= 1e-9
        metric = METRICS["accuracy" if cell["recipe"] == "plain" else "macro_f1"]
        assert (cell["score"], cell["teacher_score"]) == pytest.approx((metric(mine), metric(theirs)))
        won = {"score": metric(mine) > metric(theirs), "nll": loss(mine) < loss(theirs)}
        foretold = loss(held[0]) < loss(held[1])
        for key, truth in won.items():
            assert cell[f"beats_teacher_in_{key}"] is truth
            counts[key][2 * (not foretold) + (truth != foretold)] += 1
    for key, (true_wins, false_wins, true_losses, false_losses) in counts.items():
        seen = summary["validation_foretells_test"][key]
        assert [seen["true_wins"], seen["false_wins"]] == [true_wins, false_wins]
        assert [seen["true_losses"], seen["false_losses"]] == [true_losses, false_losses]
        right = stats.binomtest(true_wins + true_losses, sum(counts[key]))
        assert seen["accuracy"] == pytest.approx({"value": right.statistic, **right.proportion_ci(method="wilson")._asdict()})


def assert_split(seen: dict, student: list[float], teacher: list[float]) -> None:
    lead = [theirs - mine for mine, theirs in zip(student, teacher, strict=True)]
    count, ahead = len(lead), [gain for gain in lead if gain > 0]
    expected = {
        "rows": count, "sfs_mass": len(ahead) / count, "tfs_mass": 1 - len(ahead) / count,
        "advantage": sum(ahead) / count, "deficit": -sum(gain for gain in lead if gain <= 0) / count,
        "risk_student": sum(student) / count, "risk_teacher": sum(teacher) / count, "difference": -sum(lead) / count,
    }  # fmt: skip
    assert seen == pytest.approx(expected, abs=1e-12)
    assert seen["difference"] == pytest.approx(seen["deficit"] - seen["advantage"], abs=1e-9)


def test_only_cells_without_a_result_have_failed(comparison):
    (failed,) = comparison[1]["failed"]
    assert (failed["recipe"], failed["method"], failed["seed"], failed["error"]) == ("plain", "jsd", 1, "not today")
