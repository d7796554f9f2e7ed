"""Settings that could only fail in training are refused by `SCDConfig`, by `prepare` and by `doctor`."""

import json

import numpy as np
import pytest
from transformers.trainer_utils import SchedulerType

from helpers.project import Command, make_project
from tutelage import SCDConfig
from tutelage.errors import ConfigError, Kind


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_every_wrong_setting_from_python_is_reported(tmp_path):
    with pytest.raises(ConfigError) as caught:
        SCDConfig(
            output_dir=str(tmp_path),
            method="td+kd_ratio=2",
            num_stages=0,
            epochs_per_stage=float("inf"),
            temperature=float("nan"),
            student_kl="backward",
            cache_dtype="int8",
            save_every_steps=0,
            max_tokens_per_batch=0,
            seed=2**33,
            learning_rate=-1.0,
            per_device_train_batch_size=0,
            fsdp="full_shard",
            report_to="wand",
        )
    wrong = {"num_stages", "epochs_per_stage", "temperature", "student_kl", "cache_dtype", "save_every_steps", "seed"}
    wrong |= {"max_tokens_per_batch", "method"}
    arguments = {"learning_rate", "per_device_train_batch_size", "fsdp", "report_to"}
    assert {problem.key for problem in caught.value.problems} == wrong | arguments
    assert "num_stages: found 0, want a whole number above 0" in str(caught.value)


def test_settings_from_python_may_be_of_numpy_or_enumerations(tmp_path):
    given = SCDConfig(
        output_dir=str(tmp_path),
        num_stages=np.int64(2),
        learning_rate=np.float32(1e-4),
        lr_scheduler_type=SchedulerType.LINEAR,
        report_to=["none"],
        max_tokens_per_batch=64,
    )
    assert given.given()["max_tokens_per_batch"] == 64
    assert given.num_stages == 2 and given.given()["learning_rate"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.trainer.report_to=wandb", "wandb"),
        ("trainer.lr_scheduler_type=warmup_stable_decay", "num_decay_steps"),
        ("trainer.optim=lomo", "lomo"),
        ("trainer.lr_scheduler_kwargs={num_cycles: abc}", "str"),
        ("trainer={lr_scheduler_type: polynomial, lr_scheduler_kwargs: {lr_end: -1}}", "learning rate -"),
        ("trainer.dataloader_persistent_workers=true", "persistent_workers"),
        ("trainer.torch_compile_mode=foo", "foo"),
    ],
)
def test_what_transformers_would_refuse_in_training_is_refused_by_prepare(tmp_path, command, override, words):
    assert command("prepare", make_project(tmp_path), override) == 2
    assert "transformers refuses these arguments" in command.err and words in command.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.lr_scheduler_kwargs={num_cycles: .nan}", "not a number"),
        ("trainer.accelerator_config={gradient_accumulation_kwargs: {num_steps: 3}}", "gradient_accumulation_steps"),
    ],
)
def test_values_inside_of_mappings_are_refused(tmp_path, command, override, words):
    assert command("prepare", make_project(tmp_path), override) == 2
    assert words in command.err


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_proj", "query"], "query of lora.target_modules match no layer"),
        (["mlp"], "mlp of lora.target_modules match no layer"),
    ],
)
def test_adapters_for_layers_that_do_not_exist(tmp_path, command, targets, words):
    recipe = make_project(tmp_path, student={"lora": {"target_modules": targets}})
    assert command("prepare", recipe) == 2
    assert words in command.err and "such as" in command.err and "q_proj" in command.err
    assert command("doctor", recipe, "--json") == 2
    found = {check["name"]: check for check in json.loads(command.out)}["lora_targets"]
    assert found["kind"] == Kind.LORA_TARGETS_UNKNOWN and found["change"] == "student.lora.target_modules=all-linear"


def test_adapters_for_layers_that_exist(tmp_path, command):
    for targets in ("all-linear", ["q_proj", "mlp.down_proj"]):
        recipe = make_project(tmp_path, student={"lora": {"target_modules": targets}})
        assert command("prepare", recipe, f"output_dir={tmp_path / str(len(targets))}") == 0, command.err
