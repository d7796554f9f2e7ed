"""What makes the work in an output_dir of `SCDTrainer` stale: whatever changes the student, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from helpers.project import prompt_rows
from helpers.tiny import byte_tokenizer, save_pair, tiny_model
from tutelage import SCDConfig, SCDTrainer
from tutelage.errors import StaleArtifactError

pytestmark = pytest.mark.usefixtures("_usual_log_level")


@pytest.fixture
def _usual_log_level():
    """A training lowers the log level of transformers, by which it decides on progress bars when a config is made."""
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of a teacher and a student, and `ck` with two checkpoints of the teacher."""
    folder = tmp_path_factory.mktemp("models")
    save_pair(folder)
    for step in (1, 2):
        model = tiny_model(0, hidden=32, layers=4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            for weight in model.parameters():
                weight.data.add_(0.02 * step * torch.randn_like(weight))
        model.save_pretrained(folder / f"ck/checkpoint-{step}")
        byte_tokenizer().save_pretrained(folder / f"ck/checkpoint-{step}")
    return folder


def trainer(models: Path, output: Path, settings: dict[str, Any] | None = None, **changes: Any) -> SCDTrainer:
    """settings: of `SCDConfig`. changes: to the arguments of the trainer."""
    given = {
        "num_stages": 1,
        "epochs_per_stage": 1.0,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "probe_rows": 4,
    }
    arguments: dict[str, Any] = {
        "model": str(models / "student"),
        "teacher_checkpoints": models / "ck",
        "args": SCDConfig(output_dir=str(output), **given | (settings or {})),
        "train_dataset": prompt_rows("train", 6),
        "eval_dataset": prompt_rows("validation", 3),
        "anchor": models / "student",
    }
    return SCDTrainer(**arguments | changes)


def test_the_same_arguments_twice_in_one_process(models, tmp_path):
    """As in a notebook. Without an anchor that is given, so that the one that is trained is read again as well."""
    first = trainer(models, tmp_path, anchor=None)
    records = first.train()
    first.save_model()
    written = (tmp_path / "model.safetensors").read_bytes()
    second = trainer(models, tmp_path, anchor=None)
    assert second.train() == records == first.train()
    second.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == written


@pytest.mark.parametrize(
    "settings", [{"logging_steps": 1}, {"run_name": "other"}, {"disable_tqdm": True}, {"log_level": "info"}]
)
def test_what_is_only_shown_makes_nothing_stale(models, tmp_path, settings):
    records = trainer(models, tmp_path).train()
    assert trainer(models, tmp_path, settings).train() == records


def test_a_stale_folder_says_what_changed_and_what_to_do_in_python(models, tmp_path):
    trainer(models, tmp_path, anchor=None).train()
    with pytest.raises(StaleArtifactError) as error:
        trainer(models, tmp_path, {"learning_rate": 1e-4}, anchor=None).train()
    message = str(error.value)
    assert "plan.trainer.learning_rate: null -> 0.0001" in message and "another output_dir of SCDConfig" in message
    assert str(tmp_path / "anchor") in message and "--" not in message and "recipe" not in message
