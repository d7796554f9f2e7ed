"""A run whose trainings FSDP2 divides over two processes: 13 rows in every split."""

import pytest

from helpers.launch import launch
from helpers.project import run_to_the_end
from helpers.several import project, same

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` puts into the environment, as accelerate 1.15 has it."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process's run: a teacher with adapters, a student with tied embeddings."""
    recipe = project(tmp_path_factory.mktemp("one"), 1)
    run_to_the_end(recipe)
    return recipe.parent


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """The folder of a run of two processes with FSDP, and how they ended."""
    recipe = project(tmp_path_factory.mktemp("two"), 2)
    return recipe.parent, launch(2, "run", recipe, "--anyway", **FSDP)


def test_divided_trainings_have_the_losses_and_choices_of_one_process(alone, divided):
    folder, ended = divided
    assert [process.code for process in ended] == [0, 0], ended[0].err
    same(alone, folder)
