"""Sections of the report on size, slices, weights, training, calibration, cascade and effects, with numbers derived by
hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.fake_run import INJECTION, Page, make_fake_run, write
from tutelage.analysis.run_results import read_lines, read_results
from tutelage.report.charts import cascade_chart, curves, reliability_diagram
from tutelage.report.page import slice_value
from tutelage.report.sections_slices import slice_table
from tutelage.run.manifest import folder_fingerprint
from tutelage.stages.diagnose import diagnose
from tutelage.stages.report import build_report, inputs
from tutelage.utils.files import write_jsonl

MAIN = "scd-aw/seed-0"


def measured(difference: float, *, p_holm: float | None = None, rest: float | None = None, **more: object) -> dict:
    """One measure of a slice; rest: its corrected p-value against the other rows."""
    record = {"student": 0.5 + difference, "teacher": 0.5, "difference": difference, "low": difference - 0.1}
    against = {
        "difference": difference,
        "low": difference - 0.2,
        "high": difference + 0.2,
        "p_value": 0.5,
        "p_holm": rest,
    }
    record |= {
        "high": difference + 0.1,
        "wins": 7,
        "losses": 3,
        "p_value": 0.5,
        "p_holm": p_holm,
        "against_rest": against,
    }
    return record | more


def one_slice(key: str, value: str | None, score: dict, nll: dict, **more: object) -> dict:
    return {"key": key, "value": value, "rows": 1234, "share": 0.5, "score": score, "nll": nll} | more


def write_diagnosis(run: Path, slices: list[dict], found: list[dict] = (), tried: int = 0, **summary: object) -> None:
    keys = list(dict.fromkeys(line["key"] for line in slices))
    units = {"prompt_length": "tokens", "teacher_loss": "nats a token"}
    partitions = [{"key": key, "unit": units.get(key), "tested": key != "teacher_loss"} for key in keys]
    whole = one_slice("all", None, measured(0.0), measured(0.0))
    pair = {
        "student": MAIN,
        "teacher": "teacher",
        "whole": whole,
        "slices": slices,
        "found": list(found),
        "tried": [{}] * tried,
    }
    write(run / "diagnose" / "slices.json", {"rows": 40, "partitions": partitions, "pairs": [pair]})
    write(run / "diagnose" / "summary.json", {"rows": 40, "notes": [], **summary})


@pytest.fixture
def run(tmp_path) -> Path:
    return make_fake_run(tmp_path, rows=40)


def page_of(run: Path) -> Page:
    return Page(build_report(run, title="t"))


def write_logs(run: Path) -> None:
    for part in ("teach", "anchor"):
        write_jsonl(run / part / "log.jsonl", [{"step": 10 * n, "loss": 1 / n, "ce": 1 / n} for n in range(1, 9)])
    log = [
        {"stage": stage, "step": step, "loss": 1.0, "ce": 2.0 / stage, "kd": 1.0 / step}
        for stage in (1, 2, 3, 4)
        for step in (10, 20)
    ]
    write_jsonl(run / "distill" / MAIN / "log.jsonl", [*log, {"stage": 4, "step": 20, "train_loss": 1.0}])


def write_models(run: Path) -> None:
    """A student of 1,000 parameters and a teacher of 4,000, scored in 0.06 and 0.12 s; 40 test rows."""
    for folder, size in (("distill/scd-aw/seed-0", 1000), ("teach/checkpoint-360", 4000)):
        (run / folder).mkdir(parents=True, exist_ok=True)
        save_file({"w": np.zeros(size, np.float32)}, run / folder / "model.safetensors")
    for model, seconds in ((MAIN, 0.06), ("teacher", 0.12)):
        about = {
            "seconds": 9.0,
            "answering": seconds,
            "finished": "2026-01-01",
            "versions": {},
        }  # loading takes most of the 9 s
        write(run / "evaluate" / model / "manifest.json", about)


def test_a_diagnosed_run_has_every_section(tmp_path):
    run = make_fake_run(tmp_path, rows=120, confidences=True)
    write_logs(run)
    write_models(run)
    diagnose(run)
    page = page_of(run)
    expected = [
        "verdict",
        "size",
        "where",
        "next",
        "scores",
        "gap",
        "teacher",
        "schedule",
        "split",
        "slices",
        "weights",
        "learning",
        "calibration",
        "cascade",
        "rows",
        "made",
    ]
    assert page.sections == expected  # no effects: no two methods differ in one part alone
    assert "Not in this report" not in page.text
    assert page.text.count(INJECTION) >= 2  # a subdomain is called so
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base", "form")]


def test_size_speed_and_cost(run):
    write_models(run)
    text = page_of(run).text
    assert "Parameters 4.0 times fewer 1 k, teacher 4 k" in text.replace("\u00a0", " ")
    assert "2.0 times as fast 1.5 ms per test row, teacher 3.0 ms" in text.replace("\u00a0", " ")
    assert "Cost per call 0.25 teacher calls" in text


def test_no_gain_in_size_or_speed_is_claimed_without_one(run):
    write_models(run)
    write(run / "evaluate" / MAIN / "manifest.json", {"seconds": 9.0, "answering": 0.2})
    save_file({"w": np.zeros(6000, np.float32)}, run / "distill" / MAIN / "model.safetensors")
    text = page_of(run).text
    assert "Parameters 1.5 times as many" in text and "Weights on disk 1.5 times as large" in text
    assert "times fewer" not in text and "times smaller" not in text
    assert "Speed 0.6 times as fast" in text and "Cost per call 1.50 teacher calls" in text


def test_size_of_deleted_models_is_left_out(run):
    write_models(run)
    (run / "distill" / MAIN / "model.safetensors").unlink()
    page = page_of(run)
    assert "size" in page.sections and "times as fast" in page.text
    assert "times fewer" not in page.text and "Cost of a call" not in page.text


def test_slices_are_sorted_and_marked(run):
    write_diagnosis(
        run,
        [
            one_slice("language", "ja", measured(-0.2), measured(0.3, p_holm=0.01, rest=0.02)),
            one_slice("subdomain", INJECTION, measured(0.25, p_holm=0.05), measured(-0.1, p_holm=0.04)),
            one_slice("prompt_length", "3-17", measured(0.1, p_holm=0.06), measured(-0.1)),
            one_slice("teacher_loss", None, measured(0.0, p_value=None), measured(0.0, p_value=None)),
        ],
    )
    page = page_of(run)
    text = page.text[page.text.rindex("Slices scd-aw") :]
    positions = [text.index(value) for value in (INJECTION, "3–17", "teacher's loss (none)", "language ja")]
    assert positions == sorted(positions)
    assert "on 4 slices of the test rows. After Holm's correction over the 3 tested slices" in text
    assert (
        "significantly better on 1 and significantly worse on 1 . 1 slice differs significantly from the other rows."
        in text
    )
    assert "+0.250 [+0.150, +0.350] −0.100 7 / 3 better in score and loss" in text
    assert "−0.200 [−0.300, −0.100] +0.300 7 / 3 worse in loss worse than elsewhere in loss" in text
    assert "Prompt length: quartiles (tokens)." in text
    assert "Slices by the teacher's loss are not tested" in text
    values = [attrs["data-value"] for tag, attrs in page.tags if tag == "td" and "data-value" in attrs]
    assert values[:4] == ["1234", "0.25", "-0.1", "4"]


def test_slices_start_with_the_losses_if_the_student_mostly_loses(run):
    worse = [
        one_slice("label", name, measured(-gap, p_holm=0.01), measured(0.1))
        for name, gap in (("bad", 0.1), ("worst", 0.4))
    ]
    write_diagnosis(run, worse)
    page = page_of(run)
    text = page.text[page.text.rindex("Slices scd-aw") :]
    assert text.index("worst") < text.index("bad")
    assert [attrs["aria-sort"] for tag, attrs in page.tags if tag == "th" and "aria-sort" in attrs] == ["ascending"]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("teacher_certainty", "1.83e-28-0.817", "0–0.817"),
        ("answer_length", "3-17", "3–17"),
        ("label", "covid-19", "covid-19"),
        ("label", "1e-5", "1e-5"),
        ("prompt_length", None, None),
    ],
)
def test_ranges_are_written_for_readers(key, value, shown):
    assert slice_value(key, value) == shown


def test_intervals_of_slices_are_drawn_whole_or_marked_as_cut(run):
    wide, narrow = measured(-0.1), measured(-0.05)
    wide |= {"low": -0.4, "high": 0.2}
    tiny = one_slice("label", "rare", measured(-0.9) | {"low": -1.0, "high": -0.6}, measured(0.0)) | {"rows": 3}
    slices = [
        one_slice("label", "wide", wide, measured(0.0)),
        one_slice("label", "narrow", narrow, measured(0.0)),
        tiny,
    ]
    write_diagnosis(run, slices)
    bars = {row.value: row.bar for row in slice_table(read_results(run)).rows}
    assert bars["wide"].low == 1 and bars["wide"].high == pytest.approx(74.5)  # 0.4 reaches the border, 0.2 half of it
    assert bars["narrow"].low == pytest.approx(50 - 49 * 0.15 / 0.4, abs=0.01)
    assert [bars[name].cut for name in ("wide", "narrow", "rare")] == [
        False,
        False,
        True,
    ]  # three rows do not squeeze the rest
    assert page_of(run).source.count('class="cut ') == 1


def test_a_slice_without_a_difference_has_a_neutral_mark(run):
    write_diagnosis(run, [one_slice("label", "even", measured(0.0), measured(0.0))])
    slices = page_of(run).source.partition('id="slices"')[2]
    drawn = re.search(r'<td class="balance">(.*?)</td>', slices, re.DOTALL)[1]
    assert "untrained" in drawn and "distilled" not in drawn and "teacher" not in drawn


def test_found_slices_have_their_rule_in_words(run):
    rule = [
        {"what": "contains", "value": "<b>", "holds": False},
        {"what": "characters", "value": "40", "holds": True},
        {"what": "language", "value": "ko", "holds": True},
    ]
    found = [
        one_slice("found", "x", measured(0.1, rest=0.01), measured(0.0), name="x", how="tree", by="score", rule=rule),
        one_slice(
            *("found", "y", measured(0.0), measured(0.2, rest=0.03)),
            name="cluster 4: a, b",
            how="cluster",
            terms=["a", "b"],
            by="nll",
            rule=[],
        ),
    ]
    write_diagnosis(run, [], found, tried=10)
    text = page_of(run).text
    assert "Significant after Holm's correction: 2 of 10" in text
    assert "does not contain “<b>” at least 40 characters language is ko" in text
    assert "better than elsewhere in score +0.100 [−0.100, +0.300]" in text
    assert "similar prompts, frequent words: a, b" in text and "worse than elsewhere in loss +0.200" in text
    write_diagnosis(run, [], [], tried=10)
    assert "Significant after Holm's correction: none of 10" in page_of(run).text


def test_known_slices_are_shown_without_a_diagnosis_of_the_main_student(run):
    write_diagnosis(run, [])
    path = run / "diagnose" / "slices.json"
    path.write_text(path.read_text(encoding="utf-8").replace(MAIN, "td/seed-0"), encoding="utf-8")
    assert "By language" in page_of(run).text


def test_weights_by_slice_and_rows_with_extreme_weights(run):
    lines = [
        {"id": f"t{n}", "stage": stage, "checkpoint": "c", "anchor_nll": 0.1 * n, "teacher_nll": 0.5, "weight": weight}
        for stage, weights in ((3, [0.99] * 10), (4, [0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.55]))
        for n, weight in enumerate(weights)
    ]
    write_jsonl(run / "distill" / MAIN / "weights.jsonl", lines)
    about = [
        {
            "id": f"t{n}",
            "split": "train",
            "prompt": [{"role": "user", "content": f"ask {n} {INJECTION}"}],
            "answer": f"gold {n}",
        }
        for n in range(10)
    ]
    rows = [json.loads(line) for line in (run / "prepare/rows.jsonl").open(encoding="utf-8")]
    write_jsonl(
        run / "prepare/rows.jsonl",
        [row for row in rows if row["split"] == "test"] + [one | {"language": None} for one in about],
    )
    by_slice = [{"key": "language", "value": "ko", "rows": 7, "by_stage": {"3": 0.4, "4": 0.2}}]
    write_diagnosis(run, [], training={"students": {MAIN: {"weights": by_slice}}})
    text = page_of(run).text
    assert "language ko 7 0.300 0.400 0.200" in text
    ends = text[text.index("Training rows with the highest") : text.rindex("Learning curves")]
    assert [n for n in range(10) if f"ask {n} " in ends] == [1, 2, 3, 4, 5, 6, 7, 8]  # not 0.5 and 0.55
    order = [ends.index(f"ask {n} ") for n in (8, 7, 6, 5, 4, 3, 2, 1)]
    assert order == sorted(order) and "gold 8 0.8000 0.5000 0.900" in ends
    assert ends.index("Lowest weights") < ends.index("ask 4 ")


def test_constant_weights_have_no_extreme_rows(run):
    (run / "distill" / MAIN / "weights.jsonl").unlink()
    path = run / "distill/td/seed-0/weights.jsonl"
    lines = [json.loads(line) | {"anchor_nll": None} for line in path.open(encoding="utf-8")]
    write_jsonl(path, lines)
    assert "Training rows with the highest" not in page_of(run).text


def test_learning_curves(run):
    write_logs(run)
    text = page_of(run).text
    assert "cross-entropy on gold answers, last 0.500" in text and "divergence from the checkpoint, last 0.050" in text
    assert "teacher: cross-entropy on gold answers, last 0.125" in text
    assert "4, kept" in text


def test_curves_are_drawn_on_a_logarithmic_axis():
    chart = curves({"ce": [(0, 1.0), (50, 10.0), (100, 100.0)]}, [50], height=100, most=10)
    points = [tuple(map(float, point.split(","))) for point in chart["lines"]["ce"].split()]
    assert [x for x, _ in points] == [0, 50, 100]
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.1)  # 10 lies midway between 1 and 100
    assert min(y for _, y in points) > 16  # the names of the stages stand above all lines
    assert chart["borders"] == [50] and chart["middles"] == [25, 75]
    assert [tick.text for tick in chart["ticks"]] == ["1", "10", "100"]
    assert len(curves({"ce": [(n, 1 + n) for n in range(1000)]}, [], height=100, most=40)["lines"]["ce"].split()) == 40


def test_calibration(run):
    accuracy = {"value": 0.5, "low": 0.2, "high": 0.8}
    bins = [{"low": 0.8, "high": 0.9, "rows": 10, "confidence": 0.85, "accuracy": accuracy}]
    measured = {"from": "confidence", "rows": 10, "accuracy": 0.5, "confidence": 0.85, "ece": 0.35, "brier": 0.3}
    measured |= {"auroc": None, "bins": bins}
    student, teacher = measured | {"ece_by_chance": 0.1}, measured | {"ece_by_chance": 0.4}
    write_diagnosis(run, [], calibration={MAIN: student, "teacher": teacher, "anchor": None})
    text = page_of(run).text
    assert "0.500 0.850 0.350 0.100 0.300 – overconfident" in text
    assert "0.400 0.300 – no significant miscalibration" in text
    assert "recorded no confidences" not in text


@pytest.mark.parametrize("record", [None, {"from": "gold", "rows": 40, "accuracy": 0.8}])
def test_without_confidences_calibration_and_cascade_are_missing_with_a_reason(run, record):
    by_prompt = cascade(0.5, 0.5) | {"signal": "prompts"}
    write_diagnosis(run, [], calibration={MAIN: record, "teacher": record}, cascades={MAIN: by_prompt})
    page = page_of(run)
    assert not {"calibration", "cascade"} & set(page.sections)
    assert page.text.count("evaluate recorded no confidences. tutelage evaluate RECIPE --force scores") == 1


def test_positions_of_marks_in_a_reliability_diagram():
    bins = [
        {"rows": 4, "confidence": 1.0, "accuracy": {"value": 1.0, "low": 0.5, "high": 1.0}},
        {"rows": 1, "confidence": 0.5, "accuracy": {"value": 0.0, "low": 0.0, "high": 0.5}},
    ]
    first, second = reliability_diagram(bins, height=106)["points"]
    assert (first["x"], first["y"], first["low"], first["r"]) == (98, 6, 56, 9)
    assert (second["x"], second["y"], second["high"]) == (49, 106, 56)
    assert second["r"] == 5.8  # 2.5 + 6.5 * sqrt(1/4) = 5.75


def cascade(level: float | None, surely: float | None, cost: float | None = 0.2) -> dict:
    shares = (0.0, 0.5, 1.0)
    points = [
        {
            "share": share,
            "threshold": None,
            "score": 0.8 + share / 10,
            "perfect": 0.9,
            "against_teacher": {"value": share / 10 - 0.1, "low": share / 10 - 0.15, "high": share / 10 - 0.05},
            "cost": None if cost is None else cost + share,
        }
        for share in shares
    ]
    return {"signal": "confidence", "student_cost": cost, "points": points, "level": level, "surely_level": surely}


@pytest.mark.parametrize(
    ("level", "surely", "words"),
    [
        (
            None,
            None,
            [
                "Only with all rows passed on does the score reach the teacher's 0.900",
                "At no fraction is the lower end",
            ],
        ),
        (
            0.0,
            0.5,
            ["The student alone already reaches", "With 50 % , the lower end of the 95 %", "costs 0.70 teacher calls"],
        ),
        (
            0.5,
            0.0,
            ["With 50 % of the rows passed on, the score", "Without passing on any row", "costs 0.20 teacher calls"],
        ),
    ],
)
def test_a_cascade_in_words(run, level, surely, words):
    write_diagnosis(run, [], cascades={MAIN: cascade(level, surely)})
    text = page_of(run).text.replace("\u00a0", " ").replace("\u202f", " ")
    for sentence in words:
        assert sentence in text


def test_a_cascade_of_unknown_cost(run):
    write_diagnosis(run, [], cascades={MAIN: cascade(0.5, 0.5, cost=None)})
    text = page_of(run).text
    assert "teacher calls" not in text and "cost per row" not in text and "50 %" in text


def test_values_of_cascade_marks_stand_above_the_chart_where_no_line_is(run):
    write_diagnosis(run, [], cascades={MAIN: cascade(0.0, 0.5)})
    page = page_of(run)
    assert "0 % : 0.800 50 % : 0.850" in page.text.replace("\u00a0", " ") or "0 %: 0.800 50 %: 0.850" in page.text
    drawn = page.source.partition('id="cascade"')[2].partition("</figure>")[0]
    assert "0.850</text>" not in drawn and "0.800</text>" not in drawn


def test_cascade_chart_places_the_teacher_at_its_score():
    chart = cascade_chart(cascade(0.5, None)["points"], [0.5], height=200)
    last = float(chart["line"].split()[-1].split(",")[1])
    assert chart["teacher"] == pytest.approx(last, abs=0.1) and chart["marks"][0]["x"] == 50
    assert chart["marks"][0]["text"] == "0.850" and len(chart["band"].split()) == 6


def test_effects(run):
    difference = {"plain": 0.7, "changed": 0.8, "difference": 0.1, "low": 0.02, "high": 0.18, "p_value": 0.01}
    kinds = {
        name: {"count": count, "ids": []} for name, count in (("kept", 5), ("lost", 2), ("gained", 4), ("missed", 1))
    }
    one = {
        "effect": "schedule",
        "plain": "td",
        "changed": "scd",
        "seeds": [0, 1],
        "score": difference,
        "nll": difference,
    }
    weighting = one | {"effect": "weighting", "plain": "scd", "changed": "scd-aw", "rows": kinds}
    write_diagnosis(run, [], effects=[one, weighting])
    text = page_of(run).text
    weighed, scheduled = "adaptive weights scd → scd-aw 2 +0.100 [+0.020, +0.180]", "schedule td → scd 2 +0.100"
    assert weighed in text and "5 / 2 4 / 1" in text and text.index(weighed) < text.index(scheduled)


@pytest.mark.parametrize(
    "name", ["diagnose/summary.json", "teach/log.jsonl", f"distill/{MAIN}/log.jsonl", "recipe.yaml"]
)
def test_the_page_is_stale_when_its_inputs_change(run, name):
    write_logs(run)
    write_diagnosis(run, [])
    before = inputs(run)
    assert inputs(run) == before
    with (run / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert inputs(run) != before


def test_results_without_a_diagnosis_are_empty(tmp_path):
    results = read_results(tmp_path)
    assert results.slices == {} and results.summary == {}


def write_export(run: Path, precision: str, difference: tuple[float, float, float], student: str = MAIN) -> None:
    """What `tutelage export --verify` leaves in a run."""

    def served(runtime: str, size: int, value: float, milliseconds: float) -> dict:
        return {
            "runtime": runtime,
            "versions": {},
            "scores": {"accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05}},
            "bytes": size,
            "loading_seconds": 1.0,
            "row_ms": {"median": milliseconds, "p90": 2 * milliseconds},
            "row_ms_together": milliseconds / 4,
            "peak_memory": 3 * size,
        }

    record = {
        **{"model": student, "student": folder_fingerprint(str(run / "distill" / student))},
        **{"format": "gguf", "precision": precision, "threads": 1, "rows": 40, "at_once": 32, "metric": "accuracy"},
        **{"original": served("transformers", 200_000_000, 0.8, 400.0), "row_metric": "accuracy"},
        **{"exported": served("llama.cpp", 50_000_000, 0.75, 80.0), "same_answers": 38},
        "difference": dict(zip(("value", "low", "high"), difference, strict=True)),
    }
    write(run / "export" / student / f"gguf-{precision}.json", record)


def test_a_verified_export_is_on_the_page_with_what_was_measured(run):
    write_models(run)
    before = inputs(run)
    write_export(run, "q8_0", (-0.02, -0.06, 0.02))
    assert inputs(run) != before, "the next `tutelage report` writes the page anew"
    page = page_of(run)
    assert page.sections.index("deploy") == page.sections.index("scores") + 1
    text = page.text.replace("\u00a0", " ")
    assert "What you deploy gguf q8_0" in text and f"{MAIN} and its exports answered the same 40 test rows" in text
    student = "Student transformers 0.800 [0.750, 0.850] – 100 % 200 MB 400 ms 100 ms 600 MB"
    export = "gguf q8_0 llama.cpp 0.750 [0.700, 0.800] −0.020 [−0.060, +0.020] 95 % 50 MB 80 ms 20 ms 150 MB"
    assert student in text and export in text
    assert "No export scores significantly less than the student." in text


def test_an_export_that_lost_score_is_named_and_one_of_another_student_is_not(run):
    write_models(run)
    write_export(run, "q4_0", (-0.1, -0.15, -0.05))
    text = page_of(run).text
    assert "gguf q4_0 scores significantly less than the student." in text and "No export scores" not in text
    save_file({"w": np.ones(1000, np.float32)}, run / "distill" / MAIN / "model.safetensors")  # trained again
    assert "deploy" not in page_of(run).sections


def test_the_two_parts_of_the_rows_add_up_as_they_are_shown(tmp_path):
    run = make_fake_run(tmp_path, rows=400)
    path = run / "evaluate/predictions.jsonl"
    lines = read_lines(path)
    teacher = {line["id"]: line["nll"] for line in lines if line["model"] == "teacher"}
    for place, line in enumerate(line for line in lines if line["model"] == MAIN):
        line["nll"] = teacher[line["id"]] + (-0.1 if place < 83 else 0.1)
    write_jsonl(path, lines)
    page = build_report(run, title="t").read_text(encoding="utf-8")
    table = re.search(r'<section id="split">.*?</table>', page, re.S)[0]
    shown = re.findall(r'<th scope="row".*?</th>\s*<td class="n">(.*?)</td>\s*<td class="n">(.*?)</td>', table, re.S)
    assert ("0.207", "0.793") in shown  # 83 and 317 of 400 rows; 0.7925 alone is rounded to 0.792
    assert [round(float(sfs) + float(tfs), 6) for sfs, tfs in shown] == [1.0] * len(shown)
