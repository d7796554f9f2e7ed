"""Data of the row browser: columns, the main student's training rows, and the budget of bytes."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tutelage.analysis.run_results import read_results
from tutelage.errors import DataError
from tutelage.report.row_browser import (
    LONGEST,
    MODELS,
    SHORTEST,
    TEST_ROWS,
    RowSource,
    browser_data,
    one_line,
    pack,
    page_script,
    prompt_with_roles,
    sample,
    script_hash,
)
from tutelage.utils.files import write_jsonl

MAIN = "scd-aw/seed-0"


def unpacked(payload: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(payload)))


def texts(column: dict) -> list[str | None]:
    return [None if code < 0 else column["values"][code] for code in column["codes"]]


def line(id: str, model: str, answer: object, score: float, nll: float, **more: object) -> dict:
    about = {"id": id, "model": model, "split": "test", "gold": "cough", "raw": f"{answer}!", "prediction": answer}
    return {**about, "score": score, "nll": nll, **more}


def row(id: str, split: str = "test", **more: object) -> dict:
    plain = {
        "id": id,
        "split": split,
        "prompt": f"prompt of {id}",
        "answer": "cough",
        "answers": ["cough"],
        "labels": None,
    }
    return {**plain, "language": "ko", "subdomain": None, **more}


def write_run(folder: Path, predictions: list[dict], rows: list[dict], weights: list[dict] = ()) -> Path:
    models = dict.fromkeys(line["model"] for line in predictions)
    scores = {
        "task": "classification",
        "metric": "accuracy",
        "split": "test",
        "models": {name: {"accuracy": 0.5} for name in models},
    }
    write_jsonl(folder / "evaluate" / "predictions.jsonl", predictions)
    (folder / "evaluate" / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    write_jsonl(folder / "prepare" / "rows.jsonl", rows)
    if weights:
        write_jsonl(folder / "distill" / MAIN / "weights.jsonl", weights)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    predictions = [
        line("a", "teacher", "cough", 1.0, 0.5, confidence=0.25),
        line("b", "teacher", "fever", 0.0, 1.0000002),
        line("c", "teacher", "cough", 1.0, 0.5),
        line("d", "teacher", "cough", 1.0, 0.123456),
        line("a", MAIN, "fever", 0.0, 0.5),
        line("b", MAIN, "cough", 1.0, 1.0000001),
        line("c", MAIN, None, 1.0, 0.75),
    ]
    weights = [
        {"id": id, "stage": stage, "checkpoint": name, "anchor_nll": anchor, "teacher_nll": loss, "weight": weight}
        for stage, name, loss, weight in ((1, "checkpoint-1", 0.4, 0.25), (2, "checkpoint-1", 0.4, 0.5))
        for id, anchor in (("t", 0.2 if stage == 1 else None), ("u", 0.3 if stage == 1 else None))
    ]
    rows = [
        row("b", subdomain="dose"),
        row("a"),
        row("c"),
        row("d"),
        row("u", "train"),
        row("t", "train"),
        row("v", "train"),
    ]
    return write_run(tmp_path, predictions, rows, weights)


def data_of(run: Path) -> tuple[dict, dict]:
    browser = browser_data(read_results(run), run)
    return browser, unpacked(browser["payload"])


def test_rows_become_columns_in_the_order_of_the_data(run):
    about, data = data_of(run)
    test = data["test"]
    assert test["ids"] == ["b", "a", "c", "d"]
    assert test["prompt"][1] == "prompt of a"
    assert texts(test["gold"]) == ["cough"] * 4
    assert texts(test["language"]) == ["ko"] * 4
    assert texts(test["subdomain"]) == ["dose", None, None, None]
    assert texts(test["models"][MAIN]["answer"]) == ["cough", "fever", None, None]
    assert test["models"][MAIN]["unread"] == {
        "2": "None!"
    }  # what it wrote, where that could not be read; d has no answer at all
    assert test["models"]["teacher"]["confidence"] == [None, 0.25, None, None]
    assert test["models"][MAIN]["confidence"] is None
    assert test["models"]["teacher"]["nll"] == [1, 0.5, 0.5, 0.1235]
    assert (about["test"], about["length"], about["left_out"]) == ({"rows": 4, "shown": 4}, None, 0)


def test_outcomes_come_from_exact_values(run):
    student = data_of(run)[1]["test"]["models"][MAIN]
    assert student["outcome"] == "wlr-"  # c: both right
    assert student["side"] == "stt-"  # 1.0000001 is below 1.0000002, and equal losses are the teacher's


def test_training_rows_carry_losses_and_weights_by_stage(run):
    write_jsonl(
        run / "anchor" / "sample_loss.jsonl", [{"id": id, "split": "train", "nll": 0.7, "tokens": 3} for id in "tuv"]
    )
    about, data = data_of(run)
    training = data["training"]
    assert (about["training"], training["ids"]) == ({"rows": 2, "shown": 2}, ["t", "u"])
    found = [
        {key: training["columns"][stage[key]] for key in ("anchor", "teacher", "weight")}
        for stage in training["stages"]
    ]
    assert found == [
        {"anchor": [0.2, 0.3], "teacher": 0.4, "weight": 0.25},
        {"anchor": 0.7, "teacher": 0.4, "weight": 0.5},  # no anchor's loss in the weights: that of plain fine-tuning
    ]
    assert training["stages"][0]["teacher"] == training["stages"][1]["teacher"]  # one checkpoint, one column


def test_found_slices_are_marked_row_by_row(run):
    found = [
        {"id": "a", "found": {MAIN: ["long", "ko"]}},
        {"id": "b", "found": {MAIN: ["ko"]}},
        {"id": "c", "found": {}},
    ]
    write_jsonl(run / "diagnose" / "rows.jsonl", found)
    models = data_of(run)[1]["test"]["models"]
    assert models[MAIN]["found"] == {"ko": "1100", "long": "0100"}
    assert models["teacher"]["found"] == {}


def test_models_are_in_the_order_of_the_report(tmp_path):
    others = [f"td/seed-{n}" for n in range(15)]
    names = ["student", *others, MAIN, "anchor", "teacher"]
    run = write_run(tmp_path, [line("a", name, "cough", 1.0, 0.1) for name in names], [row("a")])
    about, data = data_of(run)
    # Without validation scores the first distilled student is the main one.
    assert about["models"][:4] == ["teacher", "anchor", "td/seed-0", "td/seed-1"]
    assert len(about["models"]) == len(data["test"]["models"]) == MODELS
    assert about["left_out"] == 19 - MODELS
    assert about["main"] == data["main"] == "td/seed-0"
    assert about["training"] is None


def test_nothing_to_browse(tmp_path):
    assert browser_data(read_results(tmp_path), tmp_path) is None


def test_the_teacher_alone(tmp_path):
    run = write_run(tmp_path, [line("a", "teacher", "cough", 1.0, float("nan"))], [])
    about, data = data_of(run)
    assert about["main"] is None
    assert data["test"]["models"]["teacher"]["nll"] is None
    assert data["test"]["prompt"] == [""]


def test_damaged_weights_are_refused(run):
    path = run / "distill" / MAIN / "weights.jsonl"
    results = read_results(run)
    path.write_text(path.read_text(encoding="utf-8") + "{", encoding="utf-8")
    with pytest.raises(DataError, match=r"weights\.jsonl is damaged"):
        browser_data(results, run)


def test_half_a_surrogate_does_not_stop_the_page(run):
    write_jsonl(run / "prepare" / "rows.jsonl", [row("a")])
    text = (run / "prepare" / "rows.jsonl").read_text(encoding="utf-8")
    (run / "prepare" / "rows.jsonl").write_text(text.replace("prompt of a", r"half \ud83d"), encoding="utf-8")
    assert data_of(run)[1]["test"]["prompt"][0] == "half ?"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("two\nlines", "two lines"),
        ([["drug", "아스피린"], ["dose", "5 mg"]], "drug: 아스피린; dose: 5 mg"),
        (["Seoul", "서울"], "Seoul; 서울"),
        ([], ""),
        (None, None),
    ],
)
def test_answers_are_one_line(answer, expected):
    assert one_line(answer) == expected


def test_a_chat_is_read_with_its_roles():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert prompt_with_roles(chat) == "system: Be brief.\n\nuser: Why?"


# --- the budget ---


def source(rows: int, length: int) -> RowSource:
    """Rows of random letters, which gzip cannot shrink to less than 5 / 8."""
    letters = np.random.default_rng(1).integers(97, 123, (rows, length), dtype=np.uint8)
    prompts = [line.tobytes().decode() for line in letters]
    return RowSource(rows, lambda indices: {"ids": list(indices), "prompt": [prompts[index] for index in indices]})


def test_what_fits_is_left_alone():
    payload, length, shown = pack({"test": source(20, 1_000)}, {}, budget=30_000)
    assert (length, shown) == (None, {"test": 20})
    assert len(unpacked(payload)["test"]["prompt"][0]) == 1_000


def test_texts_are_cut_in_the_middle_until_they_fit():
    budget = 60_000
    payload, length, shown = pack({"test": source(100, 3_000)}, {}, budget=budget)
    prompts = unpacked(payload)["test"]["prompt"]
    assert shown == {"test": 100}
    assert SHORTEST < length < LONGEST
    assert 0.85 * budget < len(payload) <= budget
    whole = source(100, 3_000).table([0])["prompt"][0]
    start, end = prompts[0].split("…")
    assert len(prompts[0]) == length
    assert whole.startswith(start) and whole.endswith(end) and len(start) > len(end) > length // 4


def test_long_texts_are_cut_even_where_they_would_fit():
    payload, length, _ = pack({"test": source(1, LONGEST + 1)}, {})
    assert length == LONGEST
    assert len(unpacked(payload)["test"]["prompt"][0]) == LONGEST


def test_training_rows_are_left_out_before_test_rows():
    budget = 60_000
    payload, length, shown = pack({"test": source(300, 200), "training": source(2_000, 200)}, {}, budget=budget)
    data = unpacked(payload)
    assert SHORTEST <= length < 1.2 * SHORTEST
    assert shown["test"] == 300
    assert 50 < shown["training"] < 1_000
    assert 0.85 * budget < len(payload) <= budget
    ids = data["training"]["ids"]
    assert ids == sorted(ids) and len(set(ids)) == shown["training"]
    assert ids == sample(2_000, shown["training"])  # the same rows in every page


def test_a_page_holds_a_sample_of_many_test_rows():
    short = RowSource(30_000, lambda indices: {"ids": list(indices)})
    payload, _, shown = pack({"test": short}, {})
    assert shown == {"test": TEST_ROWS} and unpacked(payload)["test"]["ids"] == sample(30_000, TEST_ROWS)


def test_test_rows_keep_most_of_the_budget():
    payload, _, shown = pack({"test": source(2_000, 200), "training": source(2_000, 200)}, {}, budget=60_000)
    assert len(payload) <= 60_000
    assert 3 < shown["test"] / shown["training"] < 5


def test_rows_are_sampled_at_random():
    indices = np.array(sample(10_000, 1_000))
    counts = np.histogram(indices, bins=10, range=(0, 10_000))[0]
    assert counts.min() > 60  # 100 expected in each tenth, standard deviation 9.5


# --- the script ---


def test_the_policy_allows_exactly_the_script_of_the_page():
    element = str(page_script())
    text = re.fullmatch(r"<script>(.*)</script>", element, re.DOTALL)[1]
    assert "</script" not in text and "<!--" not in text
    assert script_hash() == "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_script_writes_no_markup_and_loads_nothing():
    text = str(page_script())
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttpRequest|import\(|https?:", text
    )
