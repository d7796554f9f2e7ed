"""Methods of the user's own, and methods that train on the teacher's answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from helpers.project import Command, make_project
from tutelage import METHODS, Method
from tutelage.data.token_store import TokenStore
from tutelage.method import methods
from tutelage.method.divergences import DIVERGENCES, forward_kl
from tutelage.method.methods import find_method
from tutelage.utils.files import read_jsonl

DOC = Path(__file__).parents[2] / "docs" / "your-own-method.md"


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_the_documented_script_compares_its_method(tmp_path):
    script = tmp_path / "gate.py"
    script.write_text(
        re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[1], encoding="utf-8"
    )
    words = [
        sys.executable,
        str(script),
        "compare",
        str(make_project(tmp_path)),
        "--methods",
        "td-gate",
        "--seeds",
        "1",
        "--anyway",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "td-gate" in done.stdout
    lines = list(read_jsonl(tmp_path / "run/distill/td-gate/seed-0/weights.jsonl"))
    assert {line["weight"] for line in lines} <= {0.0, 1.0}
    assert all((line["teacher_nll"] < line["anchor_nll"]) == (line["weight"] == 1.0) for line in lines)


def test_the_page_names_the_components_and_the_entry_points_that_there_are():
    text, components = DOC.read_text(encoding="utf-8"), get_type_hints(Method)
    for component in ("schedule", "divergence", "weighting"):
        names = {
            name for choice in get_args(components[component]) for name in get_args(choice) if isinstance(name, str)
        }
        row = re.search(rf"^\| {component} \| ([^|]+) \|", text, re.MULTILINE)[1]
        assert set(re.findall(r"`(\w+)`", row)) == names
    assert f'[project.entry-points."{methods.GROUP}"]' in text


def test_a_method_can_name_every_divergence_and_no_other():
    (names,) = (set(get_args(choice)) for choice in get_args(get_type_hints(Method)["divergence"])[:1])
    assert names == {"none", *DIVERGENCES}


def test_functions_as_components(tmp_path, command, monkeypatch):
    seen = []

    def last(candidates, *, stage, num_stages, best, previous):
        seen.append((stage, previous.checkpoint if previous else None))
        return candidates[-1].checkpoint

    def half(student, teacher, temperature):
        return 0.5 * forward_kl(student, teacher, temperature)

    monkeypatch.setitem(
        METHODS, "mine", Method(last, half, lambda anchor, teacher: np.full(len(anchor), 0.25), "a test")
    )
    assert command("run", make_project(tmp_path), "distill.methods=[mine]", "trainer.logging_steps=1") == 0
    stages = json.loads((tmp_path / "run/distill/mine/seed-0/stages.json").read_text())
    assert [stage["reason"] for stage in stages] == ["chosen by last"] * 2
    newest = stages[0]["chosen"]
    assert seen == [(1, None), (2, newest)]
    log = [line for line in read_jsonl(tmp_path / "run/distill/mine/seed-0/log.jsonl") if "kd" in line]
    assert log and all(line["kd"] > 0 for line in log)


@pytest.mark.parametrize(
    ("part", "given", "words"),
    [
        (0, lambda candidates, **_: "checkpoint-99", "it must return one of"),
        (2, lambda anchor, teacher: anchor * 0 + 2, "weights in [0, 1]"),
        (2, lambda anchor, teacher: anchor[:1] * 0, "one per row"),
    ],
)
def test_wrong_results_of_functions_are_reported(tmp_path, command, monkeypatch, part, given, words):
    parts = ["best", "forward_kl", "constant", "a test"]
    parts[part] = given
    monkeypatch.setitem(METHODS, "mine", Method(*parts))
    assert command("run", make_project(tmp_path), "distill.methods=[mine]") == 2
    assert words in command.err and "diverged" not in command.err


def test_methods_of_installed_packages_are_found(monkeypatch):
    points = {
        "good": EntryPoint("good", "tutelage:METHODS", methods.GROUP),
        "td2": EntryPoint("td2", "test_own_methods:BROUGHT", methods.GROUP),
    }
    monkeypatch.setattr(methods, "_entry_points", lambda: points)
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    assert methods.method_names()[-2:] == ["good", "td2"]
    assert find_method("td2") is BROUGHT
    with pytest.raises(TypeError, match=r"must be a tutelage\.Method"):
        find_method("good")


BROUGHT = METHODS["td"]


def test_seqkd_trains_on_the_teachers_answers(tmp_path, command):
    """The teacher has learned to end some of them; of the others the last tokens would be missing."""
    recipe = make_project(tmp_path, teach={"trainer": {"num_train_epochs": 6}})
    assert command("run", recipe, "distill.methods=[seqkd]") == 0
    answers = list(read_jsonl(tmp_path / "run/teacher_answers/answers.jsonl"))
    rows = TokenStore(tmp_path / "run/teacher_answers/train.arrow", "train")
    gold = TokenStore(tmp_path / "run/prepare/tokens/train.arrow", "train")
    assert [row.id for row in rows] == [row.id for row in gold] == [line["id"] for line in answers]
    for row, known, line in zip(rows, gold, answers, strict=True):
        assert row.prompt == known.prompt
        if "left_out" in line:
            assert row.answer == known.answer and line["target"] is None
        else:
            assert bytes(row.answer[:-1]).decode(errors="replace").strip() == line["target"] == line["raw"]
    left_out = sum("left_out" in line for line in answers)
    assert left_out < len(answers)
    assert (f"teacher's answers: {left_out} of 12 cannot be learned" in command.err) == (left_out > 0)
    assert not (tmp_path / "run/cache").exists()  # only the teacher's answers are needed


def test_taid_goes_through_all_stages(tmp_path, command):
    assert command("run", make_project(tmp_path), "distill.methods=[taid]") == 0
    stages = json.loads((tmp_path / "run/distill/taid/seed-0/stages.json").read_text())
    assert 0.4 < stages[0]["taid"]["share"] < stages[1]["taid"]["share"]
    assert stages[1]["taid"]["share"] == pytest.approx(1.0)
