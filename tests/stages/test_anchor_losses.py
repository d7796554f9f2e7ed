"""The anchor's losses are read only for the rows they were measured on."""

from types import SimpleNamespace

import numpy as np
import pytest

from helpers.rows import encoded
from tutelage.errors import StaleArtifactError
from tutelage.models.evaluation import loss_records
from tutelage.training.recorded_losses import of_anchor
from tutelage.utils.files import write_jsonl


def written(folder, rows, losses):
    write_jsonl(folder / "anchor" / "sample_loss.jsonl", loss_records(rows, losses))
    return SimpleNamespace(folder=folder)


def test_losses_come_in_the_order_of_the_training_rows_without_other_splits(tmp_path):
    rows = encoded(4)
    space = written(tmp_path, [*rows, *encoded(2, "validation")], np.array([0.5, 1.0, 1.5, 2.0, 9.0, 9.0]))
    assert of_anchor(space, "train", rows).tolist() == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    "kept", [slice(0, 3), slice(1, 4), slice(0, 0)], ids=["cut short", "another first row", "empty"]
)
def test_losses_of_other_or_fewer_rows_are_refused(tmp_path, kept):
    rows = encoded(4)
    part = rows[kept]
    with pytest.raises(StaleArtifactError, match="tutelage anchor RECIPE --force"):
        of_anchor(written(tmp_path, part, np.ones(len(part))), "train", rows)
