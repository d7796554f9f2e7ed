"""Models that read the padding of a batch, and other architectures that cannot be used, are refused before training."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from helpers.project import Command, make_project
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.errors import Kind, ModelError
from tutelage.models.padding import KNOWN_TO_READ, check_padding

RWKV = {"attention_hidden_size": 16}
GEMMA = {"block_types": ["recurrent", "attention"], "lru_width": 16, "attention_window_size": 64}


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "cohere", "mamba", "bloom"])
def test_models_that_skip_padding_pass(arch):
    check_padding(tiny_model(arch=arch), "x")


@pytest.mark.parametrize(("arch", "settings"), [("rwkv", RWKV), ("recurrent_gemma", GEMMA)])
def test_models_that_read_padding_are_found_by_what_they_answer(arch, settings):
    assert arch in KNOWN_TO_READ
    with pytest.raises(ModelError) as caught:
        check_padding(tiny_model(arch=arch, **settings), "x")
    assert caught.value.kind == Kind.PADDING_READ


def test_a_model_that_ignores_the_mask_is_found(monkeypatch):
    """As code that comes with a model may."""
    model = tiny_model()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, **inputs: forward(input_ids=input_ids))
    with pytest.raises(ModelError, match="padding"):
        check_padding(model, "x")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_they_are_refused_before_anything_trains(tmp_path, command, role):
    recipe = make_project(tmp_path)
    tiny_model(arch="rwkv", **RWKV).save_pretrained(tmp_path / "models" / role)
    assert command("prepare", recipe) == 2 and f"[{Kind.PADDING_READ}]" in command.err
    assert not (tmp_path / "run/prepare/manifest.json").exists()


def test_an_encoder_with_a_decoder_is_refused_as_such(tmp_path, command):
    recipe, ids = make_project(tmp_path), byte_tokenizer()
    config = AutoConfig.for_model(
        "t5", vocab_size=len(ids), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "models/teacher")
    assert command("prepare", recipe) == 2 and f"[{Kind.ENCODER_DECODER}]" in command.err
