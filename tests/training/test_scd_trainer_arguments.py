"""Arguments of `SCDTrainer` and `SCDConfig` that would be ignored or misread are refused with what to write instead."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import peft
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, TrainingArguments

from helpers.project import prompt_rows
from helpers.tiny import EOS, PAD, byte_tokenizer, save_pair, tiny_model
from tutelage import SCDConfig, SCDTrainer
from tutelage.errors import ConfigError, DataError, Kind, ModelError
from tutelage.models.adapters import lora_of
from tutelage.recipe.reserved import IN_PYTHON, RESERVED
from tutelage.recipe.schema import Lora
from tutelage.training.trainer import training_arguments


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


# --- arguments of transformers ---


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("num_train_epochs", 10, "epochs_per_stage"),
        ("max_steps", 100, "epochs_per_stage"),
        ("data_seed", 3, "set seed"),
        ("auto_find_batch_size", True, "per_device_train_batch_size"),
        ("dataloader_drop_last", True, "leave it out"),
        ("label_smoothing_factor", 0.1, "leave it out"),
        ("resume_from_checkpoint", "out/checkpoint-1", "train() continues"),
        ("per_device_eval_batch_size", 32, "cache_batch_size"),
        ("load_best_model_at_end", True, "keep"),
        ("metric_for_best_model", "accuracy", "keep"),
        ("greater_is_better", True, "keep"),
        ("push_to_hub", True, "save_model()"),
        ("save_strategy", "epoch", "save_every_steps"),
        ("save_steps", 50, "save_every_steps"),
        ("save_total_limit", 2, "save_every_steps"),
        ("eval_strategy", "steps", "after each stage"),
        ("eval_steps", 10, "after each stage"),
        ("bf16_full_eval", True, "leave it out"),
        ("fsdp", "full_shard", "one process"),
        ("deepspeed", "ds.json", "one process"),
    ],
)
def test_an_argument_that_has_no_effect_here_is_refused(tmp_path, name, value, instead):
    """Before transformers reads it, which needs the network for some."""
    with pytest.raises(ConfigError) as error:
        SCDConfig(output_dir=str(tmp_path), **{name: value})
    (problem,) = error.value.problems
    assert problem.key == name and instead in str(error.value)
    assert not re.search(r"distill\.|teach\.|evaluate\.|recipe|--", problem.values["text"].replace("tutelage run", ""))


def test_every_argument_that_a_recipe_refuses_has_its_words_in_python_or_is_only_shown():
    shown = {"output_dir", "seed", "disable_tqdm", "log_level", "hub_*", "do_*"}
    gone = {"evaluation_strategy", "warmup_ratio", "group_by_length", "no_cuda"}  # transformers has no such argument
    assert RESERVED.keys() - IN_PYTHON.keys() == shown | gone
    assert not gone & {field.name for field in dataclasses.fields(TrainingArguments)}


def test_arguments_that_ask_for_what_is_done_anyway_are_taken(tmp_path):
    quiet = {"save_strategy": "no", "eval_strategy": "no", "remove_unused_columns": False, "disable_tqdm": True}
    config = SCDConfig(output_dir=str(tmp_path), do_train=True, hub_token="x", log_level="error", **quiet)
    assert config.given() == SCDConfig(output_dir=str(tmp_path)).given()


def test_how_often_the_loss_is_logged_is_as_given(tmp_path):
    for given in ({"logging_steps": 500}, {"logging_steps": 3}, {}):
        config = SCDConfig(output_dir=str(tmp_path), use_cpu=True, **given)
        assert training_arguments(tmp_path, config.given(), seed=0).logging_steps == given.get("logging_steps", 10)


def test_settings_in_the_name_of_a_method_are_refused(tmp_path):
    """They would have no effect: `tutelage compare` reads them."""
    with pytest.raises(ConfigError, match=r"method: .*td\+kd_ratio=0.9.*method='td'"):
        SCDConfig(output_dir=str(tmp_path), method="td+kd_ratio=0.9")


# --- models, tokenizers and rows ---


def test_a_model_in_memory_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM.*save_pretrained"):
        trainer(models, tmp_path, model=tiny_model())


@pytest.mark.parametrize("argument", ["model", "teacher"])
def test_adapters_in_place_of_a_model_are_refused(models, tmp_path, argument):
    """transformers would load them with their base, and their layers are none that new adapters can be put on."""
    layers = {"model": (16, 2), "teacher": (32, 4)}[argument]
    adapted = peft.get_peft_model(tiny_model(0, hidden=layers[0], layers=layers[1]), peft.LoraConfig(r=2))
    adapted.peft_config["default"].base_model_name_or_path = str(models / "student")
    adapted.save_pretrained(tmp_path / "adapted")
    byte_tokenizer().save_pretrained(tmp_path / "adapted")
    with pytest.raises(ModelError) as error:
        trainer(models, tmp_path / "out", **{argument: str(tmp_path / "adapted")})
    assert error.value.kind == Kind.ADAPTERS_WITHOUT_BASE


def test_an_anchor_that_cannot_be_read_is_refused_before_anything_trains(models, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        trainer(models, tmp_path, anchor=tmp_path / "nowhere")


def test_a_tokenizer_of_another_model_is_refused(models, tmp_path):
    """Its ids would be read as those of other tokens."""
    other = byte_tokenizer().backend_tokenizer.to_str().replace('"a":97', '"a":98').replace('"b":98', '"b":97')
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(other), eos_token=EOS, pad_token=PAD)
    for argument in ("processing_class", "teacher_processing_class"):
        with pytest.raises(ModelError, match=f"{argument} gives 'a' the id 98.*97"):
            trainer(models, tmp_path, **{argument: other})


def test_a_tokenizer_without_an_end_of_sequence_is_refused(models, tmp_path):
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="processing_class has no end-of-sequence token"):
        trainer(models, tmp_path, processing_class=endless)


@pytest.mark.parametrize("argument", ["train_dataset", "eval_dataset"])
def test_a_dataset_without_rows_is_refused(models, tmp_path, argument):
    """Such as an iterator that was read before."""
    with pytest.raises(DataError, match=f"{argument} has no rows"):
        trainer(models, tmp_path, **{argument: iter([])})
