"""Rows of any number take a few bytes of memory each: read, rendered, compared and tokenized."""

import json
import tracemalloc

import numpy as np
import pytest

from helpers.files import CLASSIFY, recipe
from helpers.rows import encoder
from tutelage.data.dataset import load_rows
from tutelage.data.encode import Misfits
from tutelage.data.near_duplicates import near_pairs
from tutelage.data.readers import spool_rows
from tutelage.data.splits import held_out, sample
from tutelage.data.token_store import write_tokens
from tutelage.errors import RowsError
from tutelage.utils.digests import digests

A_ROW = 80
"""Bytes of memory that a row may take; as an `Example` in a list it takes more than 1,000."""


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write(folder, count):
    folder.mkdir()
    for split, rows in (("train", count), ("validation", 50), ("test", 50)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for n in range(rows):
                row = {"id": f"{split}-{n}", "text": f"the {split} text of number {n} " * 3, "label": f"label {n % 7}"}
                file.write(json.dumps(row) + "\n")
    return recipe(folder, CLASSIFY, template="{text}:")


def test_memory_hardly_grows_with_the_rows(tmp_path):
    def prepare(count):
        rows = load_rows(write(tmp_path / f"{count}", count), folder=tmp_path)
        for split, examples in rows.examples.items():
            misfits = Misfits()
            write_tokens(tmp_path / f"{count}-{split}.arrow", encoder().fitting(examples, misfits))
            assert not misfits.long

    prepare(10)  # what is loaded once
    few, many = (peak_of(lambda count=count: prepare(count)) for count in (500, 4_500))
    assert many - few < A_ROW * 4_000


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "conll", "parquet"])
def test_a_file_is_read_row_by_row(tmp_path, ending):
    def make(count):
        import pyarrow
        from pyarrow import parquet

        path, texts = tmp_path / f"{count}.{ending}", [f"text {n} " + "word " * 50 for n in range(count)]
        if ending == "parquet":
            parquet.write_table(pyarrow.table({"text": texts, "label": ["a"] * count}), path)
            return path
        lines = {
            "jsonl": (json.dumps({"text": text, "label": "a"}) for text in texts),
            "csv": ["text,label", *(f"{text},a" for text in texts)],
            "tsv": ["text\tlabel", *(f"{text}\ta" for text in texts)],
            "conll": (f"{text.split()[1]} O\n{'x' * 250} B-A\n" for text in texts),
        }[ending]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    paths = [make(count) for count in (10, 500, 4_500)]
    spool_rows([str(paths[0])])
    few, many = (peak_of(lambda path=path: spool_rows([str(path)])) for path in paths[1:])
    assert len(spool_rows([str(paths[2])])) == 4_500
    assert many - few < A_ROW * 4_000


def test_rows_of_one_prompt_are_held_out_together_and_at_least_one_row():
    keys = digests([f"prompt {n // 3}" for n in range(300)])
    moved = held_out(keys, 0.1, seed=0)
    assert 30 <= moved.sum() < 33
    assert all(len(set(moved[n : n + 3].tolist())) == 1 for n in range(0, 300, 3))
    assert held_out(keys[:2], 0.01, seed=0).all() and not len(held_out(keys[:0], 0.1, seed=0))


def test_a_sample_and_what_replaces_it_are_all_rows_once():
    drawn, others = sample(1_000, 10, "0/train")
    assert sorted(drawn) == list(drawn) and len(drawn) == 10 and len(others) == 990
    assert sorted([*drawn, *others]) == list(range(1_000)) and list(others) != sorted(others)
    assert sample(10, 10, "0/train") == (range(10), sample(10, None, "0/train")[1])


def test_an_id_that_a_dropped_row_shares_is_still_refused(tmp_path):
    test = [{"id": "same", "text": "one text", "label": "a"}]
    train = [{"id": f"{n}", "text": f"text {n}", "label": "a"} for n in range(5)]
    for split, rows in (("train", train + test), ("validation", [{"text": "v", "label": "a"}]), ("test", test)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(RowsError, match="same"):
        load_rows(recipe(tmp_path, CLASSIFY, overlap="drop"))


def test_near_duplicates_are_the_same_however_the_texts_are_divided(monkeypatch):
    draw = np.random.default_rng(0)
    words = [f"word{n}" for n in range(40)]
    earlier = [" ".join(draw.choice(words, 12)) for _ in range(300)]
    later = [text.replace("word1 ", "other ") for text in earlier[::3]] + [" ".join(draw.choice(words, 12))] * 3
    whole = near_pairs(earlier, later), near_pairs(later, earlier)
    assert len(whole[0]) > 50
    for name, value in {"CHUNK_TEXTS": 7, "COMPACTED": 5}.items():
        monkeypatch.setattr(f"tutelage.data.near_duplicates.{name}", value)
    assert (near_pairs(earlier, later), near_pairs(later, earlier)) == whole
