"""Exports to GGUF and CTranslate2: the same answers in llama.cpp and CTranslate2, and what is refused by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers.small_student import COLOR_ROWS, COLOR_TASK, COLORS, small_student
from helpers.tiny import EOS, PAD, byte_tokenizer
from helpers.tokenizers_made import bpe_tokenizer, tekken_tokenizer, unigram_tokenizer
from tutelage.errors import ConfigError, Kind, ModelError, UserError
from tutelage.export import gguf_file
from tutelage.export.formats import FORMATS, check_possible, setting_of, write_export
from tutelage.export.gguf_vocabulary import RULES, proposed_precision, vocabulary_for
from tutelage.export.measure import measure
from tutelage.export.prompts import asks_for, probe
from tutelage.export.runtimes import LlamaCpp
from tutelage.predict.predictor import Predictor

LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LABELS = {**COLOR_TASK, "decoding": "labels"}
CHAT = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}<s>assistant\n"


@pytest.fixture
def llama_cpp() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")


def replies(found, exported, rows=COLOR_ROWS) -> tuple[list[str], list[str]]:
    """The student's answers, and those of its export."""
    evaluator = Predictor(found).evaluator
    eval_set = evaluator.eval_set(rows)
    asks = asks_for(evaluator, eval_set)
    setting = setting_of(evaluator, asks, exported, threads=1)
    measured = measure({"runtime": exported.runtime, "setting": setting, "asks": asks, "only_tokens": False})
    assert measured["tokens"] == [ask["ids"] for ask in asks]
    tokenizer = found.tokenizer()
    texts = [r["text"] if "text" in r else tokenizer.decode(r["ids"]).strip() for r in measured["replies"]]
    return [answer.text for answer in evaluator.answers(found.load(), eval_set)], texts


# --- GGUF ---


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    ],
    ids=["llama", "llama, tied, biases", "llama 3", "qwen2", "qwen3"],
)
def test_llama_cpp_gives_the_answers_of_transformers(llama_cpp, arch, config, tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=4, arch=arch, **config)
    assert proposed_precision(found.folder) == "q8_0"
    exported = write_export(found, tmp_path / "export", "gguf", "f32")
    ours, theirs = replies(found, exported)
    assert theirs == ours and len(set(ours)) > 1


@pytest.mark.parametrize("precision", ["q8_0", "q4_0", "bf16", "f16"])
def test_matrices_are_quantised_and_vectors_are_not(llama_cpp, precision, tmp_path):
    from gguf import GGUFReader, dequantize

    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0)
    exported = write_export(found, tmp_path / "export", "gguf", precision)
    written = {t.name: t for t in GGUFReader(exported.folder / "model.gguf").tensors}
    weights = found.load().state_dict()
    kept = "q8_0" if precision == "q4_0" else precision
    assert written["token_embd.weight"].tensor_type.name == kept.upper()
    assert written["blk.1.ffn_up.weight"].tensor_type.name == precision.upper()
    assert written["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    up = dequantize(written["blk.1.ffn_up.weight"].data, written["blk.1.ffn_up.weight"].tensor_type)
    largest = weights["model.layers.1.mlp.up_proj.weight"].abs().max().item()
    gap = np.abs(up - weights["model.layers.1.mlp.up_proj.weight"].numpy()).max()
    assert gap <= largest * {"q8_0": 1 / 254, "q4_0": 1 / 8, "bf16": 1 / 256, "f16": 1 / 2048}[precision] * 1.01


def test_a_precision_that_no_matrix_can_take_is_refused(llama_cpp, tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, hidden=48, intermediate_size=144)
    for precision in ("q8_0", "q4_0"):
        with pytest.raises(ModelError, match=f"--quantize {precision}: .* have 48 or 144, .*Type --quantize f16") as no:
            write_export(found, tmp_path / "export", "gguf", precision)
        assert no.value.kind == Kind.EXPORT_NOT_QUANTISED and not (tmp_path / "export").exists()


@pytest.mark.parametrize("precision", ["q8_0", "q4_0"])
def test_matrices_that_cannot_be_quantised_are_counted(llama_cpp, precision, tmp_path):
    from gguf import GGUFReader

    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, intermediate_size=144)
    exported = write_export(found, tmp_path / "export", "gguf", precision)
    kinds = [tensor.tensor_type.name for tensor in GGUFReader(exported.folder / "model.gguf").tensors]
    assert exported.kept == (kinds.count("F16"), len(kinds) - kinds.count("F32")) == (2, 16)
    about = json.loads((exported.folder / "export.json").read_text())
    assert about["precision"] == precision and about["kept_in_f16"] == {"matrices": 2, "of": 16}
    assert write_export(found, tmp_path / "whole", "gguf", "f16").kept is None


def test_one_of_the_labels_is_written_and_nothing_else(llama_cpp, tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, LABELS, passes=0)
    exported = write_export(found, tmp_path / "export", "gguf", None)
    _, theirs = replies(found, exported)
    assert set(theirs) <= set(COLORS)
    assert (exported.folder / "labels.gbnf").read_text() == 'root ::= " red" | " green" | " blue"\n'


def test_frequencies_of_llama_3_are_those_of_transformers():
    config = AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=2, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 32, 2) / 32)
    factors = gguf_file._llama3_factors(config.rope_parameters, 32)
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-5, atol=0)
    assert factors[0] == 1 and factors[-1] == 8


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (unigram_tokenizer(), "a tokenizer of type Unigram that is no byte-level BPE"),
        (tekken_tokenizer(), "a rule for words that llama.cpp does not have"),
        (byte_tokenizer(), "a rule for words that llama.cpp does not have"),
    ],
    ids=["unigram", "tekken", "no rule"],
)
def test_tokenizers_that_llama_cpp_does_not_have_are_refused(llama_cpp, tokenizer, why):
    with pytest.raises(ModelError) as refused:
        vocabulary_for(tokenizer, len(tokenizer))
    assert refused.value.kind == Kind.EXPORT_NOT_POSSIBLE and why in str(refused.value)


def test_rules_for_words_are_told_apart(llama_cpp):
    tokenizer = bpe_tokenizer()
    assert vocabulary_for(tokenizer, len(tokenizer)).rule == "gpt-2"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    assert vocabulary_for(tokenizer, len(tokenizer)).rule == "smollm"


def test_ids_without_an_entry_are_filled(llama_cpp):
    from gguf import TokenType

    tokenizer = bpe_tokenizer()
    size = len(tokenizer)
    found = vocabulary_for(tokenizer, size + 2)
    assert found.tokens[-2:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found.types[-1] == TokenType.UNUSED and found.types[tokenizer.eos_token_id] == TokenType.CONTROL
    assert found.tokens[: size - 2] == tokenizer.convert_ids_to_tokens(range(size - 2))


def test_architectures_that_are_not_written_are_refused_by_name(llama_cpp, tmp_path):
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, arch="gemma2")
    assert proposed_precision(found.folder) is None
    with pytest.raises(ModelError, match=r"a model of type gemma2; it is written for llama, qwen2, qwen3"):
        write_export(found, tmp_path / "export", "gguf", None)
    assert not (tmp_path / "export").exists()


def test_a_student_that_gguf_cannot_hold_is_told_from_its_files(tmp_path):
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_scaling": None,
        "hidden_size": 48,
    }  # as transformers 4 writes it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert proposed_precision(tmp_path) is None  # no tokenizer
    for tokenizer, held in ((bpe_tokenizer(), "f16"), (unigram_tokenizer(), None), (byte_tokenizer(), None)):
        tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert proposed_precision(tmp_path) == held
    bpe_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for other in ({"rope_scaling": {"rope_type": "yarn"}}, {"use_sliding_window": True}, {"hidden_act": "gelu"}):
        (tmp_path / "config.json").write_text(json.dumps(config | other))
        assert proposed_precision(tmp_path) is None


def test_a_file_whose_runtime_reads_other_tokens_is_not_kept(llama_cpp, tmp_path, monkeypatch):
    inner = bpe_tokenizer().backend_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=[EOS, PAD])
    inner.train_from_iterator(["33333 33333 items"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, tokenizer=tokenizer)
    monkeypatch.setattr("tutelage.export.gguf_vocabulary.RULES", {"smollm": RULES["gpt-2"]})  # splits 33333 into digits
    with pytest.raises(ModelError) as refused:
        write_export(found, tmp_path / "export", "gguf", None)
    assert refused.value.kind == Kind.EXPORT_READS_OTHER_TOKENS and "I'll take 33333" in str(refused.value)
    assert not (tmp_path / "export").exists()


def test_the_modelfile_has_the_prompt_of_a_chat_template(llama_cpp, tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = CHAT
    data = {"template": "{text}", "chat_template": True, "system": "Answer {{briefly}}."}
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, data=data, passes=0, tokenizer=tokenizer)
    text = (write_export(found, tmp_path / "export", "gguf", None).folder / "Modelfile").read_text()
    before = '<s>system\nAnswer {{ "{{" }}briefly}}.</s>\n<s>user\n'
    assert f'TEMPLATE """{before}{{{{ .Prompt }}}}</s>\n<s>assistant"""' in text
    assert "PARAMETER temperature 0\nPARAMETER repeat_penalty 1.0\n" in text


def test_the_chat_endpoint_of_llama_cpp_renders_the_prompt(llama_cpp, tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = CHAT
    data = {"template": "{text}", "chat_template": True}
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, data=data, passes=0, tokenizer=tokenizer)
    exported = write_export(found, tmp_path / "export", "gguf", None)
    setting = {"folder": str(exported.folder), "threads": 1, "longest": 4, "context": 64, "ends": [], "prefix": ""}
    example = probe("What color?", chat=True, system="Be brief.")
    body = json.dumps({"messages": example.prompt}).encode()
    runtime = LlamaCpp(setting, 1)
    with urlopen(
        Request(f"{runtime.server.listening_address}/apply-template", body, {"Content-Type": "application/json"})
    ) as response:
        assert json.load(response)["prompt"] == Predictor(found).evaluator.encoder.rendered(example)


# --- CTranslate2 ---


@pytest.mark.parametrize("task", [COLOR_TASK, LABELS], ids=["text", "labels"])
@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
    ids=["llama", "llama 3", "qwen2", "qwen3"],
)
def test_ctranslate2_gives_the_answers_of_transformers(task, arch, config, tmp_path):
    pytest.importorskip("ctranslate2")
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})  # transformers adds it to every Qwen2
    found = small_student(tmp_path / "student", COLOR_ROWS, task, passes=3, arch=arch, tokenizer=tokenizer, **config)
    exported = write_export(found, tmp_path / "export", "ctranslate2", None)
    ours, theirs = replies(found, exported)
    assert theirs == ours and len(set(ours)) > 1


def test_positions_that_ctranslate2_computes_otherwise_are_refused(tmp_path):
    pytest.importorskip("ctranslate2")
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, rope_parameters=LLAMA3)
    with pytest.raises(ModelError, match="rotary embeddings of type llama3 for 64 positions"):
        write_export(found, tmp_path / "export", "ctranslate2", None)


def test_int8_is_a_quarter_of_the_size(tmp_path):
    pytest.importorskip("ctranslate2")
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, hidden=128)
    sizes = {
        precision: (write_export(found, tmp_path / precision, "ctranslate2", precision).folder / "model.bin")
        .stat()
        .st_size
        for precision in ("float32", "int8")
    }
    assert sizes["int8"] < 0.35 * sizes["float32"]
    about = json.loads((tmp_path / "int8" / "export.json").read_text())
    assert (about["precision"], about["student"], about["labels"]) == ("int8", found.fingerprint, list(COLORS))


def test_architectures_that_the_converter_does_not_know_are_refused(tmp_path):
    pytest.importorskip("ctranslate2")
    found = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0, arch="granite")
    with pytest.raises(ModelError) as refused:
        write_export(found, tmp_path / "export", "ctranslate2", None)
    assert refused.value.kind == Kind.EXPORT_NOT_POSSIBLE and "granite" in str(refused.value).lower()


# --- what is asked for ---


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError) as refused:
        check_possible(name, None)
    assert refused.value.kind == Kind.EXTRA_MISSING
    assert f"pip install 'tutelage[{FORMATS[name].extra}]'" in str(refused.value)


def test_a_precision_of_another_format_is_refused():
    with pytest.raises(ConfigError, match="int8 is none of gguf's: f32, f16, bf16, q8_0, q4_0"):
        check_possible("gguf", "int8")


def test_the_extras_hold_the_packages():
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for wanted in FORMATS.values():
        listed = " ".join(extras[wanted.extra])
        assert all(package in listed for package in wanted.packages)
