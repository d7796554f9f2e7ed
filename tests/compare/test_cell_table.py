"""The state of a cell: one test for every rule of `cell_table`, and what the table gives to run, count and refuse."""

from __future__ import annotations

import pytest

from tutelage.compare.cell_table import UNCHECKED, CellState, CellTable, ExpectedFingerprints, decide_state
from tutelage.compare.cells import Cell, CellRecord
from tutelage.errors import UserError


def cell(method="td", *, recipe="r", run="run", seed=0, teacher_seed=0, options=""):
    return Cell(recipe, run, method, seed, teacher_seed, options)


def record(inputs="now", status="done"):
    return CellRecord([{"inputs": inputs, "status": status, "seconds": 1.0, "error": "no room"}])


# --- states ---


@pytest.mark.parametrize(
    ("expected", "recorded", "has_predictions", "state"),
    [
        ("now", None, True, CellState.MISSING),
        ("now", record("now"), True, CellState.DONE),
        ("now", record("before"), True, CellState.STALE),
        (None, record("now"), True, CellState.STALE),
        ("now", record("now", "failed"), True, CellState.FAILED),
        ("now", record("before", "failed"), True, CellState.STALE),
        ("now", record("now"), False, CellState.MISSING),
        ("now", record("before"), False, CellState.STALE),
        (UNCHECKED, record("before"), True, CellState.DONE),
        (UNCHECKED, record("before", "failed"), True, CellState.FAILED),
    ],
)
def test_state(expected, recorded, has_predictions, state):
    assert decide_state(expected, recorded, has_predictions=has_predictions) is state


# --- expected fingerprints ---


def test_a_planned_cell_has_its_own_fingerprint():
    assert ExpectedFingerprints({cell("td"): "a", cell("scd"): "b"}).of(cell("scd")) == "b"


def test_other_options_of_a_planned_method_are_not_wanted():
    tuned = cell(seed=1, options="trainer.learning_rate=0.1")
    expected = ExpectedFingerprints({cell(options="trainer.learning_rate=0.2"): "a"}, others={tuned: "before"})
    assert expected.of(tuned) is None


def test_another_run_folder_of_a_planned_recipe_is_not_wanted():
    moved = cell(run="old")
    expected = ExpectedFingerprints({cell(run="new"): "a"}, others={moved: None})
    assert expected.of(moved) is None and expected.of(cell("jsd", run="old")) is None
    assert expected.of(cell(run="new")) == "a", "what is said of the old folder says nothing about the new one"


@pytest.mark.parametrize("other", [cell("jsd"), cell(seed=7), cell(teacher_seed=1, run="run-teacher-1")])
def test_a_cell_of_a_planned_recipe_that_was_not_asked_for_has_the_fingerprint_of_today(other):
    assert ExpectedFingerprints({cell(): "a"}, others={other: "b"}).of(other) == "b"


def test_nothing_is_expected_of_another_recipe():
    assert ExpectedFingerprints({cell(): "a"}).of(cell(recipe="other", run="elsewhere")) is UNCHECKED
    assert ExpectedFingerprints({cell(): "a"}).of(cell("not-installed")) is UNCHECKED
    assert ExpectedFingerprints({}).of(cell()) is UNCHECKED


# --- the table ---


def test_cells_to_run_are_the_planned_ones_that_are_not_done():
    names = ("done", "failed", "stale", "missing", "unscored")
    planned = {cell(name): "now" for name in names}
    records = {
        cell("done"): record(),
        cell("failed"): record(status="failed"),
        cell("stale"): record("before"),
        cell("unscored"): record(),
        cell("not-planned"): record(status="failed"),
    }
    table = CellTable(records, planned, has_predictions=lambda cell: cell.method != "unscored")
    assert [to_run.method for to_run in table.to_run()] == ["failed", "stale", "missing", "unscored"]
    assert [entry.cell.method for entry in table.planned()] == list(names)


def test_done_and_failed_cells_count_in_the_order_of_the_plan_then_of_the_alphabet():
    planned = {cell("td", seed=seed): "now" for seed in (0, 1)} | {cell("scd"): "now"}
    records = {
        cell("cd"): record(),
        cell("akl"): record(status="failed"),
        cell("scd"): record(),
        cell("td", seed=1): record(),
        cell("td", seed=0): record("before"),
    }
    table = CellTable(records, planned)
    assert [(entry.cell.method, entry.cell.seed, entry.state.value) for entry in table.counted()] == [
        ("td", 1, "done"), ("scd", 0, "done"), ("akl", 0, "failed"), ("cd", 0, "done"),
    ]  # fmt: skip
    assert [entry.cell for entry in table.in_state(CellState.STALE)] == [cell("td", seed=0)]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (cell(run="other"), "run folders other and run"),
        (cell(options="kd_ratio=0.7"), "options '' and 'kd_ratio=0.7'"),
    ],
)
def test_two_results_under_one_name_are_refused_if_no_command_says_which_counts(other, words):
    records = {cell(): record(), other: record()}
    with pytest.raises(UserError, match=words):
        CellTable(records).counted()
    assert [entry.cell for entry in CellTable(records, {cell(): "now"}).counted()] == [cell()]
