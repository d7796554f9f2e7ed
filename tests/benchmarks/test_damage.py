"""Every kind of file of a small run, damaged, under the commands that take little time. `benchmarks.damage` tries
all."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from benchmarks.damage import CHEAP, Bench, make_project

FAULTS = ("flip", "delete", "halve")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder, before = tmp_path_factory.mktemp("damage"), Path.cwd()
    recipe = make_project(folder / "project", distill={"methods": ["scd-aw"]})
    yield Bench(folder, recipe, whole=False)
    os.chdir(before)


def test_no_damage_ends_in_a_traceback_or_in_other_numbers(bench):
    trials = [
        (*pair, CHEAP[n % len(CHEAP)]) for n, pair in enumerate(itertools.product(bench.kinds_of_files(), FAULTS))
    ]
    outcomes = [bench.outcome(*trial) for trial in trials]
    assert len(outcomes) > 100 and sum(outcome.what == "refused" for outcome in outcomes) > 20
    assert [outcome for outcome in outcomes if outcome.what in ("traceback", "silent", "stopped")] == []
