"""Launches over several machines, for which folders and names of this one stand in."""

import os

import pytest

from helpers.launch import launch
from helpers.project import make_project

HURRY = "from tutelage.utils import ranks; ranks.VISIBLE_SECONDS = 1.0\n"
NAMED = HURRY + "import os, socket; socket.gethostname = lambda: 'node' + os.environ['RANK']\n"
DIES = f"""{NAMED}
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `join` does, before torch is imported here
import signal
from tutelage.stages import teach
def run_stage(*_):
    if os.environ["RANK"] == os.environ["DIES"]:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.gather(None)
teach.run_stage = run_stage
"""


@pytest.fixture
def recipe(tmp_path):
    return make_project(tmp_path, output_dir="run")


@pytest.fixture
def places(tmp_path):
    """Current folders of two machines: output_dir, which is relative, is another folder on each."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_a_folder_that_not_all_machines_share_is_refused_before_any_work(recipe, places):
    ended = launch(2, "run", recipe, "--anyway", before=NAMED, within=places)
    assert [process.code for process in ended] == [2, 2]
    said = "".join(process.err for process in ended)
    assert said.count("is not one folder for all machines of the launch") == 1
    assert "process 0 on node0 does not see what process 1 (on node1) wrote there" in said
    assert str(places[0] / "run") in said and "output_dir=/SHARED" in said
    assert [os.listdir(folder / "run") for folder in places] == [[], []]


def test_machines_that_share_the_folder_share_the_work(recipe, places):
    ended = launch(2, "prepare", recipe, before=NAMED, within=[places[0]] * 2)
    assert [process.code for process in ended] == [0, 0], ended[0].err
    assert (places[0] / "run/prepare/manifest.json").is_file() and not list((places[0] / "run").glob(".seen*"))


@pytest.mark.parametrize("dies", [0, 1])
def test_a_machine_that_is_lost_ends_all_with_one_message(recipe, places, dies):
    command = ("run", recipe, "--anyway")
    ended = launch(2, *command, before=DIES, within=[places[0]] * 2, DIES=str(dies))
    assert ended[dies].code == -9 and ended[1 - dies].code == 1
    lost = f"process {dies} of 2 was killed or has crashed; the same command continues where it stopped"
    assert ended[1 - dies].err.splitlines()[-1] == lost
