"""Batches of like length: every row once an epoch, little padding, the same again for the same seed and epoch. Batches
that several processes share."""

import numpy as np
import pytest
from torch.utils.data import BatchSampler

from tutelage.data.collate import LengthGroupedSampler, SharedBatches

LENGTHS = np.random.default_rng(0).integers(5, 200, 1003)


def padded(order, size=8):
    """Tokens in all batches, padding included."""
    batches = [LENGTHS[order[start : start + size]] for start in range(0, len(order), size)]
    return sum(batch.max() * len(batch) for batch in batches)


@pytest.mark.parametrize("rows", [1003, 8, 7, 1])
def test_every_row_comes_once_an_epoch(rows):
    assert sorted(LengthGroupedSampler(LENGTHS[:rows], 8, seed=3)) == list(range(rows))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        sampler = LengthGroupedSampler(LENGTHS, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_little_is_padded():
    grouped, shuffled = padded(np.array(list(LengthGroupedSampler(LENGTHS, 8, 0)))), padded(np.random.permutation(1003))
    assert grouped < 1.06 * LENGTHS.sum() < shuffled


def test_rows_that_fill_no_batch_come_last():
    order = list(LengthGroupedSampler(LENGTHS, 8, 0))
    spread = [np.ptp(LENGTHS[order[start : start + 8]]) for start in range(0, 1000, 8)]
    assert max(spread) < 40


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize(("rows", "batch"), [(13, 6), (12, 6), (13, 4), (7, 3), (1, 6), (13, 1)])
def test_the_parts_of_a_shared_batch_are_the_batch_of_one_process(rows, batch, processes):
    order = np.random.default_rng(1).permutation(rows).tolist()
    parts = [list(SharedBatches(order, batch, rank, processes)) for rank in range(processes)]
    for whole, *shared in zip(BatchSampler(order, batch, drop_last=False), *parts, strict=True):
        own = [[index for index in part if index >= 0] for part in shared]
        assert [index for part in own for index in part] == whole
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert all(part for part in shared)  # every process computes each step, if only for a row that stands in
