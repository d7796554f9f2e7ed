"""The demo's data: labels agree with the texts, splits share no text; both models have one vocabulary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.demo import lexicon, setup
from tutelage.demo.clinic import ROWS, TASKS, fill, particle, write_clinic
from tutelage.demo.models import build_models
from tutelage.errors import ConfigError, DataError
from tutelage.utils.files import read_json, read_jsonl

SIZES = {"train": 600, "validation": 60, "test": 180}
KINDS = {
    "classification": {"keyword", "negated", "corrected", "former_latter"},
    "ner": {"plain", "duration", "changed", "two", "rare", "none"},
    "qa": {"plain", "changed", "two", "duration", "rare"},
}

Rows = list[dict[str, Any]]


def read_tables(folder: Path) -> dict[tuple[str, str], Rows]:
    return {
        (task, split): list(read_jsonl(folder / f"clinic_{task}" / f"{split}.jsonl"))
        for task in TASKS
        for split in SIZES
    }


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[tuple[str, str], Rows]:
    folder = tmp_path_factory.mktemp("clinic")
    write_clinic(folder, rows=SIZES)
    return read_tables(folder)


def text_of(row: dict[str, Any]) -> str:
    return row.get("text") or row["context"]


# --- the whole set ---


def test_a_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    sizes = {"train": 30, "validation": 6, "test": 6}
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        write_clinic(tmp_path / name, seed=seed, rows=sizes)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "b" / file).read_bytes()


def test_every_task_has_the_rows_asked_for_under_different_ids(tables):
    assert {key: len(rows) for key, rows in tables.items()} == {
        (task, split): SIZES[split] for task in TASKS for split in SIZES
    }
    ids = [row["id"] for rows in tables.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_no_text_is_in_two_splits_or_twice_in_one_even_with_other_case_and_punctuation(tables):
    for task in TASKS:
        texts = [re.sub(r"\W", "", text_of(row)).casefold() for split in SIZES for row in tables[task, split]]
        assert len(set(texts)) == len(texts)


def test_every_split_has_all_languages_in_every_kind(tables):
    for (task, split), rows in tables.items():
        cells = [(row["subdomain"], row["language"]) for row in rows]
        assert set(cells) == {(kind, language) for kind in KINDS[task] for language in ("en", "ko", "ja")}
        counts = [cells.count(cell) for cell in set(cells)]
        assert max(counts) - min(counts) <= 1, f"{task} {split}: languages or kinds are not in turn"


def test_a_row_is_in_the_script_of_its_language(tables):
    for rows in tables.values():
        for row in rows:
            hangul, kana = re.search("[가-힣]", text_of(row)), re.search("[ぁ-んァ-ヶ]", text_of(row))
            assert (bool(hangul), bool(kana)) == (row["language"] == "ko", row["language"] == "ja"), text_of(row)


def test_no_placeholder_of_a_frame_is_left_unfilled(tables):
    assert not [text_of(row) for rows in tables.values() for row in rows if re.search(r"[{}]|None", text_of(row))]


def test_more_rows_than_there_are_texts_are_refused_with_the_number_of_rows(tmp_path):
    with pytest.raises(DataError, match=r"clinic_\w+: after \d+ of 40000 train rows, .*ask for fewer `rows`"):
        write_clinic(tmp_path, rows={"train": 40_000, "validation": 1, "test": 1})


# --- labels, by an independent reading of the texts ---

IGNORED = {
    ("negated", "en"): "no {}",
    ("negated", "ko"): "{}[은는] 없",
    ("negated", "ja"): "{}はな",
    ("corrected", "en"): "(?:booked|not) for {}",
    ("corrected", "ko"): "예약된 {0}|{0}으?로 예약",
    ("corrected", "ja"): "予約の{0}|{0}で予約",
}
"""Text around the complaint that does not count, by kind and language."""
LATTER = ("latter", "후자", "後者")


def department_of(row: dict[str, Any]) -> str:
    """The department that the text asks for, whatever the row's label."""
    language = ("en", "ko", "ja").index(row["language"])
    names = {complaint[language]: department for department, table in lexicon.SYMPTOMS.items() for complaint in table}
    mentioned = sorted(
        (name for name in names if name.casefold() in row["text"].casefold()), key=row["text"].casefold().find
    )
    assert len(mentioned) == (1 if row["subdomain"] == "keyword" else 2), row["text"]
    if row["subdomain"] == "former_latter":
        return names[mentioned[any(word in row["text"] for word in LATTER)]]
    if row["subdomain"] != "keyword":
        cue = IGNORED[row["subdomain"], row["language"]]
        mentioned = [name for name in mentioned if not re.search(cue.format(re.escape(name)), row["text"])]
    assert len(mentioned) == 1, row["text"]
    return names[mentioned[0]]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_of_validation_and_test_are_what_the_text_says(tables, split):
    for row in tables["classification", split]:
        assert row["label"] == department_of(row), row["text"]


def test_about_one_training_label_in_twenty_is_wrong(tmp_path):
    write_clinic(tmp_path, rows=ROWS)
    rows = list(read_jsonl(tmp_path / "clinic_classification" / "train.jsonl"))
    wrong = [row for row in rows if row["label"] != department_of(row)]
    assert 0.035 <= len(wrong) / len(rows) <= 0.065  # 5 % of 1,600 rows, give or take three standard errors of 0.5 %
    assert {row["label"] for row in wrong} <= set(lexicon.SYMPTOMS)


def test_noise_can_be_turned_off_and_is_a_fraction(tmp_path):
    sizes = {"train": 120, "validation": 6, "test": 6}
    write_clinic(tmp_path, rows=sizes, label_noise=0)
    rows = list(read_jsonl(tmp_path / "clinic_classification" / "train.jsonl"))
    assert [row["text"] for row in rows if row["label"] != department_of(row)] == []
    with pytest.raises(DataError, match="from 0 to 1"):
        write_clinic(tmp_path, rows=sizes, label_noise=5)


@pytest.mark.parametrize("language", ["en", "ko", "ja"])
@pytest.mark.parametrize("kind", ["negated", "corrected", "former_latter"])
def test_the_position_of_a_complaint_does_not_show_whether_it_counts(tables, kind, language):
    column, first = ("en", "ko", "ja").index(language), []
    for row in tables["classification", "test"]:
        if (row["subdomain"], row["language"]) == (kind, language):
            text = row["text"].casefold()
            at = {
                d: text.find(c[column].casefold())
                for d, table in lexicon.SYMPTOMS.items()
                for c in table
                if c[column].casefold() in text
            }
            first.append(min(at, key=at.get) == row["label"])
    assert 0.1 < sum(first) / len(first) < 0.9


def test_entities_are_in_the_text_in_reading_order_and_do_not_overlap(tables):
    for split in SIZES:
        for row in tables["ner", split]:
            end = 0
            for entity in row["entities"]:
                match = re.search(rf"(?<!\d){re.escape(entity['text'])}", row["text"][end:])
                assert match, f"{entity} is not in what follows the entities before it: {row['text']}"
                end += match.end()


def test_no_entity_is_forgotten(tables):
    counts = {  # what each kind of note mentions
        "plain": ["dose", "drug", "symptom"],
        "duration": ["dose", "drug", "duration", "symptom"],
        "rare": ["dose", "drug", "duration", "symptom"],
        "changed": ["dose", "dose", "drug", "drug"],
        "two": ["dose", "dose", "drug", "drug", "symptom"],
        "none": [],
    }
    for split in SIZES:
        for row in tables["ner", split]:
            assert sorted(entity["type"] for entity in row["entities"]) == counts[row["subdomain"]], row["text"]
            assert len(re.findall(r"\d+ mg", row["text"])) == counts[row["subdomain"]].count("dose")


def test_every_answer_is_in_its_context(tables):
    for split in SIZES:
        for row in tables["qa", split]:
            assert len(row["answers"]) == 1
            assert re.search(rf"(?<!\d){re.escape(row['answers'][0])}", row["context"]), row


def test_answers_are_those_a_reader_would_give(tables):
    now = {"en": r"now takes (\w+) \d+ mg|: (\w+) \d+ mg now", "ko": r"현재 (\w+) \d+ mg", "ja": r"現在は(\w+) \d+ mg"}
    for split in SIZES:
        for row in tables["qa", split]:
            context, answer = row["context"], row["answers"][0]
            if row["subdomain"] in ("changed", "rare"):
                match = re.search(now[row["language"]], context)
                assert answer in match.groups(), row
            elif row["subdomain"] == "two":
                drug = next(name for table in lexicon.DRUGS for name in table if name in row["question"])
                assert f"{drug} {answer}" in context, row
            elif row["subdomain"] == "duration":
                assert re.fullmatch(r"[2-9] ?(days|weeks|months|일|주|개월|日間|週間|か月)", answer), row
            else:
                assert any(answer in table for table in lexicon.DRUGS), row


def test_made_up_drug_names_of_test_are_in_no_training_text(tables):
    known = {name for table in lexicon.DRUGS for name in table}
    rare = [entity["text"] for row in tables["ner", "test"] for entity in row["entities"] if entity["type"] == "drug"]
    rare += [row["answers"][0] for row in tables["qa", "test"] if row["subdomain"] == "rare"]
    rare = set(rare) - known
    assert len(rare) > 20
    training = "\n".join(text_of(row) for task in TASKS for row in tables[task, "train"])
    assert [name for name in sorted(rare) if name in training] == []


# --- Korean particles ---


@pytest.mark.parametrize(
    ("word", "kind", "expected"),
    [
        ("가슴", "를", "가슴을"),  # ends in ㅁ
        ("두드러기", "를", "두드러기를"),  # ends in a vowel
        ("두통", "가", "두통이"),
        ("설사", "가", "설사가"),
        ("어지럼증", "는", "어지럼증은"),
        ("복시", "는", "복시는"),
        ("두통", "와", "두통과"),
        ("설사", "와", "설사와"),
        ("두통", "로", "두통으로"),
        ("설사", "로", "설사로"),
        ("발", "로", "발로"),  # after ㄹ it is 로,
        ("발", "를", "발을"),  # and otherwise ㄹ counts as any consonant
        ("점", "로", "점으로"),
    ],
)
def test_a_particle_fits_the_last_sound(word, kind, expected):
    assert particle(word, kind) == expected


def test_a_frame_is_filled_with_fitting_particles_and_begins_with_a_capital():
    assert fill("{a:와} {b:를} 호소", {"a": "가슴 통증", "b": "설사"}) == "가슴 통증과 설사를 호소"
    assert fill("{a} since {when}.", {"a": "hives", "when": "Monday"}) == "Hives since Monday."


# --- models ---


@pytest.fixture(scope="module")
def models(tmp_path_factory, tables) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_models(folder, [text_of(row) for task in TASKS for row in tables[task, "train"]], vocabulary=600)
    return folder


def test_the_tokenizer_gives_every_text_back(models, tables):
    tokenizer = AutoTokenizer.from_pretrained(models / "teacher")
    unseen = ["가슴 통증, 꿻 12 mg", "胸の痛みが3週間続き、鬱", "naïve café 🩺", " leading space"]
    for text in [*unseen, *(text_of(row) for row in tables["qa", "test"])]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_student_has_the_teachers_vocabulary_and_less_than_a_third_of_its_weights(models):
    teacher, student = (AutoModelForCausalLM.from_pretrained(models / name) for name in ("teacher", "student"))
    assert student.num_parameters() < teacher.num_parameters() / 3
    one, other = (AutoTokenizer.from_pretrained(models / name) for name in ("teacher", "student"))
    assert one.get_vocab() == other.get_vocab()
    assert teacher.config.vocab_size == student.config.vocab_size == len(one)
    assert (one.eos_token_id, one.pad_token_id) == (student.config.eos_token_id, student.config.pad_token_id)


# --- setup ---


@pytest.fixture
def small(monkeypatch):
    """`prepare` with few rows."""
    monkeypatch.setattr(
        setup, "write_clinic", lambda folder: write_clinic(folder, rows={"train": 30, "validation": 6, "test": 6})
    )


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_prepare_keeps_what_exists_and_rebuilds_another_version(small, tmp_path):
    setup.prepare(tmp_path, ["ner"])
    first = stamps(tmp_path)
    assert {path.relative_to(tmp_path).parts[0] for path in first} == {"data", "models", "ready.json"}
    setup.prepare(tmp_path, ["classification", "qa"])
    assert stamps(tmp_path) == first
    (tmp_path / "ready.json").write_text('{"version": 0}')
    setup.prepare(tmp_path, ["ner"])
    assert read_json(tmp_path / "ready.json") == {"version": setup.VERSION}
    rows = tmp_path / "data" / "clinic_ner" / "train.jsonl"
    assert rows.stat().st_mtime_ns > first[rows]


def test_prepare_starts_again_after_an_interruption(small, tmp_path):
    setup.prepare(tmp_path, ["ner"])
    (tmp_path / "ready.json").write_text("{}")  # as an interrupted command leaves it
    (tmp_path / "models" / "student" / "config.json").unlink()
    setup.prepare(tmp_path, ["ner"])
    assert (tmp_path / "models" / "student" / "config.json").is_file()


def test_a_task_that_the_demo_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"--task sentiment: the demo has classification, ner, qa"):
        setup.prepare(tmp_path / "demo", ["ner", "sentiment"])
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_of_a_task_is_moved_into_the_folder(tmp_path, task):
    from tutelage.recipe.load import load_recipe

    recipe = load_recipe(*setup.recipe_for(tmp_path, task)).recipe
    assert recipe.task.type == task
    assert Path(recipe.output_dir) == tmp_path / task
    assert Path(recipe.data.dataset) == tmp_path / "data" / f"clinic_{task}"
    assert Path(recipe.student.model_name_or_path) == tmp_path / "models" / "student"
