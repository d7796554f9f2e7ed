"""Records on disk are the records of a list, and texts by digests are found as the texts are."""

import random
import tracemalloc

import numpy as np

from tutelage.utils.digests import DigestSet, digest, digests, repeated
from tutelage.utils.spool import BLOCK, Mapped, Picked, Spool


def spool_of(records, folder=None):
    spool = Spool(folder)
    spool.extend(records)
    return spool


def test_a_spool_reads_like_the_list_it_was_made_from(tmp_path):
    records = [{"text": "é😀" * (n % 5), "n": n} for n in range(3 * BLOCK + 7)]
    spool = spool_of(records, tmp_path)
    assert len(spool) == len(records) and spool == records and list(spool) == records
    assert [spool[0], spool[BLOCK], spool[-1]] == [records[0], records[BLOCK], records[-1]]
    assert spool[2:9:3] == records[2:9:3]
    assert [pair for pair in zip(spool, spool, strict=True)] == [(record, record) for record in records]
    assert not list(tmp_path.iterdir())  # nothing is left behind by a process that is killed
    assert spool != records[:-1] and spool_of([]) == []


def test_records_can_be_added_between_reads_and_taken_back():
    spool = spool_of(range(100))
    assert spool[70] == 70
    spool.append(100)
    assert spool[100] == 100 and spool[3] == 3
    for size in (BLOCK + 1, BLOCK, 5, 0):
        spool.truncate(size)
        spool.append("new")
        assert spool == [*range(size), "new"]


def test_picked_and_mapped_are_the_records_in_another_order_and_form():
    spool = spool_of("abcdef")
    assert Picked(spool, np.array([4, 0, 4])) == ["e", "a", "e"]
    assert Mapped(spool, lambda index, letter: f"{index}{letter}")[1:3] == ["1b", "2c"]


def test_a_spool_of_long_records_takes_a_few_bytes_of_memory_for_each():
    tracemalloc.start()
    spool = Spool()
    before = tracemalloc.get_traced_memory()[0]
    spool.extend("x" * 1000 + str(n) for n in range(20_000))
    assert tracemalloc.get_traced_memory()[0] - before < 8 * 20_000
    tracemalloc.stop()
    assert spool[12_345].endswith("x12345")


def test_digests_find_what_texts_would():
    draw = random.Random(0)
    some, others = ([str(draw.randrange(3000)) for _ in range(2000)] for _ in range(2))
    known = DigestSet(digests(some[:900]), digests(some[900:]))
    assert known.holds(digests(others)).tolist() == [text in set(some) for text in others]
    assert [digest(text) in known for text in others] == [text in set(some) for text in others]
    assert set(repeated(digests(some)).tolist()) == {digest(text) for text in some if some.count(text) > 1}
    assert 0 not in DigestSet() and not DigestSet().holds(digests(some)).any()
