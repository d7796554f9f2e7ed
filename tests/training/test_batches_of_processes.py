"""How many rows make a step, whatever the number of processes that share it."""

import pytest

from tutelage.training.trainer import steps_of, training_arguments
from tutelage.utils import ranks


@pytest.mark.parametrize(
    ("rows", "accumulation", "planned", "there", "expected"),
    [
        (4, 1, 1, 1, (4, 1, 4)),
        (4, 2, 3, 3, (4, 2, 12)),
        (2, 1, 2, 1, (2, 2, 2)),
        (2, 1, 1, 2, (1, 1, 2)),
        (4, 1, 3, 2, (3, 2, 6)),  # 12 rows: not 4 in each process, because 8 do not divide 12
        (3, 1, 1, 5, (1, 1, 3)),  # two of five processes have no row
        (2, 1, 2, 3, (2, 1, 4)),  # 2, 1 and 1 row
        (1, 1, 7, 2, (1, 7, 1)),
    ],
)
def test_a_step_has_the_rows_of_the_processes_that_a_run_was_begun_with(
    tmp_path, monkeypatch, rows, accumulation, planned, there, expected
):
    monkeypatch.setattr(ranks, "size", lambda: there)
    given = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation, "use_cpu": True}
    args = training_arguments(tmp_path, given | {"planned_processes": planned}, seed=0, epochs=1)
    found = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.batch_rows
    assert found == expected
    assert args.batch_rows * args.gradient_accumulation_steps == rows * accumulation * planned
    assert args.per_device_train_batch_size <= rows
    assert args.grouped_rows == rows * planned
    for count in (1, 12, 13, 50):
        assert steps_of(args, count) == -(-count // (rows * accumulation * planned))
