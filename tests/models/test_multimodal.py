"""Models that read images or sound are refused by their config; their text part, saved alone, is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMultimodalLM

from helpers.project import Command, make_project
from helpers.tiny import byte_tokenizer
from tutelage.errors import Kind, ModelError
from tutelage.models.load import check_architecture, load_model
from tutelage.recipe.schema import Model
from tutelage.utils.files import read_json

MODELS = Path(__file__).parents[2] / "docs/models.md"
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 258, "max_position_embeddings": 512},
    **{"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
HYBRID = {
    **{"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
    "qwen2_audio": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "audio_config": {**AUDIO, "model_type": "qwen2_audio_encoder"},
    },
    "qwen2_5_vl": {},
    "phi4_multimodal": {},
    "fuyu": {},
}


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def saved(folder: Path, name: str, **settings: Any) -> Path:
    """A folder with a tiny model of this architecture, weights at random, and a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMultimodalLM.from_config(AutoConfig.for_model(name, **(settings or CONFIGS[name])))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "parts", "text"),
    [
        ("gemma3", ["vision_config"], "gemma3_text"),
        ("llava", ["vision_config"], "llama"),
        ("qwen2_audio", ["audio_config"], "qwen2"),
        ("qwen2_5_vl", ["vision_config"], None),
        ("phi4_multimodal", ["vision_config", "audio_config"], None),
        ("fuyu", [], "persimmon"),
    ],
)
def test_the_config_alone_says_so(tmp_path, name, parts, text):
    AutoConfig.for_model(name, **CONFIGS[name]).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        check_architecture(Model(model_name_or_path=str(tmp_path)))
    problem = caught.value.problems[0]
    assert problem.kind == Kind.MULTIMODAL
    assert problem.values["type"] == name
    assert (problem.values["parts"], problem.values["text"]) == (parts, text)


@pytest.mark.parametrize("lora", [None, {}])
def test_prepare_and_doctor_refuse_it(tmp_path, command, lora):
    recipe = make_project(tmp_path, teacher={"lora": lora})
    saved(tmp_path / "models/teacher", "llava")
    assert command("prepare", recipe) == 2 and f"[{Kind.MULTIMODAL}]" in command.err
    assert not (tmp_path / "run/prepare/manifest.json").exists()
    assert command("doctor", recipe, "--json") == 2
    check = next(check for check in json.loads(command.out) if check["name"] == "architecture")
    assert (check["kind"], check["status"]) == (Kind.MULTIMODAL, "fail")
    assert check["change"].startswith("teacher.model_name_or_path=")


@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_audio"])
def test_the_lines_of_the_docs_save_the_text_part(tmp_path, name):
    """With the logits of the whole model, read as any other model."""
    code = re.search(r"```python\n(.*?)```", MODELS.read_text(encoding="utf-8"), re.DOTALL)[1]
    whole, part = saved(tmp_path / "whole", name), tmp_path / "text"
    exec(compile(code, "models.md", "exec"), {"MODEL": str(whole), "FOLDER": str(part)})
    section, ids = Model(model_name_or_path=str(part)), torch.arange(8)[None]
    check_architecture(section)
    with torch.no_grad():
        expected = AutoModelForMultimodalLM.from_pretrained(whole).eval()(input_ids=ids).logits
        assert torch.allclose(load_model(section)(input_ids=ids).logits, expected, atol=1e-6)


def test_a_text_part_that_transformers_reads_from_the_same_files_is_taken(tmp_path, command):
    recipe = make_project(tmp_path)
    text = {**TEXT, **HYBRID, "vocab_size": 264}  # its tokenizer class adds an entry
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    saved(tmp_path / "models/teacher", "qwen3_5", text_config=text, vision_config=vision)
    for stage in ("prepare", "teach", "cache"):
        assert command(stage, recipe) == 0, command.err
    config = read_json(tmp_path / "run/teach/checkpoint-3/config.json")
    assert config["model_type"] == "qwen3_5_text"
