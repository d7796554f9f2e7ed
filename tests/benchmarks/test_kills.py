"""Stages that are killed at some of their file operations end as undisturbed ones; `benchmarks.kills` takes all."""

from __future__ import annotations

import random

import pytest

from benchmarks.kills import (
    Command,
    contents,
    differences,
    killed_at_operations,
    make_project,
    more_commands,
    run_command,
    stage_commands,
    type_again,
    warm_up,
)

METHODS = ["scd-aw"]


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> None:
    warm_up(tmp_path_factory.mktemp("warm"), METHODS)


def test_killed_stages_and_commands_end_as_undisturbed_ones(warm, tmp_path):
    recipe, draw, verdicts = make_project(tmp_path / "project", METHODS), random.Random(0), []

    def some(count: int) -> list[int]:
        """One anywhere, or among the last, after the manifest."""
        return [draw.randint(draw.choice([1, max(1, count - 6)]), count)]

    more = [command for command in more_commands(recipe) if command.name in ("anchor --force", "shrink", "init")]
    for command in [*stage_commands(recipe, METHODS), *more]:
        if command.name != "diagnose":
            verdicts += killed_at_operations(command, tmp_path / "copy", some)
    assert len(verdicts) == 14 and [verdict for verdict in verdicts if verdict.kind != "same"] == []


def test_a_command_that_does_not_end_and_another_result_are_found(warm, tmp_path):
    recipe = make_project(tmp_path / "project", METHODS)
    prepare = next(stage_commands(recipe, METHODS))
    assert run_command(prepare, at=3).code == 137 and not (prepare.folder / "prepare" / "manifest.json").exists()
    assert run_command(prepare).code == 0
    before = contents(prepare.folder)
    other = {name: content for name, content in before.items() if name != "prepare/data.json"}
    assert differences(contents(prepare.folder), other) == ["prepare/data.json"]
    assert type_again(prepare, other) == ("different", "prepare/data.json")
    assert type_again(Command("no stage", ["nonsense"], prepare.folder), other).kind == "stuck"
