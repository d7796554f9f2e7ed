"""Every kind of file of a small run, damaged, under the commands that take little time. `benchmarks.damage` tries
all."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from benchmarks.damage import CHEAP, Bench, make_project
from tutelage.utils import integrity

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


@pytest.mark.parametrize("command", ["report", "diagnose", "explain", "card", "ls", "watch"])
def test_commands_that_show_a_run_read_no_weights(bench, command, monkeypatch):
    hashed: list[Path] = []
    file_record = integrity.file_record
    monkeypatch.setattr(integrity, "file_record", lambda path: hashed.append(path) or file_record(path))
    bench.copy(command)
    assert bench.command(bench.words(command)).code == 0
    assert [path for path in hashed if path.name == "model.safetensors" or "shard" in path.name] == []


def test_the_doctor_reports_damage(bench):
    outcome = bench.outcome("anchor/sample_loss.jsonl", "flip", "doctor")
    assert outcome.what == "refused"
