"""The first screens of the report: no claim that may be chance, slices that mean something, what to do next; and the
layout in a browser, folded sections included."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_run import Page, make_fake_run, write
from report.test_report_page import CHROMIUM, in_browser
from report.test_sections import MAIN, cascade, measured, one_slice, write_diagnosis, write_logs, write_models
from tutelage.analysis.run_results import read_results
from tutelage.records import Interval
from tutelage.report.charts import line_chart
from tutelage.report.sections_confidence import cascade as cascade_section
from tutelage.report.sections_run import next_steps
from tutelage.report.sections_scores import OverBaseline, verdict
from tutelage.report.sections_slices import Outcomes, outcomes, slice_table
from tutelage.run.manifest import folder_fingerprint
from tutelage.stages.diagnose import diagnose
from tutelage.stages.report import build_report
from tutelage.utils.files import write_jsonl
from tutelage.utils.format import span


def scored_run(folder: Path, **right: np.ndarray) -> Path:
    """A run whose models are right on these rows. right: [rows] booleans by model, `student` for the distilled one."""
    models, lines = {}, []
    for name, column in right.items():
        model = MAIN if name == "student" else name
        level = float(column.mean())
        models[model] = {"accuracy": {"value": level, "low": level - 0.02, "high": level + 0.02}}
        lines += [
            {"id": str(n), "model": model, "split": "test", "gold": "a", "raw": "a", "prediction": "a",
             "score": float(r), "nll": None}
            for n, r in enumerate(column)
        ]  # fmt: skip
    head = {"task": "classification", "metric": "accuracy", "split": "test", "rows": len(next(iter(right.values())))}
    write(folder / "evaluate" / "scores.json", {**head, "models": models})
    write_jsonl(folder / "evaluate" / "predictions.jsonl", lines)
    return folder


def first_screens(run: Path) -> str:
    return Page(build_report(run, title="t")).text.partition("Details")[0]


def test_no_fraction_is_named_of_a_gap_that_may_be_chance(tmp_path):
    # The teacher is right on 720 rows, the anchor on 700, but on 280 and 300 of them alone: +0.02 +- 0.05. The student
    # is right on all of the anchor's rows and 30 more, which is sure; 150 % of the gap would be a number of chance.
    rows = np.arange(1000)
    run = scored_run(tmp_path, teacher=(rows >= 300) | (rows < 20), anchor=rows < 700, student=rows < 730)
    text = first_screens(run)
    assert "The student is significantly better than plain fine-tuning" in re.sub(r"\s+", " ", text)
    assert "may be chance" in text and "150 %" not in text


def test_no_fraction_is_named_of_a_gain_that_may_be_chance(tmp_path):
    rows = np.arange(1000)
    student = np.roll(rows < 702, 1)
    text = first_screens(scored_run(tmp_path, teacher=rows < 900, anchor=rows < 700, student=student))
    assert "No significant gain" in text and "of the gap" not in text


def test_each_score_stands_once_above_the_details(tmp_path):
    run = make_fake_run(tmp_path, rows=120)
    models = json.loads((run / "evaluate/scores.json").read_text())["models"]
    text = first_screens(run)
    for name, table in models.items():
        assert text.count(span(Interval(**table["accuracy"]))) == 1, name
        assert name in text  # as the terminal prints it


def test_rows_are_divided_by_who_is_right(tmp_path):
    rows = np.arange(10)
    run = scored_run(tmp_path, teacher=rows < 6, student=(rows >= 2) & (rows < 7))
    assert outcomes(read_results(run)) == Outcomes(rows=10, both=4, student=1, teacher=2, equal=0, neither=3)
    text = first_screens(run)
    assert "Both right 4 Student better 1 Teacher better 2 Both wrong 3" in text and "Equal in between" not in text


def sized(value: str, rows: int, difference: float, wide: float = 0.1, key: str = "label", **more: object) -> dict:
    ends = {"low": difference - wide, "high": difference + wide}
    return one_slice(key, value, measured(difference, **more) | ends, measured(0.0)) | {"rows": rows}


def test_the_first_slices_are_large_and_the_surest_come_first(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    sure = sized("sure", 20, 0.2, 0.1, p_holm=0.01)  # from +0.1
    large = sized("large", 90, 0.3, 0.4)  # from -0.1
    small = sized("small", 19, 0.9)
    made = sized("made", 90, 0.9, key="teacher_loss")  # chosen by the losses: not tested
    others = [sized(f"worse {n}", 20 + n, -0.01 * n) for n in range(8)]
    write_diagnosis(run, [large, small, made, sure, *others])
    table = slice_table(read_results(run))
    assert [row.value for row in table.first["student"]] == ["sure", "large"]
    assert [row.value for row in table.first["teacher"]] == [f"worse {n}" for n in (7, 6, 5, 4, 3)]
    assert [row.value for row in table.small] == ["small"]
    assert table.first["student"][1].bar.high == 99  # +0.7 is the border of their own axis
    page = Page(build_report(run, title="t"))
    above, _, below = page.text.partition("Details")
    assert "label sure significant 20 +0.200 [+0.100, +0.300]" in above and "label large 90" in above
    assert "small" not in above and "Slices of fewer than 20 rows: 1" in below and "label small 19" in below


def test_the_page_says_why_an_interval_without_0_has_no_mark(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    write_diagnosis(run, [sized("clear", 30, 0.3, p_value=0.01, p_holm=0.2), sized("dull", 30, 0.0, p_value=0.9)])
    text = first_screens(run)
    assert "label clear 30 +0.300 [+0.200, +0.400]" in re.sub(r"\s+", " ", text)
    assert "corrected for all 2 tested slices (Holm)" in text and "even if its interval does not contain 0" in text


@pytest.mark.parametrize("lang", ["en", "ko", "ja"])
def test_no_line_of_the_headline_breaks_inside_a_name(tmp_path, lang):
    rows = np.arange(1000)
    run = scored_run(tmp_path, teacher=rows < 900, anchor=rows < 700, student=rows < 800)
    scores = json.loads((run / "evaluate/scores.json").read_text())
    lost = {"value": -0.1, "low": -0.15, "high": -0.05, "p_value": 0.001}
    write(run / "evaluate/scores.json", scores | {"against_baseline": {MAIN: lost}})
    source = build_report(run, title="t", lang=lang).read_text(encoding="utf-8")
    headline = re.search(r'<h2 class="headline">.*?</h2>', source, re.S)[0]
    assert '<span class="nb">TF-IDF</span>' in headline


def test_a_page_without_wins_says_so(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    write_diagnosis(run, [sized("worse", 30, -0.2)])
    assert "On no slice is the student's score higher." in first_screens(run)


LEAD = {"ahead": Interval(0.1, 0.05, 0.15), "level": Interval(0.0, -0.05, 0.05), "behind": Interval(-0.1, -0.15, -0.05)}


@pytest.mark.parametrize(
    ("outcome", "over_teacher", "steps"),
    [
        ("teacher_nothing", "level", ["teacher"]),
        ("unreadable", "behind", ["invalid"]),
        ("student_nothing", "behind", ["student"]),
        ("beats", "ahead", ["use", "deploy", "share"]),
        ("closes", "behind", ["use", "cascade", "deploy", "unlabelled", "share"]),
        ("unclear", "level", ["seeds", "use", "deploy"]),
        ("plain", "level", ["seeds", "use", "deploy"]),
        ("worse", "behind", ["anchor", "cascade", "unlabelled"]),
        ("partial", "level", ["use", "deploy"]),
    ],
)
def test_next_steps_follow_from_the_verdict(tmp_path, outcome, over_teacher, steps):
    run = make_fake_run(tmp_path, rows=40)
    points = cascade(None, 0.5)
    points["points"][1]["threshold"] = 0.9876543
    write_diagnosis(run, [], cascades={MAIN: points})
    results = read_results(run)
    said = replace(verdict(results), outcome=outcome, over_teacher=LEAD[over_teacher])
    found = next_steps(results, said, cascade_section(results), stalled=False)
    assert [step.what for step in found] == steps
    commands = {step.what: step.command for step in found}
    assert commands.get("cascade", "--defer-below 0.987654").endswith("--defer-below 0.987654")
    assert commands.get("seeds") in (None, "tutelage compare 'runs/my demo' --methods sft,scd-aw --seeds 3")
    assert commands.get("anchor", "--model anchor").endswith("--model anchor")
    services = {step.what: step.service for step in found if step.service}
    assert services.get("cascade") in (None, "tutelage serve 'runs/my demo' --defer-below auto")
    assert services.get("anchor") in (None, "tutelage serve 'runs/my demo' --model anchor")
    assert services.keys() == {"cascade", "anchor"} & set(steps)
    stalled = next_steps(results, said, None, stalled=True)
    assert ("stall" in [step.what for step in stalled]) == (len(steps) > 1 or outcome == "partial")


def test_a_better_baseline_comes_first_and_nothing_is_advised_without_a_student(tmp_path):
    results = read_results(make_fake_run(tmp_path, rows=40))
    worse = OverBaseline(Interval(-0.1, -0.2, -0.05), 0.001, "worse")
    steps = next_steps(results, replace(verdict(results), over_baseline=worse), None, stalled=False)
    assert steps[0].what == "baseline" and next_steps(results, None, None, stalled=True) == []


def test_the_student_is_exported_and_then_served(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    results = read_results(run)

    def deployment(gguf: str | None) -> dict[str, str | None]:
        steps = next_steps(results, verdict(results), None, stalled=False, gguf=gguf)
        return {step.what: step.command for step in steps if step.what in ("export", "serve", "deploy")}

    export = "tutelage export 'runs/my demo' --to gguf --quantize q8_0 --verify 'runs/my demo'"
    assert deployment("q8_0") == {"export": export}
    assert deployment(None) == {"deploy": None}
    assert "docs/deploy.md" in first_screens(run)  # nothing tells what the student is
    write(run / "export" / MAIN / "gguf-q8_0.json", {"student": folder_fingerprint(str(run / "distill" / MAIN))})
    assert deployment("q8_0") == {"serve": "tutelage serve 'runs/my demo'"}


@pytest.mark.parametrize(
    ("values", "sides"),
    [
        (
            [0.1, 0.5, 0.9],
            [("middle", "below"), ("end", "above"), ("middle", "above")],
        ),  # a line that rises
        ([0.9, 0.5, 0.1], [("middle", "above"), ("start", "above"), ("middle", "below")]),
        ([0.5, 0.0, 0.5], [("middle", "above"), ("middle", "below"), ("middle", "above")]),  # 0 is a lowest point
        ([0.3, 0.3], [("middle", "above"), ("middle", "above")]),
        ([0.0], [("middle", "above")]),
    ],
)
def test_values_stand_where_no_line_runs(values, sides):
    labels = line_chart(values, [False] * len(values), floor=0.0)["labels"]
    assert [(label.anchor, "below" if label.dy > 0 else "above") for label in labels] == sides


# --- in a browser ---


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    run = make_fake_run(tmp_path_factory.mktemp("run"), rows=120, confidences=True)
    write_logs(run)
    write_models(run)
    diagnose(run)
    return build_report(run, title="Clinic").read_text(encoding="utf-8")


LAYOUT = """
await until(() => one("iframe").contentDocument.querySelector("footer"));
await until(() => one("iframe").contentDocument.readyState === "complete");
const view = one("iframe").contentWindow, page = view.document, found = (query) => [...page.querySelectorAll(query)];
await pause();
out.closed = found("details.fold").every((fold) => !fold.open);
out.height = page.documentElement.scrollHeight;
for (const fold of found("details")) fold.open = true;
await until(() => page.querySelector(".canvas [role=row]"));
await pause();
out.rows = found(".canvas [role=row]").length;
out.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
out.scrolls = found(".scroll:not(pre)").filter((box) => box.scrollWidth > box.clientWidth).length;
out.beyond = found("main td, main th, .rung > *").filter((cell) => !cell.closest("thead")
  && cell.getBoundingClientRect().right > view.innerWidth).length;
const lines = (element) => new Set([...element.getClientRects()].map((box) => box.top)).size;
out.intervals = found("td.n .ends").length;
out.broken = found("td.n .ends").filter((ends) => lines(ends) !== 1
  || ends.getBoundingClientRect().right > ends.closest("td").getBoundingClientRect().right + 0.5).length;
out.commands = found(".command").map((text) => text.getBoundingClientRect().height
  / parseFloat(view.getComputedStyle(text).fontSize));
const boxes = (query) => found(query).map((text) => text.getBoundingClientRect());
out.collisions = boxes(".rung .name, .rung .score").filter((a) => boxes(".rung svg .whisker").some((b) =>
  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_screen_and_a_phone(tmp_path, page, width):
    style = f"width: {width}px; height: 900px; border: 0"
    outer = '<!doctype html><html><head><meta charset="utf-8"></head><body>'
    outer += f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe></body></html>'
    out, console = in_browser(tmp_path, outer, LAYOUT)
    said = [line for line in console.splitlines() if "Blocked autofocusing" not in line]  # of the frame, not the page
    assert (said, out.get("failed")) == ([], None)
    assert out["closed"] and out["rows"] > 0  # unpacked when it is opened
    assert (out["overflow"], out["scrolls"], out["beyond"], out["collisions"]) == (0, 0, 0, 0)
    assert out["intervals"] > 20 and out["broken"] == 0
    assert len(out["commands"]) > 2 and max(out["commands"]) < 3  # one line each, and perhaps a scroll bar
    if width == 1280:
        assert out["height"] < 3 * 900


OPENING = """
await until(() => document.readyState === "complete");
const top = (element) => element.getBoundingClientRect().top, nav = one("nav");
one("nav a[href='#calibration']").click();
await until(() => top(one("#calibration")) < innerHeight);
await pause();
out.opened = all("details.fold").filter((fold) => fold.open).map((fold) => fold.querySelector("section").id);
out.below = top(one("#calibration").closest("details")) - nav.getBoundingClientRect().bottom;
out.nav = top(nav);
const closed = () => all("details.fold").filter((fold) => !fold.open).length;
out.before = closed(); dispatchEvent(new Event("beforeprint")); out.printed = closed();
dispatchEvent(new Event("afterprint")); out.after = closed();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")
def test_a_link_opens_its_section_and_print_opens_all(tmp_path, page):
    out, console = in_browser(tmp_path, page, OPENING)
    assert (console, out.get("failed")) == ("", None)
    assert out["opened"] == ["calibration"] and out["nav"] == 0 and out["below"] >= 0  # its name is in sight, too
    assert out["before"] == out["after"] > 5 and out["printed"] == 0
