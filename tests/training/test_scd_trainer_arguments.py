"""Arguments of `SCDTrainer` and `SCDConfig` that would be ignored or misread are refused with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from helpers.project import prompt_rows
from helpers.tiny import save_pair
from tutelage import SCDConfig, SCDTrainer
from tutelage.errors import ConfigError, ModelError
from tutelage.models.adapters import lora_of
from tutelage.recipe.schema import Lora


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of a teacher and a student."""
    folder = tmp_path_factory.mktemp("models")
    save_pair(folder)
    return folder


def trainer(models: Path, output: Path, **changes: Any) -> SCDTrainer:
    """A trainer that follows the teacher itself."""
    arguments: dict[str, Any] = {
        "model": str(models / "student"),
        "teacher_checkpoints": [models / "teacher"],
        "args": SCDConfig(output_dir=str(output), use_cpu=True),
        "train_dataset": prompt_rows("train", 6),
    }
    return SCDTrainer(**arguments | changes)


# --- peft_config ---


def test_every_field_of_a_lora_config_that_would_be_left_out_is_named(models, tmp_path):
    config = peft.LoraConfig(
        r=64,
        lora_alpha=16,
        use_rslora=True,
        use_dora=True,
        modules_to_save=["lm_head"],
        bias="all",
        rank_pattern={"q_proj": 4},
        layers_to_transform=[0],
        target_modules=["q_proj"],
    )
    with pytest.raises(ConfigError) as error:
        trainer(models, tmp_path, peft_config=config)
    message = str(error.value)
    assert "bias, layers_to_transform, modules_to_save, rank_pattern, use_dora, use_rslora" in message
    assert "r, lora_alpha, lora_dropout and target_modules" in message and "leave" in message


def test_a_lora_config_keeps_what_a_recipe_has():
    config = peft.LoraConfig(
        r=64, lora_alpha=16.0, lora_dropout=0.1, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
        inference_mode=True, base_model_name_or_path="a/b", fan_in_fan_out=True,
    )  # fmt: skip
    assert lora_of(config) == Lora(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=["down_proj", "q_proj"])
    assert lora_of(peft.LoraConfig()) == Lora(r=8, lora_alpha=8, target_modules="all-linear")
    assert lora_of(None) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.IA3Config(), "IA3Config"),
        (peft.AdaLoraConfig(total_step=10), "AdaLoraConfig"),
        ({"r": 8}, "dict"),
        (peft.LoraConfig(target_modules=".*q_proj"), r"peft_config.target_modules: found \"\.\*q_proj\", want a list"),
        (peft.LoraConfig(lora_dropout=1.5), "peft_config.lora_dropout: found 1.5, want a number"),
        (peft.LoraConfig(r=8, target_modules=["query"]), "query"),
    ],
)
def test_other_adapters_and_values_are_refused(models, tmp_path, config, words):
    with pytest.raises((ConfigError, ModelError), match=words):
        trainer(models, tmp_path, peft_config=config)
