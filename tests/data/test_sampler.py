"""Batches of like length: every row once an epoch, little padding, the same again for the same seed and epoch."""

import numpy as np
import pytest

from tutelage.data.collate import LengthGroupedSampler

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
