"""A cell with several GPUs is trained by as many processes, with the student of one; here they are processes on the
CPU."""

from __future__ import annotations

import os
import pickle
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from helpers.project import make_project, run_to_the_end
from tutelage.compare.cell_runs import make_cell
from tutelage.compare.cells import Cell
from tutelage.compare.launched_cell import processes_of, run_launched
from tutelage.errors import UserError
from tutelage.utils.files import read_json

CELL = Cell("r", "run", "td", 0, 0)


def refuse(cell):
    raise UserError("this cannot be\nmended")


def lose_one(cell):
    from tutelage.utils import ranks

    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.gather(None)


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (0.25, 1), (1, 1), (2, 2), (8, 8)])
def test_a_process_for_each_gpu(gpus, processes):
    assert processes_of(gpus) == processes


def test_the_student_is_that_of_one_process(tmp_path):
    recipe = make_project(tmp_path, distill={"methods": ["td"]})
    run_to_the_end(recipe)
    run = tmp_path / "run"
    for name in ("distill", "evaluate"):
        (run / name).rename(tmp_path / name)
    assert run_launched(Cell("r", str(run), "td", 0, 0), pickle.dumps(make_cell), 2) is None
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder / "distill/td/seed-0").state_dict() for folder in (run, tmp_path)
    )
    assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    scores = [read_json(folder / "evaluate/td/seed-0/scores.json") for folder in (run, tmp_path)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (refuse, "this cannot be\nmended"),
        # torchrun ends the other process, sooner or later than that has found out
        (lose_one, "process 1 of 2 was killed or has crashed|its 2 processes ended with exit code 1; .*-9: killed"),
    ],
)
def test_an_error_is_told(task, expected, monkeypatch):
    here = (Path(__file__).parent, Path(__file__).parents[1], os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, here)))
    assert re.search(expected, run_launched(CELL, pickle.dumps(task), 2))
