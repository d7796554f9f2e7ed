"""What makes the work in an output_dir of `SCDTrainer` stale: whatever changes the student, and nothing else."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
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


# --- what changes the student ---


def other_student(**config: Any) -> Any:
    return tiny_model(77, hidden=16, layers=2, initializer_range=0.05, **config)


@pytest.fixture
def anchors(models, tmp_path) -> dict[str, Any]:
    other_student().save_pretrained(tmp_path / "other")
    return {
        "trained here": None,
        "a folder": models / "student",
        "another folder": str(tmp_path / "other"),
        "a model": AutoModelForCausalLM.from_pretrained(models / "student"),
        "another model": other_student(),
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("a folder", "another folder"),
        ("a model", "another model"),
        ("a folder", "another model"),
        ("trained here", "a folder"),
        ("a folder", "trained here"),
    ],
)
def test_another_anchor_is_refused(models, tmp_path, anchors, before, now):
    trainer(models, tmp_path / "out", anchor=anchors[before]).train()
    with pytest.raises(StaleArtifactError, match="- anchor: "):
        trainer(models, tmp_path / "out", anchor=anchors[now]).train()


def test_an_anchor_that_was_trained_further_is_another_one(models, tmp_path, anchors):
    """In its folder, or in memory."""
    folder, model = Path(anchors["another folder"]), anchors["another model"]
    for name, anchor in {"folder": folder, "model": model}.items():
        records = trainer(models, tmp_path / name, anchor=anchor).train()
        assert trainer(models, tmp_path / name, anchor=copy.deepcopy(anchor)).train() == records
    model.lm_head.weight.data.add_(0.1)
    model.save_pretrained(folder)
    for name, anchor in {"folder": folder, "model": model}.items():
        with pytest.raises(StaleArtifactError, match="- anchor: "):
            trainer(models, tmp_path / name, anchor=anchor).train()


def test_a_method_without_anchor_does_not_depend_on_one(models, tmp_path, anchors):
    settings = {"method": "scd"}
    records = trainer(models, tmp_path / "out", settings).train()
    assert trainer(models, tmp_path / "out", settings, anchor=anchors["another model"]).train() == records


def test_adapters_on_another_base_are_refused(models, tmp_path):
    """Both bases fit by their name; the one that the adapters name is not on this machine."""
    for seed, owner in enumerate(("one", "two")):
        tiny_model(seed, hidden=32, layers=4).save_pretrained(tmp_path / owner / "teacher")
        byte_tokenizer().save_pretrained(tmp_path / owner / "teacher")
    adapted = get_peft_model(tiny_model(0, hidden=32, layers=4), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = "gone/teacher"
    adapted.save_pretrained(tmp_path / "ck/checkpoint-1")
    given = {"teacher_checkpoints": tmp_path / "ck"}
    trainer(models, tmp_path / "out", teacher=str(tmp_path / "one/teacher"), **given).train()
    with pytest.raises(StaleArtifactError, match="- teacher: "):
        trainer(models, tmp_path / "out", teacher=str(tmp_path / "two/teacher"), **given).train()


def test_checkpoints_in_another_order_are_refused(models, tmp_path):
    """Without eval_dataset T* is the last one of the list."""
    for step, name in ((1, "early"), (2, "late")):
        shutil.copytree(models / f"ck/checkpoint-{step}", tmp_path / name)
    folders = [tmp_path / "early", tmp_path / "late"]
    given = {"eval_dataset": None, "teacher_checkpoints": folders}
    trainer(models, tmp_path, **given).train()
    with pytest.raises(StaleArtifactError, match="- order of checkpoints: "):
        trainer(models, tmp_path, **given | {"teacher_checkpoints": folders[::-1]}).train()


def test_another_border_between_training_and_evaluation_rows_is_refused(models, tmp_path):
    rows = prompt_rows("all", 9)
    trainer(models, tmp_path, train_dataset=rows[:6], eval_dataset=rows[6:]).train()
    with pytest.raises(StaleArtifactError, match="- eval_rows: 3 -> 4"):
        trainer(models, tmp_path, train_dataset=rows[:5], eval_dataset=rows[5:]).train()


def test_another_tokenizer_that_reads_the_rows_alike_is_refused(models, tmp_path):
    """Both models have embeddings for more entries than the first tokenizer has; the student is cut to them."""
    for name, hidden in {"ck/checkpoint-1": 32, "wide": 16}.items():
        tiny_model(0, hidden=hidden, vocab_size=264).save_pretrained(tmp_path / name)
    larger = byte_tokenizer()
    larger.add_tokens(["<another>"])
    for name, tokenizer in {"first": byte_tokenizer(), "second": byte_tokenizer(), "larger": larger}.items():
        both = {"processing_class": tokenizer, "teacher_processing_class": tokenizer}
        given = {"model": str(tmp_path / "wide"), "teacher_checkpoints": tmp_path / "ck", **both}
        student = trainer(models, tmp_path / "out", **given)
        if name == "larger":
            with pytest.raises(StaleArtifactError, match="- processing_class: "):
                student.train()
        else:
            student.train()
