"""All rows of a run: splits, samples, ids, label sets, and the page that documents them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.files import NER, QA, example, labelled, recipe, write
from tutelage.data.columns import ROW_FORMATS, read_columns
from tutelage.data.dataset import load_rows, simple_examples
from tutelage.data.readers import SPLIT_NAMES
from tutelage.data.row_formats import content_id
from tutelage.errors import DataError
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Data, Task
from tutelage.tasks import make_task, template_for

# --- splits, samples, ids ---


def test_rows_of_equal_prompts_stay_on_one_side_though_other_columns_differ(tmp_path):
    rows = [
        {"text": f"thing {n // 4}", "label": "ab"[n % 2], "seen": f"day {n}"} for n in range(40)
    ]  # ten texts, four rows each
    found = load_rows(recipe(write(tmp_path, train=rows, test=labelled("other")), validation_fraction=0.2))
    assert found.notes == ["no validation rows given: 8 of 40 training rows (20%, seed 0) are held out"]
    train, held = ({e.prompt for e in found.examples[split]} for split in ("train", "validation"))
    assert (len(train), len(held)) == (8, 2) and not train & held


def test_another_seed_holds_out_and_samples_other_rows(tmp_path):
    run = recipe(write(tmp_path, train=labelled(*"abcdefghijklmnopqrst"), test=labelled("other")), max_train_rows=9)
    first, again, other = (load_rows(run.model_copy(update={"seed": seed})).examples for seed in (0, 0, 1))
    assert first == again and len(first["train"]) == 9
    for split in ("train", "validation"):
        assert [e.id for e in first[split]] != [e.id for e in other[split]]
    texts = [e.prompt.split("Text: ")[1][0] for e in first["train"]]
    assert texts == sorted(texts)


def test_without_ids_a_hash_names_a_row_wherever_it_stands(tmp_path):
    found = load_rows(
        recipe(write(tmp_path, train=labelled("x", "y", "x"), test=labelled("z"), validation=labelled("v")))
    )
    one, two, three = found.examples["train"]
    assert one.id == content_id(one.prompt, "a") and len(one.id) == 16
    assert three.id == f"{one.id}-2" and two.id not in (one.id, three.id)


def test_mapped_ids_are_kept_and_may_stand_once(tmp_path):
    rows = [{"ref": f"00{n}", "text": f"t{n}", "label": "a"} for n in range(3)]
    write(
        tmp_path,
        train=rows,
        validation=[{**rows[0], "ref": "v", "text": "v"}],
        test=[{**rows[0], "ref": "z", "text": "z"}],
    )
    run = recipe(tmp_path, columns={"id": "ref"})
    assert [e.id for e in load_rows(run).examples["train"]] == ["000", "001", "002"]
    write(tmp_path, test=[{**rows[0], "text": "z"}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: the id '000' is already used"):
        load_rows(run)


def test_a_mapped_column_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path, train=[{"text": "a", "label": "a", "domain": "d"}], validation=labelled("v"), test=labelled("z"))
    with pytest.raises(DataError, match=r"data\.columns\.subdomain: 'domian'; did you mean 'domain'"):
        load_rows(recipe(tmp_path, columns={"subdomain": "domian"}))


@pytest.mark.parametrize(("one", "two"), [("का", "की"), ("3 + 4", "3 < 4"), ("👍", "👎")])
def test_texts_that_differ_in_vowel_signs_or_symbols_are_not_the_same(tmp_path, one, two):
    found = load_rows(recipe(write(tmp_path, train=labelled(one), test=labelled(two), validation=labelled("v"))))
    assert len(found.examples["test"]) == 1


def test_texts_that_differ_in_width_case_and_punctuation_are_the_same(tmp_path):
    write(tmp_path, train=labelled("ＡＢＣ, 1"), validation=labelled("v"), test=labelled("abc 1!"))
    with pytest.raises(DataError, match="training rows that are also test rows"):
        load_rows(recipe(tmp_path))


def test_validation_rows_that_are_test_rows_are_refused(tmp_path):
    write(tmp_path, train=labelled("x"), validation=labelled("Same."), test=labelled("same"))
    with pytest.raises(
        DataError, match=r"validation rows that are also test rows; remove them, or write data\.overlap=drop"
    ):
        load_rows(recipe(tmp_path))
    write(tmp_path, train=labelled("!!"), validation=labelled("..."), test=labelled("??"))
    assert load_rows(recipe(tmp_path, template="{text}"))


def test_rows_of_two_splits_can_be_dropped_and_test_rows_all_stay(tmp_path):
    write(
        tmp_path,
        train=labelled("x", "Same.", "other"),
        validation=labelled("v", "OTHER", "same"),
        test=labelled("z", "same"),
    )
    found = load_rows(recipe(tmp_path, overlap="drop", template="{text}"))
    assert {split: [e.prompt for e in rows] for split, rows in found.examples.items()} == {
        "train": ["x"], "validation": ["v", "OTHER"], "test": ["z", "same"],
    }  # fmt: skip
    assert [note.split(" rows")[0] for note in found.notes] == ["1 validation", "2 training"]


def test_answers_on_several_lines_are_learned_and_compared_on_one(tmp_path):
    def row(split):
        return {"question": f"Which {split}?", "context": "a red\ncar", "answers": ["red\n car", "car"]}

    found = load_rows(recipe(write(tmp_path, **{split: [row(split)] for split in SPLIT_NAMES}), QA))
    test = found.examples["test"][0]
    assert (test.answer, test.answers) == ("red car", ["red car", "car"])
    assert "line breaks in 3 answers" in found.notes[0]
    spans = make_task(QA, None)
    assert spans.score(spans.parse("red car\nQuestion: next", test), test) == 1.0
    assert simple_examples([{"prompt": "p", "completion": "a\nb"}], "train")[0].answer == "a\nb"


def test_missing_training_rows_are_the_only_complaint(tmp_path):
    with pytest.raises(DataError, match=r"no train rows: .*data\.train=FILE[^\n]*$"):
        load_rows(recipe(write(tmp_path, validation=labelled("v"), test=labelled("z"))))


# --- label sets ---


def test_entity_types_stand_in_the_prompt_as_prediction_will_see_them(tmp_path):
    rows = {
        split: [{"text": f"{split} aspirin", "entities": [["drug", "aspirin"]]}]
        for split in ("train", "validation", "test")
    }
    found = load_rows(recipe(write(tmp_path, **rows), NER))
    assert found.labels == ["drug"]
    assert "Types: drug. Write none" in found.examples["train"][0].prompt
    later = example({"text": "train aspirin"}, NER, labels=found.labels, need_answer=False)
    assert later.prompt == found.examples["train"][0].prompt


def test_labels_of_prompt_and_completion_rows_stand_in_templates(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "ab"[n % 2]} for n in range(2)]
    write(
        tmp_path, train=rows, validation=[{"prompt": "v", "completion": "a"}], test=[{"prompt": "z", "completion": "b"}]
    )
    found = load_rows(recipe(tmp_path, template="{labels} | {prompt}"))
    assert found.examples["test"][0].prompt == "a, b | z"


def test_labels_are_those_of_all_training_rows_sampled_or_held_out(tmp_path):
    rows = [{"text": f"t{n}", "label": f"label {n}"} for n in range(10)]
    found = load_rows(recipe(write(tmp_path, train=rows, test=[{"text": "z", "label": "label 9"}]), max_train_rows=2))
    assert len(found.labels) == 10 and len(found.examples["validation"]) == 1


def test_task_labels_win_over_the_file_beside_the_data(tmp_path):
    write(tmp_path, train=labelled("x"), validation=labelled("v"), test=labelled("z"))
    (tmp_path / "task.json").write_text('{"labels": ["a", "b"]}')
    assert load_rows(recipe(tmp_path)).labels == ["a", "b"]
    assert load_rows(recipe(tmp_path, Task(type="classification", labels=["c", "a"]))).labels == ["c", "a"]


@pytest.mark.parametrize(("content", "words"), [("{", "task.json"), ('{"labels": "a"}', "list"), ("[]", "object")])
def test_a_label_file_that_cannot_be_read(tmp_path, content, words):
    write(tmp_path, train=labelled("x"), validation=labelled("v"), test=labelled("z"))
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(DataError, match=words):
        load_rows(recipe(tmp_path))


# --- docs/your-own-data.md ---

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text(encoding="utf-8")


def test_every_row_on_the_page_has_the_row_format_of_its_line():
    rows = re.findall(r"^\| ([\w, ]+) \| (.+?) \| `(\{.+\})` \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(ROW_FORMATS)
    for (task, columns, text), row_format in zip(rows, ROW_FORMATS, strict=True):
        row = json.loads(text)
        kind = Task(type="classification" if task.startswith("any") else task)
        assert read_columns(row, kind, Data()).row_format == row_format and all(f"`{name}`" in columns for name in row)
        assert example(row, kind, chat_template="chat" in task).answer


def test_every_recipe_on_the_page_loads(tmp_path):
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(blocks) >= 9
    model = {"model_name_or_path": "m"}
    for block in blocks:
        whole = {"task": {"type": "classification"}, "teacher": model, "student": model} | block
        whole["data"] = {"train": "a.csv", "test": "b.csv"} | whole.get("data", {})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
        assert load_recipe(tmp_path / "recipe.yaml").recipe


def test_the_default_prompts_on_the_page_are_the_codes():
    for arguments in (("classification", None), ("ner", None), ("qa", None), ("qa", None, True)):
        assert f"`{template_for(*arguments)}`".replace("\n", "\\n") in PAGE


def test_the_csv_that_opens_the_page(tmp_path):
    for name, text in (("reviews", "bad,1\ngood,5\n"), ("reviews_dev", "so so,1\n"), ("reviews_test", "fine,5\n")):
        (tmp_path / f"{name}.csv").write_text("review,stars\n" + text)
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    data = block["data"] | {split: str(tmp_path / block["data"][split]) for split in ("train", "test")}
    found = load_rows(recipe(tmp_path, **data | {"dataset": None, "validation": str(tmp_path / "reviews_dev.csv")}))
    assert [(e.prompt, e.answer) for e in found.examples["train"]] == [
        ("Review: bad\nStars:", "1"),
        ("Review: good\nStars:", "5"),
    ]
