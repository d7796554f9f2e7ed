"""The demo as shipped, beyond `test_demo.py`: noise and size as arguments, two sizes of model, files that do not
change."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tutelage.demo import clinic, setup
from tutelage.demo.clinic import write_clinic
from tutelage.errors import DataError
from tutelage.utils.files import read_jsonl


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """Everything that `tutelage demo` puts in place before its first stage."""
    folder = tmp_path_factory.mktemp("demo")
    setup.prepare(folder, ["classification"])
    return folder


def test_the_whole_demo_is_the_same_bytes_every_time(demo, tmp_path):
    setup.prepare(tmp_path, ["qa"])
    assert digests(tmp_path) == digests(demo)


def test_the_student_has_less_than_a_fifth_of_the_teachers_weights(demo):
    teacher, student = (AutoModelForCausalLM.from_pretrained(demo / "models" / name) for name in ("teacher", "student"))
    assert student.num_parameters() < teacher.num_parameters() / 5


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_decoding_ends_at_the_tokenizers_end_and_no_start_token_is_added(demo, name):
    tokenizer = AutoTokenizer.from_pretrained(demo / "models" / name)
    settings = GenerationConfig.from_pretrained(demo / "models" / name)
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    assert tokenizer("")["input_ids"] == []


@pytest.mark.parametrize("task", clinic.TASKS)
def test_prompts_are_short(demo, task):
    """Steps of the demo are quick because no note is longer than 64 tokens; byte by byte, a Korean one would be."""
    tokenizer = AutoTokenizer.from_pretrained(demo / "models" / "student")
    rows = read_jsonl(demo / "data" / f"clinic_{task}" / "test.jsonl")
    lengths = [len(tokenizer(row.get("text") or f"{row['context']}\n{row['question']}")["input_ids"]) for row in rows]
    assert max(lengths) < 64


def test_six_departments_share_the_clean_rows_about_equally(demo):
    counts = Counter(row["label"] for row in read_jsonl(demo / "data" / "clinic_classification" / "test.jsonl"))
    assert len(counts) == 6
    assert all(45 <= count <= 90 for count in counts.values()), counts  # 400 / 6 = 67, standard deviation 7.5


def test_label_noise_is_an_argument_and_leaves_validation_and_test_clean(tmp_path):
    sizes = {"train": 120, "validation": 30, "test": 30}
    tables = {}
    for noise in (0.0, 1.0):
        folder = write_clinic(tmp_path / str(noise), rows=sizes, label_noise=noise)["classification"]
        tables[noise] = {split: list(read_jsonl(folder / f"{split}.jsonl")) for split in sizes}
    for noise, splits in tables.items():
        for split, rows in splits.items():
            wrong = [row for row in rows if row["subdomain"] == "keyword" and row["label"] != _only_department(row)]
            keyword = sum(row["subdomain"] == "keyword" for row in rows)
            assert len(wrong) == (keyword if (split, noise) == ("train", 1.0) else 0)


def _only_department(row: dict[str, str]) -> str:
    """The department of a `keyword` row, whose text holds one complaint."""
    language, text = clinic.words.LANGUAGES.index(row["language"]), row["text"].casefold()
    (department,) = (
        name
        for name, complaints in clinic.words.SYMPTOMS.items()
        if any(complaint[language].casefold() in text for complaint in complaints)
    )
    return department


@pytest.mark.parametrize("noise", [-0.1, 5])
def test_noise_that_is_no_fraction_is_refused_before_anything_is_written(tmp_path, noise):
    with pytest.raises(DataError, match=rf"label_noise is {noise}, .*from 0 to 1"):
        write_clinic(tmp_path / "clinic", label_noise=noise)
    assert not (tmp_path / "clinic").exists()


def test_more_rows_than_there_are_texts_are_refused_instead_of_searching_forever(tmp_path):
    with pytest.raises(
        DataError, match=r"clinic_ner: after \d+ of 9000 train rows, .* `none` notes .*: ask for fewer `rows`"
    ):
        write_clinic(tmp_path, rows={"train": 9000})
