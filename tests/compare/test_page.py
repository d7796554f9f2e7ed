"""The page of a comparison: what it claims and what it does not, hostile text, and absent parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fake_run import INJECTION, MARKUP, Page
from tutelage.compare.summary.claims import against_teacher, standing
from tutelage.compare.summary.page import write_page


def interval(value, half, *, once=False):
    return {"value": value, "low": value - half, "high": value + half, "rows_only": once}


def split(advantage, deficit):
    return {
        "rows": 100, "sfs_mass": 0.4, "tfs_mass": 0.6, "advantage": advantage, "deficit": deficit,
        "risk_student": 0.3 + deficit, "risk_teacher": 0.3 + advantage, "difference": deficit - advantage,
    }  # fmt: skip


def summary(
    scores, *, half=0.02, p=0.2, seeds=3, name="clinic", needed=("more_seeds", 5), gap=(None, None), effects=False
):
    """A comparison where methods have the scores given; the loss is 1 - score, so both have one order; teacher 0.80,
    anchor 0.70.

    half: half width of every interval. p: Holm's, of every difference from the first. gap: interval of the first's
    gap closed.
    """
    once = seeds == 1
    order = sorted(scores, key=lambda method: -scores[method])
    methods = {}
    for method, score in scores.items():
        share, (low, high) = (score - 0.7) / 0.1, gap if method == order[0] else (None, None)
        methods[method] = {
            "trainings": seeds, "seeds": seeds, "trajectories": 1, "seconds": 61.0,
            "score": interval(score, half, once=once), "nll": interval(1 - score, half, once=once),
            "gap_closed": {"share": share, "low": low, "high": high, "from": "anchor"},
            "score_rank": order.index(method) + 1, "nll_rank": order.index(method) + 1,
        }  # fmt: skip
        for key, sign in (("score", 1), ("nll", -1)) if method != order[0] else ():
            methods[method][f"{key}_against_best"] = {
                "best": order[0],
                "difference": interval(sign * (score - scores[order[0]]), half, once=once),
                "test": "mcnemar_exact" if once else "hierarchical_bootstrap",
                "p_value": p / 2,
                "p_holm": p,
                "seeds_needed": {"verdict": needed[0], "total": (needed[1] or 0) + seeds, "more": needed[1]},
            }
    base = {
        model: {"score": interval(value, half, once=True), "nll": interval(1 - value, half, once=True)}
        for model, value in {"teacher": 0.8, "anchor": 0.7}.items()
    }
    names = ("schedule", "weighting", "interaction")
    parts = (
        {key: dict(zip(names, map(interval, values, (0.01,) * 3), strict=True)) for key, values in effects.items()}
        if effects
        else {}
    )
    cells = [
        {
            "recipe": name, "run": "runs/x", "method": method, "seed": seed, "teacher_seed": 0, "score": score,
            "teacher_score": 0.8,
            "beats_teacher_in_score": score > 0.8, "beats_teacher_in_nll": score > 0.8, "test": split(score / 5, 0.16),
            "validation": split(score / 5, 0.15), "identity_error": 1e-17,
        }
        for method, score in scores.items() for seed in range(seeds)
    ]  # fmt: skip
    return {
        "recipes": [{
            "name": name, "task": "classification", "metric": "accuracy", "rows": 100, "base": base, "methods": methods,
            "best": dict.fromkeys(("score", "nll"), order[0]),
            "two_by_two": parts,
        }],
        "failed": [],
        "mean_ranks": {key: {method: float(order.index(method) + 1) for method in scores} for key in ("score", "nll")},
        "cells": cells,
        "validation_foretells_test": {
            key: {"true_wins": 3, "false_wins": 1, "false_losses": 0, "true_losses": 2,
                  "accuracy": {"value": 5 / 6, "low": 0.44, "high": 0.97}}
            for key in ("score", "nll")
        },
    }  # fmt: skip


NOTHING = {"recipes": [], "failed": [], "mean_ranks": {}, "cells": [], "validation_foretells_test": {}}
FAILED = {
    "recipe": "clinic",
    "run": "runs/x",
    "method": "td",
    "seed": 1,
    "teacher_seed": 0,
    "error": "RuntimeError: no room\n  at x",
}


def both(first, second):
    return first | {key: first[key] + second[key] for key in ("recipes", "cells")}


@pytest.fixture
def read(tmp_path):
    def page(found, **options) -> Page:
        write_page(found, tmp_path / "compare" / "index.html", **options)
        return Page(tmp_path / "compare" / "index.html")

    return page


def headline(page):
    return (
        page.source.partition('class="headline"')[2]
        .partition(">")[2]
        .partition("</h2>")[0]
        .replace("<code>", "")
        .replace("</code>", "")
    )


# --- what it claims ---


def test_significantly_better_than_all_others(read):
    page = read(summary({"sft": 0.7, "td": 0.75, "scd": 0.9}, p=0.004))
    assert " ".join(headline(page).split()).startswith(
        "scd is significantly better than all others by score and by loss."
    )
    assert page.text.count("It is significantly better than all 2 others after Holm's correction.") == 2
    assert "For a significant result" not in page.text and "none, significant" in page.text


def test_differences_that_are_not_significant_say_how_many_more_seeds_are_needed(read):
    page = read(summary({"sft": 0.7, "td": 0.795, "scd": 0.8}, p=0.3))
    assert "Validation chooses scd; on test it is not significantly better than all others." in headline(page)
    assert "first of 3 on test" in page.text
    assert "it differs significantly from none of the 2 others (smallest p 0.300)." in page.text
    assert "By score: at least 5 more seeds per method" in page.text
    assert "the difference from the teacher is not shown to be significant" in page.text


def test_several_teachers_are_not_taken_for_seeds(read):
    given = summary({"td": 0.795, "scd": 0.8}, p=0.3)
    given["recipes"][0]["methods"]["scd"] |= {"trainings": 5, "trajectories": 2}
    page = read(given)
    assert "mean of 5 training runs" in page.text and "from the variance of the seeds so far" in page.text
    assert "5 of 3 × 2" in page.text and "seeds × teachers" in page.text
    for against in ("score_against_best", "nll_against_best"):
        given["recipes"][0]["methods"]["td"][against]["seeds_needed"] = {
            "verdict": "rows_too_few",
            "total": None,
            "more": None,
        }
    page = read(given)
    assert "100 test rows with these teachers: it takes more rows or teachers" in page.text
    assert page.text.count("more rows or teachers") == 4  # by score and by loss: in the verdict, and in the table
    assert "teachers" not in read(summary({"td": 0.795, "scd": 0.8}, p=0.3)).text.partition("How to read")[0]


def test_a_method_with_one_training_run_in_common_is_compared_on_that_alone(read):
    given = summary({"sft": 0.7, "td": 0.75, "scd": 0.9}, p=0.004)
    for key in ("score", "nll"):
        against = given["recipes"][0]["methods"]["td"][f"{key}_against_best"]
        against |= {"p_holm": None, "difference": against["difference"] | {"rows_only": True}}
    page = read(given)
    assert page.text.count("td has one training run in common with it and is compared on that alone") == 2
    assert "no seed in common" not in page.text and "−0.150*" in page.text
    assert page.text.count("It is significantly better than sft after Holm's correction. td has one training run") == 2


def test_models_that_answer_alike_do_not_ask_for_rows(read):
    page = read(summary({"td": 0.8, "scd": 0.8}, p=1.0, needed=("rows_too_few", None)))
    assert "for scd there is no difference so far" in page.text and "it takes more rows" not in page.text
    assert page.text.count("no difference") == 4


def test_significantly_better_than_some(read):
    given = summary({"sft": 0.7, "td": 0.795, "scd": 0.8}, p=0.3)
    given["recipes"][0]["methods"]["sft"]["nll_against_best"]["p_holm"] = 0.01
    page = read(given)
    assert "on test it is not significantly better than all others" in headline(page)
    assert "better than sft after Holm's correction; the difference from td is not significant." in page.text


def test_a_small_p_is_not_enough_if_the_interval_includes_0():
    methods = summary({"td": 0.79, "scd": 0.8}, p=0.01)["recipes"][0]["methods"]
    assert standing(methods, "score", "scd").state == "ahead_of_none"


def test_an_interval_without_0_is_not_enough_if_holm_rejects_it():
    methods = summary({"td": 0.7, "scd": 0.8}, p=0.06, needed=("settled", 0))["recipes"][0]["methods"]
    claim = standing(methods, "score", "scd")
    assert claim.state == "ahead_of_none" and claim.seeds.corrected == ["td"] and claim.seeds.more is None


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (("rows_too_few", None), "no number of seeds up to 1,000 suffices on 100 test rows"),
        (("seed_variance_unknown", None), "one seed is not enough to estimate it: train at least three"),
        (("settled", 0), "the present seeds suffice for one comparison alone, but not for 2 at once"),
    ],
)
def test_what_is_needed_if_seeds_alone_do_not_suffice(read, needed, words):
    assert words in read(summary({"sft": 0.7, "td": 0.795, "scd": 0.8}, needed=needed)).text


def test_beats_its_teacher(read):
    page = read(summary({"td": 0.75, "scd": 0.9}, p=0.004, gap=(1.4, 2.6)))
    assert headline(page).split(".")[-2].split() == [
        "It",
        "beats",
        "its",
        "teacher",
        "by",
        "score",
        "and",
        "by",
        "loss",
    ]
    assert "It closes 200 % [140 %, 260 %] of the gap" in page.text
    assert "the student beats its teacher" in page.text


@pytest.mark.parametrize(
    ("score", "half", "gap", "verdict", "by"),
    [
        (0.90, 0.02, (1.4, 2.6), "above", "gap"),
        (0.82, 0.02, (0.9, 1.5), "not_significant", "gap"),
        (0.75, 0.02, (0.2, 0.8), "below", "gap"),
        (0.90, 0.02, (None, None), "above", "apart"),
        (0.83, 0.02, (None, None), "not_significant", "apart"),
        (0.70, 0.02, (None, None), "below", "apart"),
        (0.90, 0.02, (1.4, None), "above", "apart"),
        (0.83, 0.02, (1.4, None), "not_significant", "apart"),
    ],
)
def test_what_may_be_said_against_the_teacher(score, half, gap, verdict, by):
    given = summary({"scd": score}, half=half, gap=gap)
    claim = against_teacher(given["recipes"][0], "scd", "score", given["cells"])
    assert (claim.verdict, claim.by, claim.rows_only) == (verdict, by, False)


def test_a_gap_closed_that_rests_on_one_seed_says_so():
    given = summary({"sft": 0.7, "scd": 0.9}, gap=(1.4, 2.6))
    given["recipes"][0]["methods"]["scd"]["gap_closed"]["from"] = "sft"
    given["cells"] = [cell for cell in given["cells"] if cell["method"] == "scd" or cell["seed"] == 0]
    assert against_teacher(given["recipes"][0], "scd", "score", given["cells"]).rows_only


def test_the_baseline_closes_nothing_of_its_own_gap(read):
    given = summary({"sft": 0.7, "scd": 0.9})
    given["recipes"][0]["methods"]["sft"]["gap_closed"] = None
    page = read(given)
    assert "the baseline" in page.text and "no gap" not in page.text


def test_one_seed_claims_nothing_about_methods(read):
    page = read(summary({"td": 0.7, "scd": 0.9}, p=0.001, seeds=1))
    assert "With one seed in common, validation chooses scd: more seeds are needed for a result." in " ".join(
        headline(page).split()
    )
    assert "on these rows it differs significantly from td after Holm" in page.text
    assert (
        "beats its teacher" not in page.text
        and "on these rows this one trained student is better than its teacher" in page.text
    )
    assert "for td train at least three seeds" in page.text
    assert "0.900* [0.880, 0.920]" in page.text


def test_validation_may_choose_what_test_does_not_put_first(read):
    given = summary({"td": 0.9, "scd": 0.7}, p=0.004)
    methods = given["recipes"][0]["methods"]
    for key in ("score", "nll"):
        given["recipes"][0]["best"][key] = "scd"
        methods["td"][f"{key}_against_best"] = methods["scd"].pop(f"{key}_against_best") | {"best": "scd"}
        methods["td"][f"{key}_against_best"]["difference"] = interval(0.2 if key == "score" else -0.2, 0.02)
    page = read(given)
    assert "Validation chooses scd; on test it is not significantly better than all others." in headline(page)
    assert page.text.count("rank 2 of 2 on test") == 2
    assert page.text.count("td is significantly better on test, which validation did not show") == 2
    assert "The difference from td" not in page.text and "differs significantly from none" not in page.text
    assert standing(methods, "nll", "scd").having("ahead") == ["td"]


def test_choices_by_score_and_by_loss_differ(read):
    given = summary({"td": 0.79, "scd": 0.8})
    methods = given["recipes"][0]["methods"]
    given["recipes"][0]["best"]["nll"] = "td"
    methods["td"]["nll_rank"], methods["scd"]["nll_rank"] = 1, 2
    methods["scd"]["nll_against_best"] = methods["td"].pop("nll_against_best") | {"best": "td"}
    assert (
        "Validation chooses scd by score, td by loss; neither is significantly better than all others on test."
        in " ".join(headline(read(given)).split())
    )


def test_no_seed_in_common_is_not_a_win(read):
    given = summary({"td": 0.7, "scd": 0.9}, p=0.001)
    for key in ("score", "nll"):
        del given["recipes"][0]["methods"]["td"][f"{key}_against_best"]
    page = read(given)
    assert "on test it is not significantly better than all others" in headline(page)
    assert "td has no seed in common with it and is not tested" in page.text


# --- its parts ---


def test_every_part_is_there(read):
    effects = {"score": (0.03, -0.03, 0.0), "nll": (-0.03, 0.0, 0.05)}
    page = read(summary({"td": 0.75, "td-aw": 0.7, "scd": 0.8, "scd-aw": 0.72}, effects=effects))
    assert page.sections == ["verdict", "scores", "effects", "split", "predictions", "notes"]
    assert "helps, by score and by loss" in page.text
    assert "hurt by score; by loss the effect is not significant" in page.text
    assert "gain less than the sum of both by loss; by score the effect is not significant" in page.text
    assert "+0.030 [+0.020, +0.040]" in page.text and "1 min 01 s" in page.text
    assert "5 of 6 students" in page.text and "not significantly better" in page.text


def test_fractions_of_the_gap(read):
    given = summary({"td": 0.75, "scd": 0.8}, gap=(0.6, 1.4))
    given["recipes"][0]["methods"]["td"]["gap_closed"]["share"] = None
    page = read(given)
    assert "100 % [60 %, 140 %]" in page.text and "no gap" in page.text


def test_several_data_sets(read):
    page = read(both(summary({"td": 0.75, "scd": 0.9}, p=0.001), summary({"scd": 0.75, "td": 0.76}, name="law")))
    assert page.sections == [
        "verdict-1",
        "scores-1",
        "split-1",
        "verdict-2",
        "scores-2",
        "split-2",
        "predictions",
        "ranks",
        "notes",
    ]
    assert "2 data sets" in page.text and "Mean rank" in page.text
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("#")}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert links >= {"#data-1", "#data-2"} and {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids))


def test_failed_cells_are_listed_with_the_first_line_of_their_error(read):
    page = read(summary({"td": 0.75, "scd": 0.8}) | {"failed": [FAILED, FAILED | {"error": None}]})
    assert "2 students failed" in page.text and "RuntimeError: no room" in page.text and "at x" not in page.text
    assert "no message" in page.text


def test_nothing_but_failed_cells(read):
    page = read(NOTHING | {"failed": [FAILED]})
    assert page.sections == ["verdict", "failed"]
    assert "No student has a result yet" in page.text
    assert read(NOTHING).sections == ["verdict"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_method_alone(read, seeds):
    page = read(summary({"scd": 0.83}, seeds=seeds))
    assert "One method, scd: nothing to compare it with." in headline(page)
    assert "For a significant result" not in page.text


def test_without_validation_losses_and_with_several_teachers(read):
    given = summary({"td": 0.75, "scd": 0.8}) | {"validation_foretells_test": {}}
    for cell in given["cells"]:
        cell["validation"], cell["teacher_seed"] = None, cell["seed"] % 2
    page = read(given)
    assert "predictions" not in page.sections and "split" in page.sections
    assert "scd, seed 1, teacher seed 1: not won" in page.text


def test_another_title(read):
    page = read(summary({"scd": 0.8}), title="Ward <7>")
    assert "Ward <7>" in page.text and "<7>" not in page.source


# --- safe, reachable, self-contained ---


@pytest.fixture
def hostile(read):
    given = summary({INJECTION: 0.9, MARKUP: 0.75, "td": 0.7}, name=INJECTION, needed=("rows_too_few", None))
    failed = [FAILED | {"method": INJECTION, "recipe": MARKUP, "error": INJECTION + MARKUP}]
    return read(both(given, summary({INJECTION: 0.8}, name=MARKUP)) | {"failed": failed}, title=INJECTION)


def test_text_from_data_is_inert(hostile):
    assert not [tag for tag, _ in hostile.tags if tag in ("script", "img", "iframe", "object", "embed", "base", "form")]
    assert not [name for _, attrs in hostile.tags for name in attrs if name.startswith("on")]
    assert INJECTION in hostile.text and "{{ 7 * 7 }}" in hostile.text


def test_nothing_is_loaded(hostile):
    links = {attrs.get("href") for tag, attrs in hostile.tags if tag == "a"}
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2601.10114"}
    assert not [
        name for _, attrs in hostile.tags for name in attrs if name in ("src", "srcset", "xlink:href", "poster", "data")
    ]
    assert not [tag for tag, _ in hostile.tags if tag == "link"]
    assert "url(" not in hostile.source and "@import" not in hostile.source


def test_tables_and_charts_are_accessible(read):
    page = read(
        summary(
            {"td": 0.75, "td-aw": 0.7, "scd": 0.8, "scd-aw": 0.72},
            effects={key: (0.1, 0.1, 0.1) for key in ("score", "nll")},
        )
    )
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    assert not [attrs for tag, attrs in page.tags if tag == "th" and "scope" not in attrs]
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and "chart" in (attrs.get("class") or "")]
    assert len(charts) >= 4
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in charts)
    assert {"role": "region", "tabindex": "0"}.items() <= next(
        attrs for _, attrs in page.tags if attrs.get("class") == "scroll"
    ).items()


def test_a_method_far_away_does_not_compress_the_axis(read):
    page = read(summary({"a": 0.80, "b": 0.79, "c": 0.78, "d": 0.77, "lost": 0.02}))
    assert "◂ off the scale" in page.text and "off the scale ▸" in page.text


def test_an_interval_beyond_the_range_of_a_score_is_cut():
    from tutelage.records import Interval
    from tutelage.report.charts import forest

    (line,) = forest({"a": Interval(0.9, 0.4, 1.4)}, floor=0.0, ceiling=1.0)["lines"]
    assert line["cut_high"] and not line["cut_low"] and line["high"] == 99 and line["low"] > 1


def test_torch_is_not_imported(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(NOTHING), encoding="utf-8")
    code = "import json, sys; from pathlib import Path; from tutelage.compare.summary.page import write_page"
    code += f"; p = Path({str(tmp_path)!r}); write_page(json.loads((p / 'summary.json').read_text()), p / 'index.html')"
    code += "; assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["index.html", "summary.json"]


def with_baseline(value, half, p, *, seeds=3):
    made = summary({"scd": 0.78, "td": 0.76}, seeds=seeds)
    needed = {"verdict": "settled", "total": seeds, "more": 0}
    difference = interval(value - 0.78, half, once=seeds == 1)
    test = {"best": "scd", "difference": difference, "test": "crossed_t", "p_value": p, "p_holm": p}
    found = {"score": interval(value, 0.03, once=True), "score_against_best": {**test, "seeds_needed": needed}}
    made["recipes"][0]["text_baseline"] = found
    return made


@pytest.mark.parametrize(
    ("value", "p", "seeds", "words", "in_headline"),
    [
        (0.90, 0.001, 3, "it is significantly better ( +0.120 [+0.080, +0.160] , p 0.001)", True),
        (0.70, 0.001, 3, "it is significantly worse ( −0.080 [−0.120, −0.040] , p 0.001)", False),
        (0.79, 0.6, 3, "the difference is not significant ( +0.010 [−0.030, +0.050] , p 0.600)", False),
        (0.90, 0.001, 1, "on these rows it is better than this one trained student; other seeds may differ", False),
    ],
)
def test_the_page_says_how_the_chosen_method_does_against_the_baseline(read, value, p, seeds, words, in_headline):
    page = read(with_baseline(value, 0.04, p, seeds=seeds))
    assert words in page.text and f"TF-IDF and logistic regression {value:.3f}* [" in page.text
    assert ("TF-IDF with logistic regression, without a language model" in page.text) == in_headline


def test_a_page_without_the_baseline_does_not_name_it(read):
    assert "TF-IDF" not in read(summary({"scd": 0.78, "td": 0.76})).text
