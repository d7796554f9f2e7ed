"""The report of a made-up run folder: its numbers, hostile text, and missing files."""

import base64
import hashlib
import html
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_run import INJECTION, Page, make_fake_run, write
from tutelage.errors import DataError
from tutelage.stages.report import build_report
from tutelage.utils.files import write_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(build_report(run, title="Clinic <notes>"))


def losses(run: Path, model: str) -> np.ndarray:
    lines = (json.loads(line) for line in (run / "evaluate" / "predictions.jsonl").open(encoding="utf-8"))
    return np.array([row["nll"] for row in lines if row["model"] == model])


def test_every_section_is_shown(page):
    # A run that has not been diagnosed, without models and logs; test_sections.py has the whole page.
    folded = ["scores", "gap", "teacher", "schedule", "split", "slices", "weights", "learning", "rows", "made"]
    expected = ["verdict", "where", "next", *folded]
    assert page.sections == expected
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"][: len(expected)] == [f"#{n}" for n in expected]
    folds = re.findall(r'<details class="fold">.*?<section id="(\w+)">', page.source, re.DOTALL)
    assert folds == folded  # each on its own, and closed
    assert "diagnose/slices.json is missing. tutelage diagnose RECIPE writes it" in page.text
    assert page.text.count("Clinic <notes>") >= 1
    assert "Distillation report" in page.text


def test_scores_have_their_intervals(run, page):
    models = json.loads((run / "evaluate" / "scores.json").read_text(encoding="utf-8"))["models"]
    for table in models.values():
        score = table["accuracy"]
        assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in page.text
    assert f"{models['student']['nll']:.3f}" in page.text  # a loss without interval


def test_fraction_of_the_gap(run, page):
    models = json.loads((run / "evaluate" / "scores.json").read_text(encoding="utf-8"))["models"]
    sft, teacher, student = (models[name]["accuracy"]["value"] for name in ("anchor", "teacher", "scd-aw/seed-0"))
    assert f"{round(100 * (student - sft) / (teacher - sft))} % of the gap" in page.text


def test_split_is_right(run, page):
    student, teacher = losses(run, "scd-aw/seed-0"), losses(run, "teacher")
    better = student < teacher
    advantage = better.mean() * (teacher - student)[better].mean()
    deficit = (~better).mean() * (student - teacher)[~better].mean()
    difference = student.mean() - teacher.mean()
    assert difference == pytest.approx(deficit - advantage)
    for number in (
        f"{better.mean():.3f}",
        f"{advantage:.3f} [",
        f"{deficit:.3f} [",
        f"{difference:+.3f} [".replace("-", "−"),
    ):
        assert number in page.text
    assert "The deficit outweighs the advantage" in page.text


def test_schedule_shows_every_candidate_and_the_stall(page):
    assert page.text.count("smallest sum in".capitalize()) == 4
    for stage in ("0.2400 0.2000 0.4400", "0.0000 1.0000 1.0000", "0.0700 0.2200 0.2900"):
        assert stage in page.text
    assert "Stall in stage 2" in page.text
    assert "still 0.180 nats from it" in page.text


def test_weights_by_stage(run, page):
    lines = [json.loads(line) for line in (run / "distill/scd-aw/seed-0/weights.jsonl").open(encoding="utf-8")]
    for stage in (1, 2, 3, 4):
        mean = np.mean([line["weight"] for line in lines if line["stage"] == stage])
        assert f"mean {mean:.3f}" in page.text
    assert "w = 0.500" in page.text  # td: constant


def test_example_rows_show_their_prompts(page):
    assert (
        page.text.partition("Rows with the largest loss differences")[2]
        .partition("By language")[0]
        .count("secret prompt")
        == 8
    )


def test_fractions_of_one_sentence_never_add_up_to_more_than_1(page):
    assert "nats on average; on the others it is higher, by" in page.text  # 45.5 % and 54.5 % would read as 101 %


def test_numbers_and_their_percent_signs_stay_on_one_line(page):
    shown = re.sub(r"<(style|script|pre)\b.*?</\1>", "", page.source, flags=re.DOTALL)
    assert "95\N{NO-BREAK SPACE}%" in shown and not re.search(r"\d %", shown)


def test_slices(page):
    assert "By language" in page.text and "By subdomain" in page.text
    assert "問診" in page.text
    assert " zh " not in page.text  # a training row's language


def test_the_task_is_named_in_words(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    path = run / "evaluate" / "scores.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"classification"', '"ner"'), encoding="utf-8")
    assert "named entities accuracy on 40 test rows" in Page(build_report(run, title="t")).text


def test_how_it_was_made(page):
    for words in (
        "6 min 52 s",
        "1 h 03 min",
        "2.3 s",
        "2.12.0, then 2.13.0",
        "tutelage run 'runs/my demo/recipe.yaml'",
    ):
        assert words in page.text


def test_text_from_data_is_inert(page):
    ours = [attrs.get("id") for tag, attrs in page.tags if tag == "script"]
    assert ours == ["rows-words", "rows-data", None]
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base", "form")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(INJECTION) >= 2  # as an id and as a subdomain, to be read
    assert "{{ 7 * 7 }}" in page.text
    assert html.escape(INJECTION) in page.source.replace("&#34;", "&quot;")


def test_control_characters_from_data_are_written_out(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    path, prompt = run / "prepare" / "rows.jsonl", "user\\u202egnp.exe \\u001b[31mred \\ud800 half"
    path.write_text(path.read_text(encoding="utf-8").replace("secret prompt", prompt), encoding="utf-8")
    page = Page(build_report(run, title="name\u202e\u0007"))
    assert not re.search(
        "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.source
    )
    assert "user⟨U+202E⟩gnp.exe ␛[31mred ⟨U+D800⟩ half" in page.text
    assert "name⟨U+202E⟩␇" in page.text


def test_the_contents_link_to_the_comparison(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    write(run / "compare" / "index.html", "")
    contents = (
        build_report(run, title="t")
        .read_text(encoding="utf-8")
        .partition('<nav class="contents"')[2]
        .partition("</nav>")[0]
    )
    assert '<a href="../compare/index.html">Comparison of methods</a>' in contents


def test_nothing_is_loaded(page):
    links = [attrs.get("href") for tag, attrs in page.tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["https://arxiv.org/abs/2601.10114"]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*)</script>", page.source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    loads = [
        (tag, name)
        for tag, attrs in page.tags
        for name in attrs
        if name in ("src", "srcset", "xlink:href", "poster", "data")
    ]
    assert loads == [] and not [tag for tag, _ in page.tags if tag == "link"]
    assert "url(" not in page.source and "@import" not in page.source
    assert len(page.source.encode()) < 1_000_000


def test_answers_carry_their_language(page):
    marked = {attrs["lang"] for tag, attrs in page.tags if tag == "td" and "lang" in attrs}
    assert marked and marked <= {"en", "ja", "ko"}
    assert ("html", {"lang": "en"}) in page.tags


@pytest.mark.parametrize(
    ("gone", "section", "command"),
    [
        ("evaluate/scores.json", "scores", "tutelage evaluate RECIPE"),
        ("evaluate/predictions.jsonl", "split", "tutelage evaluate RECIPE"),
        ("teach/checkpoints.json", "teacher", "tutelage teach RECIPE"),
        ("distill/*/*/stages.json", "schedule", "tutelage distill RECIPE"),
        ("distill/*/*/weights.jsonl", "weights", "tutelage distill RECIPE"),
        ("prepare/rows.jsonl", "slices", "tutelage prepare RECIPE"),
    ],
)
def test_absent_parts_are_left_out_and_named(tmp_path, gone, section, command):
    run = make_fake_run(tmp_path, rows=40)
    for path in run.glob(gone):
        path.unlink()
    page = Page(build_report(run, title="t"))
    assert section not in page.sections
    assert f"{gone} is missing" in page.text
    assert command in page.text


def test_an_empty_folder_gives_a_page(tmp_path):
    page = Page(build_report(tmp_path, title="nothing yet"))
    assert page.sections == ["verdict", "next", "made"]
    assert "No distilled student has been scored yet" in page.text


@pytest.mark.parametrize("model", ["teacher", "anchor", "scd-aw/seed-0"])
def test_a_model_without_scores(tmp_path, model):
    run = make_fake_run(tmp_path, rows=40)
    path = run / "evaluate" / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    del scores["models"][model]
    write(path, scores)
    text = Page(build_report(run, title="t")).text
    assert ("has no score" in text) == (model in ("teacher", "anchor"))


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((0.9, 0.7, 0.82), "closes 60 % of the gap to its teacher."),
        ((0.9, 0.7, 0.6), "Distillation is significantly worse than plain"),
        ((0.9, 0.7, 0.6), "further from the teacher than plain fine-tuning is, by 50 % of the gap"),
        ((0.9, 0.7, 0.702), "No significant gain"),
        ((0.8, 0.7, 0.9), "The student beats its teacher"),
        ((0.8, 0.7, 0.798), "the remaining gap is not significant"),
        ((0.8, 0.7, 0.802), "The student matches its teacher"),
        ((0.8, 0.8, 0.8), "no gap to close"),
        ((0.7, 0.8, 0.9), "The student beats its teacher"),
        ((0.7, 0.8, 0.7), "Distillation is significantly worse than plain"),
    ],
)
def test_the_verdict_claims_no_more_than_the_rows_show(tmp_path, levels, words):
    # 1,000 rows, right up to a fraction of them: differences of 0.1 are certain, of 0.002 are not.
    models, lines = {}, []
    for model, level in zip(("teacher", "anchor", "scd/seed-0"), levels, strict=True):
        models[model] = {"accuracy": {"value": level, "low": level - 0.02, "high": level + 0.02}}
        right = np.arange(1000) < round(1000 * level)
        right = np.roll(right, 1) if model == "scd/seed-0" else right  # two rows change sides
        lines += [
            {
                "id": str(n),
                "model": model,
                "split": "test",
                "gold": "a",
                "raw": "a",
                "prediction": "a",
                "score": float(r),
                "nll": None,
            }
            for n, r in enumerate(right)
        ]
    head = {"task": "classification", "metric": "accuracy", "split": "test", "rows": 1000}
    write(tmp_path / "evaluate" / "scores.json", {**head, "models": models})
    write_jsonl(tmp_path / "evaluate" / "predictions.jsonl", lines)
    assert words in Page(build_report(tmp_path, title="t")).text


def test_several_students_are_chosen_by_validation(page):
    # scd-aw ends at 0.82 on validation, td at 0.79.
    assert "This page is about scd-aw/seed-0 , the best student on validation" in page.text


def test_entities_and_lists_are_readable():
    from tutelage.report.page import words

    assert words([["drug", "aspirin"], ["dose", "5 mg"]]) == "drug: aspirin; dose: 5 mg"
    assert words(["Seoul", "서울"]) == "Seoul; 서울"
    assert words([]) == "(none)"
    assert words(None) == "(unreadable)"
    assert words("a\n b" + "c" * 200).startswith("a bcc") and len(words("c" * 200)) == 90


def test_entity_scores_by_type_and_what_is_paired(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    path = run / "evaluate" / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    for number, table in enumerate(scores["models"].values()):
        table["entity_f1"] = {"value": 0.5 + number / 100, "low": 0.4, "high": 0.6}
        table["f1/약물"] = {"value": 0.25, "low": 0.125, "high": 0.375}
    write(path, scores | {"task": "ner", "metric": "entity_f1"})
    text = Page(build_report(run, title="t")).text
    assert "By type" in text and "약물" in text and "0.250 [0.125, 0.375]" in text
    assert "Differences are in mean row F1, which can be paired by row; entity F1 itself" in text
    assert text.count("Score in this section: mean row F1.") >= 2


def test_rows_without_a_loss_are_left_out_and_counted(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    path = run / "evaluate" / "predictions.jsonl"
    lines = [json.loads(line) for line in path.open(encoding="utf-8")]
    for line in lines:
        if line["id"] in ("row-0001", "row-0002") and line["model"] == "teacher":
            line["nll"] = None if line["id"] == "row-0001" else math.nan
    write_jsonl(path, lines)
    assert "2 rows without a loss for both models are left out" in Page(build_report(run, title="t")).text


def test_ticks_are_round_and_inside_the_axis():
    from tutelage.report.axes import Axis, axis_around

    ticks = Axis(0.0, 1.0, 0.0, 200.0).ticks(5)
    assert [(tick.at, tick.text) for tick in ticks] == [
        (0, "0.0"),
        (40, "0.2"),
        (80, "0.4"),
        (120, "0.6"),
        (160, "0.8"),
        (200, "1.0"),
    ]
    assert [tick.text for tick in Axis(-0.1, 0.11).ticks(3)] == ["−0.1", "0.0", "0.1"]
    assert axis_around([0.99, 1.0], ceiling=1.0).high == 1.0
    assert axis_around([0.5]).low < 0.5 < axis_around([0.5]).high


def test_ticked_words_are_code_and_stay_escaped():
    from tutelage.report.page import ticked

    assert ticked("set `a=<b>` & go") == "set <code>a=&lt;b&gt;</code> &amp; go"
    assert ticked("one ` only <i>") == "one ` only &lt;i&gt;"


def test_unreadable_file_is_named(tmp_path):
    run = make_fake_run(tmp_path, rows=20)
    (run / "evaluate" / "scores.json").write_text('{"task": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"scores\.json is damaged"):
        build_report(run, title="t")


def test_a_thousand_rows_in_a_second_without_torch(tmp_path):
    run = make_fake_run(tmp_path, rows=1000)
    began = time.process_time()
    build_report(run, title="t")
    assert time.process_time() - began < 3  # it takes 0.4 s; room for a busy machine
    code = "from pathlib import Path; from tutelage.stages.report import build_report"
    code += f"; build_report(Path({str(run)!r}), title='t')"
    code += "; import sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- TF-IDF with logistic regression ---


def test_the_score_table_shows_the_baseline_without_a_loss_and_nothing_else_takes_it_for_a_student(tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    before = Page(build_report(run, title="t"))
    path = run / "evaluate" / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["baseline"] = {"accuracy": {"value": 0.987, "low": 0.911, "high": 0.999}}
    path.write_text(json.dumps(scores), encoding="utf-8")
    page = Page(build_report(run, title="t"))
    chart, table = (page.text.partition(words)[2] for words in ("Dashed: teacher", "Details"))
    assert "tfidf TF-IDF and logistic regression 0.987 [0.911, 0.999]" in chart
    assert "tfidf 0.987 [0.911, 0.999] – –" in table.partition("Arrow: lower")[0]
    assert "no language model" in page.text and "tfidf" not in before.text and "TF-IDF" not in before.text
    assert page.text.count("tfidf") == 2  # chart and table
    assert "TF-IDF" not in page.text.partition("no loss per token")[2]


TEST_OF_BASELINE = {
    "better": (
        {"value": 0.1, "low": 0.02, "high": 0.18},
        "0.010",
        "it is significantly better",
        "+0.100 [+0.020, +0.180]",
    ),
    "worse": (
        {"value": -0.1, "low": -0.18, "high": -0.02},
        "< 0.001",
        "it is significantly worse",
        "−0.100 [−0.180, −0.020]",
    ),
    "unclear": (
        {"value": 0.01, "low": -0.03, "high": 0.05},
        "0.700",
        "the difference is not significant",
        "+0.010 [−0.030, +0.050]",
    ),
}


@pytest.mark.parametrize("case", TEST_OF_BASELINE)
def test_the_headline_names_the_baseline_only_where_it_is_significantly_better(case, tmp_path):
    run = make_fake_run(tmp_path, rows=40)
    path = run / "evaluate" / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    difference, p, words, numbers = TEST_OF_BASELINE[case]
    test = {**difference, "p_value": float(p.replace("< 0.001", "1e-4")), "test": "mcnemar_exact"}
    scores["baseline"] = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}
    scores["against_baseline"] = dict.fromkeys(scores["models"], test)
    path.write_text(json.dumps(scores), encoding="utf-8")
    page = Page(build_report(run, title="t"))
    headline = re.search(r'class="headline">(.*?)</h2>', page.source, re.DOTALL)[1]
    assert ("TF-IDF</span> with logistic regression" in headline) == (case == "worse")
    assert f"which needs no language model, {words} ( {numbers} , p {p})" in page.text
    table = page.text.partition("Details")[2].partition("Arrow: lower")[0]
    assert table.count(f"{numbers} {p}") == len(scores["models"])
    assert re.search(r"tfidf 0\.800 \[0\.700, 0\.900\] [– ]+$", table.strip())
