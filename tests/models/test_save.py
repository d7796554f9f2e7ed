"""What is written for other programs: keys of transformers 4.57 beside those of 5, and a tokenizer that adds no end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import RobertaProcessing, Sequence, TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from helpers.tiny import EOS, PAD, byte_tokenizer, tiny_model
from tutelage.models.save import save_student

SCALED = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
}


def config(folder: Path, file: str = "config.json") -> dict:
    return json.loads((folder / file).read_text())


@pytest.mark.parametrize(
    ("arch", "rope", "keys"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 77.0}, {"rope_theta": 77.0}),
        (
            "llama",
            SCALED,
            {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in SCALED.items() if k != "rope_theta"}},
        ),
        (
            "glm4",
            {"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 0.5},
            {"rope_theta": 77.0, "partial_rotary_factor": 0.5},
        ),
        (
            "gemma3_text",
            BY_LAYER,
            {
                **{"rope_theta": 5e5, "rope_local_base_freq": 77.0},
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
    ids=["theta", "scaled", "partial", "by-layer"],
)
def test_rotary_embeddings_are_written_for_both_versions(tmp_path, arch, rope, keys):
    model = tiny_model(arch=arch, rope_parameters=rope)
    save_student(model, byte_tokenizer(), tmp_path)
    written = config(tmp_path)
    assert keys.items() <= written.items()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == model.config.rope_parameters
    ids = torch.arange(200)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_tokenizer_is_written_under_names_of_both_versions(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["x"]})
    save_student(tiny_model(), tokenizer, tmp_path)
    written = config(tmp_path, "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in written
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.decode([120, 97], skip_special_tokens=True) == "a" and again.get_vocab() == tokenizer.get_vocab()


def test_a_class_of_version_4_is_not_left_to_add_what_it_likes(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    tokenizer = LlamaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    save_student(tiny_model(vocab_size=len(pieces)), tokenizer, tmp_path)
    assert config(tmp_path, "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    again, ids = AutoTokenizer.from_pretrained(tmp_path), tokenizer("a a")["input_ids"]
    assert again("a a")["input_ids"] == ids and again.decode(ids) == tokenizer.decode(ids)


END = (EOS, 256)
ENDINGS = {
    "end": (TemplateProcessing(single=f"$A {EOS}", special_tokens=[END]), []),
    "both": (TemplateProcessing(single=f"{PAD} $A {EOS}", special_tokens=[END, (PAD, 257)]), [257]),
    "sequence": (Sequence([TemplateProcessing(single=f"$A {EOS}", special_tokens=[END])]), []),
    "roberta": (RobertaProcessing(END, (PAD, 257)), [257]),
    "none": (TemplateProcessing(single=f"{PAD} $A", special_tokens=[(PAD, 257)]), [257]),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_saved_tokenizer_adds_no_end_of_sequence(tmp_path, name):
    tokenizer, (processor, begin) = byte_tokenizer(), ENDINGS[name]
    tokenizer.backend_tokenizer.post_processor = processor
    before = tokenizer("ab")["input_ids"]
    save_student(tiny_model(), tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab")["input_ids"] == [*begin, 97, 98]
    assert tokenizer("ab")["input_ids"] == before, "the tokenizer in use is left alone"
