"""A run that one, two and three processes share: 13 rows in every split, which divide by none of these numbers."""

import shutil

import pytest
import torch

from helpers.launch import launch
from helpers.project import run_to_the_end
from helpers.several import project, same
from helpers.tiny import tiny_model
from tutelage.utils.files import read_json

DIES = """
import os, signal
from tutelage.training.trainer import DistillTrainer
def loss(self, *args, plain=DistillTrainer.compute_loss, **more):
    assert not os.environ.get("FSDP_VERSION") or any(hasattr(w, "full_tensor") for w in self.model.parameters())
    if os.environ["RANK"] == os.environ["DIES"] and "trainer-2" in self.args.output_dir and self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **more)
DistillTrainer.compute_loss = loss
"""
DIES_IN = """
import importlib, os, signal
from tutelage.models.evaluation import Evaluator
from tutelage.teacher.hidden_store import StoreWriter
from tutelage.training.trainer import DistillTrainer
stage, calls = None, 0
def noted(name):
    module = importlib.import_module(f"tutelage.stages.{name}")
    def run_stage(*args, plain=module.run_stage):
        global stage, calls
        stage, calls = name, 0
        return plain(*args)
    module.run_stage = run_stage
def deadly(owner, name):
    def call(*args, plain=getattr(owner, name), **more):
        global calls
        calls += 1
        if os.environ["RANK"] == "1" and [stage, str(calls)] == os.environ["DIES_IN"].split():
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **more)
    setattr(owner, name, call)
for name in ("teach", "silver", "anchor", "cache", "cross_fit", "distill", "evaluate"):
    noted(name)
for owner, name in ((DistillTrainer, "compute_loss"), (StoreWriter, "write"), (Evaluator, "answers")):
    deadly(owner, name)
"""
KILLS = ["teach 5", "silver 1", "anchor 5", "cache 2", "cross_fit 5", "distill 4", "evaluate 2"]
"""Every stage that shares work, and the batch, shard or set of answers at which one of its processes is killed."""
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` puts into the
environment, as accelerate 1.15 does."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process's run."""
    recipe = project(tmp_path_factory.mktemp("one"), 1)
    run_to_the_end(recipe)
    return recipe.parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes, which read batches in parts, and how they ended."""
    recipe = project(tmp_path_factory.mktemp("two"), 2)
    return recipe.parent, launch(2, "run", recipe, "--anyway", "max_tokens_per_batch=60")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run begun by three processes, of which one is killed in every stage; three and two continue it in turn. How
    they all ended, by the stage in which that was."""
    recipe = project(tmp_path_factory.mktemp("three"), 3)
    killed = {
        where: launch(3 - number % 2, "run", recipe, "--anyway", before=DIES_IN, DIES_IN=where)
        for number, where in enumerate(KILLS)
    }
    return recipe.parent, killed, launch(2, "run", recipe, "--anyway")


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A run that FSDP2 divides over two processes, of which one is killed; three continue it. How they all ended, and
    the optimizer's state that they continue from."""
    recipe = project(tmp_path_factory.mktemp("divided"), 2)
    command = ("run", recipe, "--anyway", "trainer.activation_checkpointing=true")
    killed = launch(2, *command, before=DIES, DIES="1", **FSDP)
    saved = recipe.parent / "run/distill/scd-aw-cf/seed-0/trainer-2/checkpoint-2/optimizer.pt"
    state = torch.load(saved, weights_only=True)["state"]
    return recipe.parent, killed, state, launch(3, *command, before=DIES, DIES="no", **FSDP)


def test_two_processes_have_the_losses_and_choices_of_one(alone, two):
    folder, ended = two
    assert [process.code for process in ended] == [0, 0], ended[0].err
    same(alone, folder)


def test_only_the_main_process_speaks(two):
    main, other = two[1]
    assert "accuracy" in main.out and "stage 2: follows checkpoint-" in main.err
    assert (other.out, other.err) == ("", "")


def test_a_run_that_lost_a_process_in_every_stage_goes_on_with_others_and_has_the_same_result(alone, three):
    folder, killed, continued = three
    for where, ended in killed.items():
        assert [process.code for process in ended] == [1, -9, 1][: len(ended)], (where, ended[0].err)
        lost = f"process 1 of {len(ended)} was killed or has crashed; the same command continues where it stopped"
        assert sum(process.err.splitlines()[-1:] == [lost] for process in ended) == 1, where
    assert [process.code for process in continued] == [0, 0], continued[0].err
    assert "begun with 3 processes: its batches stay as they are, shared out over 2" in continued[0].err
    same(alone, folder)


def test_caches_and_answers_of_two_processes_are_those_of_one_to_the_bit(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "copy")
    recipe = tmp_path / "copy/recipe.yaml"
    made = ["cache", "silver", "teacher_answers", "evaluate"]
    for name in made:
        shutil.rmtree(tmp_path / "copy/run" / name)
    output = f"output_dir={tmp_path / 'copy/run'}"
    assert [process.code for process in launch(2, "run", recipe, output, "--anyway")] == [0, 0]
    compared = 0
    for name in made:
        for path in sorted((alone / "run" / name).rglob("*")):
            if path.is_file() and path.name not in ("manifest.json", "checksums.json"):
                assert path.read_bytes() == (tmp_path / "copy/run" / path.relative_to(alone / "run")).read_bytes(), path
                compared += 1
    assert compared > 30
    students = read_json(tmp_path / "copy/run/distill/taid/seed-0/manifest.json")
    assert students == read_json(alone / "run/distill/taid/seed-0/manifest.json")  # as one process left them


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 on CPUs is newer than torch 2.6")
def test_a_run_that_is_divided_and_goes_on_with_more_processes_has_the_result_of_one(alone, divided):
    folder, killed, state, continued = divided
    assert killed[1].code == -9 and "process 1 of 2 was killed" in killed[0].err, killed[0].err
    assert [process.code for process in continued] == [0, 0, 0], continued[0].err
    assert "head and loss are not fused" in continued[0].err
    same(alone, folder)
    student = tiny_model(1, tie_word_embeddings=True)
    shapes = [tuple(weight.shape) for weight in student.parameters()]
    assert sorted(tuple(entry["exp_avg"].shape) for entry in state.values()) == sorted(shapes)  # whole, as of one


@pytest.mark.parametrize(
    ("override", "words", "environment"),
    [
        ("teacher.device_map=auto", "start one process (no launcher) for cache", {}),
        ("teacher.quantization=4bit", "teacher.quantization=null", FSDP),
        ("max_tokens_per_batch=64", "max_tokens_per_batch=null", FSDP),
        ("trainer.optim=adafactor", "adafactor cannot be divided by FSDP", FSDP),
    ],
)
def test_what_several_processes_cannot_hold_is_refused_before_any_work(alone, override, words, environment):
    ended = launch(2, "cache", alone / "recipe.yaml", override, "--force", "--anyway", **environment)
    assert [process.code for process in ended] == [2, 2]
    assert words in "".join(process.err for process in ended)
    assert (alone / "run/cache/manifest.json").is_file()


def test_a_refusal_is_told_once_and_ends_all(alone):
    ended = launch(2, "distill", alone / "recipe.yaml", "distill.temperature=2.0", "--anyway")
    assert [process.code for process in ended] == [2, 2]
    assert sum(process.err.count("distill.temperature: 1.0 -> 2.0") for process in ended) == 1
    assert sum(process.err.count("Error") for process in ended) == 1
