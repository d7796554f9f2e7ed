"""Runs whose student is plain fine-tuning: validation chose `sft`, or there is no other."""

import re
from pathlib import Path

import pytest

from helpers.fake_run import Page, make_fake_run, write
from tutelage.analysis.run_results import read_results
from tutelage.analysis.run_summary import summarise_run
from tutelage.report.card_facts import FinishedStudent
from tutelage.report.model_card import make_card
from tutelage.report.sections_run import next_steps
from tutelage.report.sections_scores import gap_table, verdict
from tutelage.stages.report import build_report
from tutelage.utils.files import read_json, write_jsonl
from tutelage.utils.format import number

SFT, OTHER = "sft/seed-0", "scd-aw/seed-0"


def plain_run(folder: Path, method: str = "sft", *, alone: bool = False) -> Path:
    """A run of scd-aw and `method`, which is plain fine-tuning and best on validation. alone: without scd-aw."""
    run = make_fake_run(folder, skill=0.84)
    for name in ("evaluate/scores.json", "evaluate/predictions.jsonl"):
        path = run / name
        path.write_text(path.read_text(encoding="utf-8").replace("td/seed-0", f"{method}/seed-0"), encoding="utf-8")
    (run / "distill/td").rename(run / "distill" / method)
    stages = run / "distill" / method / "seed-0/stages.json"
    validation = {"score": 0.9, "nll": 0.3}
    write(stages, [{**stage, "chosen": None, "validation": validation} for stage in read_json(stages)])
    for student, right in ((SFT, 9), (OTHER, 8)):
        rows = [{"id": str(n), "stage": 4, "score": float(n < right)} for n in range(10)]
        write_jsonl(run / "distill" / student / "validation_rows.jsonl", rows)
    (run / "recipe.yaml").write_text("name: demo\noutput_dir: runs/demo\ndistill: {select: auto}\n", encoding="utf-8")
    if alone:
        scores = read_json(run / "evaluate/scores.json")
        del scores["models"][OTHER]
        write(run / "evaluate/scores.json", scores)
    return run


def test_a_run_whose_student_is_plain_fine_tuning_is_no_distillation(tmp_path):
    results = read_results(plain_run(tmp_path))
    found = verdict(results)
    assert (results.main, found.outcome, found.other) == (SFT, "plain", OTHER)
    assert found.gap_closed is None and found.over_anchor is None  # of distillation, which this student is not
    assert found.over_main == results.lead(OTHER, SFT)
    assert "use" in [step.what for step in next_steps(results, found, None, stalled=False)]


def test_the_page_says_that_validation_chose_plain_fine_tuning(tmp_path):
    run = plain_run(tmp_path)
    page = Page(build_report(run, title="t"))
    scores = {name: read_results(run).score(name).value for name in (SFT, OTHER)}
    above = page.text.partition("Details")[0]
    assert re.search(r"Validation chose plain fine-tuning ?: no distilled student was better there\.", above)
    assert f"Plain fine-tuning in stages, {SFT} , scores {number(scores[SFT])}" in above
    assert f"The best distilled student on validation, {OTHER} , scores {number(scores[OTHER])}" in above
    assert f"Compared with {SFT} it is significantly better" in above
    assert "No significant gain" not in above and f"The distilled student, {SFT}" not in page.text
    assert "Distillation should reduce the deficit" not in page.text


def test_only_students_of_a_teacher_close_a_gap(tmp_path):
    run = plain_run(tmp_path, "sft+distill.epochs_per_stage=2")
    rows = {row.model.partition("/")[0]: row for row in gap_table(read_results(run))}
    assert rows["sft+distill.epochs_per_stage=2"].gap_closed is None and rows["scd-aw"].gap_closed > 0
    assert summarise_run(run).gap_closed is None


def test_columns_name_the_model_that_is_compared_with(tmp_path):
    source = build_report(plain_run(tmp_path), title="t").read_text(encoding="utf-8")
    gap, selection = (re.search(rf'<section id="{id}">.*?</section>', source, re.S)[0] for id in ("gap", "selection"))
    assert "vs. anchor" in gap and "vs. sft" in selection
    assert "vs. plain fine-tuning" not in source
    assert re.search(r">sft/seed-0</th>\s*<td.*?</td>\s*<td class=\"n\">–</td>", gap, re.S)


@pytest.mark.parametrize("lang", ["ko", "ja"])
def test_the_page_says_so_in_every_language(tmp_path, lang):
    page = Page(build_report(plain_run(tmp_path), title="t", lang=lang))
    assert "Validation chose" not in page.text and "anchor" in page.text
    assert "。 " not in re.search(r'<p class="lede">.*?</p>', page.source, re.S)[0]


def test_a_run_of_plain_fine_tuning_alone(tmp_path):
    page = Page(build_report(plain_run(tmp_path, alone=True), title="t"))
    assert re.search(r"The student is plain fine-tuning ?; no distilled student has been scored\.", page.text)
    assert "Validation chose" not in page.text


def test_the_card_of_plain_fine_tuning_tells_it_from_the_anchor(tmp_path):
    run = plain_run(tmp_path)
    card = make_card(FinishedStudent(read_results(run), SFT))
    assert "|  | this model (sft) | teacher | anchor |" in card
    assert "The anchor is the same model after plain fine-tuning" in " ".join(card.split())
    assert "of the gap" not in card and "its teacher" not in card and "knowledge-distillation" not in card
    other = make_card(FinishedStudent(read_results(run), OTHER))
    assert "| plain fine-tuning |" in other and "The anchor" not in other and "knowledge-distillation" in other
