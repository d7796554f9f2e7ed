"""Rows on disk are the rows in memory, and reading them holds a few at a time."""

import numpy as np
import pytest

from helpers.rows import encoded
from tutelage.data.token_store import (
    BATCH_ROWS,
    TokenStore,
    answer_lengths,
    keys_of,
    length_order,
    row_lengths,
    write_tokens,
)

COUNT = 2 * BATCH_ROWS + 3


@pytest.fixture
def store(tmp_path):
    write_tokens(tmp_path / "train.arrow", iter(encoded(COUNT)))
    return TokenStore(tmp_path / "train.arrow", "train")


def test_rows_come_back_as_they_were(store):
    rows = encoded(COUNT)
    assert list(store) == rows
    assert store[60:70] == rows[60:70]
    assert store[-1] == rows[-1] and store[np.int64(5)] == rows[5]
    with pytest.raises(IndexError):
        store[COUNT]


def test_what_is_known_of_all_rows_agrees_with_the_rows(store):
    rows = encoded(COUNT)
    for of in (keys_of, answer_lengths, row_lengths, length_order):
        assert np.array_equal(of(store), of(rows))


def test_a_split_may_be_empty(tmp_path):
    write_tokens(tmp_path / "test.arrow", [])
    assert list(TokenStore(tmp_path / "test.arrow", "test")) == []
