"""Tokenizers that are not of the tokenizers library: in Python, of sentencepiece, of mistral-common."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, CTRLTokenizer

from helpers.project import Command, make_project
from helpers.tiny import tiny_model
from helpers.tokenizers_made import CORPUS, bpe_tokenizer
from tutelage.bytes.reader import byte_reader
from tutelage.errors import Kind
from tutelage.models.load import load_tokenizer
from tutelage.recipe.schema import Model
from tutelage.utils.files import read_json

TEXTS = [*CORPUS, " a  b\n\n\tc ", "🙂 é à"]
CTRL_WORDS = ("red", "green", "blue", "thing", "is", "train", "validation", "test")


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def save_model(folder: Path, tokenizer: Any, seed: int = 0, **config: Any) -> None:
    """A tiny model for a tokenizer; the tokenizer's files are written by others."""
    size = max(tokenizer.get_vocab().values()) + 3
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(seed, vocab_size=size, **ids, **config).save_pretrained(folder)


def ctrl(folder: Path) -> Path:
    """CTRL's tokenizer, whose only form is one in Python: characters and a few words, `@@` where a word goes on."""
    characters = {character for word in CTRL_WORDS for character in word} | set("0123456789:")
    entries = [*characters, *(f"{character}@@" for character in characters), "<unk>", "<end>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({entry: index for index, entry in enumerate(sorted(entries))}))
    (folder / "merges.txt").write_text("#version: 0.2\n\n")
    tokenizer = CTRLTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def tekken(folder: Path) -> Path:
    """A tokenizer in Mistral's own format alone: bytes, words, and its special tokens."""
    words = sorted({word.encode() for line in CORPUS for word in line.split()} - {bytes([n]) for n in range(256)})
    spelled = [*(bytes([n]) for n in range(256)), *words]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": None}
        for rank, text in enumerate(spelled)
    ]
    names = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
    names += ("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]")
    names += ("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
    special = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    config = {
        **{"pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+", "version": "v7"},
        **{"num_vocab_tokens": len(spelled), "default_vocab_size": len(spelled) + len(special)},
        "default_num_special_tokens": len(special),
    }
    folder.mkdir(parents=True, exist_ok=True)
    content = {"config": config, "vocab": vocabulary, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def test_one_in_python_serves_two_models_that_share_it(tmp_path, command):
    recipe = make_project(tmp_path)
    for seed, role in enumerate(("teacher", "student")):
        save_model(tmp_path / "models" / role, AutoTokenizer.from_pretrained(ctrl(tmp_path / "ctrl")), seed)
        for file in (tmp_path / "models" / role).glob("tokenizer*"):
            file.unlink()
        ctrl(tmp_path / "models" / role)
    assert command("run", recipe) == 0, command.err
    assert {read_json(path)["kind"] for path in tmp_path.glob("run/cache/*/store.json")} == {"states"}


def test_one_in_python_is_refused_with_the_reason_where_bytes_are_needed(tmp_path, command):
    recipe = make_project(tmp_path)
    for file in (tmp_path / "models/teacher").glob("tokenizer*"):
        file.unlink()
    save_model(tmp_path / "models/teacher", AutoTokenizer.from_pretrained(ctrl(tmp_path / "ctrl")))
    ctrl(tmp_path / "models/teacher")
    assert command("prepare", recipe) == 2 and f"[{Kind.TOKENS_WITHOUT_BYTES}]" in command.err


def test_mistrals_own_format_spells_every_text(tmp_path):
    pytest.importorskip("mistral_common")
    folder = tekken(tmp_path)
    tiny_model(arch="mistral").config.save_pretrained(folder)
    tokenizer = load_tokenizer(Model(model_name_or_path=str(folder)))
    assert (type(tokenizer).__name__, tokenizer.eos_token_id) == ("MistralCommonBackend", 2)
    rows = [(text, [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]) for text in TEXTS]
    reader = byte_reader(tokenizer, rows, "teacher")
    assert reader.skip == 0 and [reader.text(ids) for _, ids in rows] == [text.encode() for text in TEXTS]


def test_a_teacher_in_mistrals_own_format(tmp_path, command):
    """A whole run, with a student of another tokenizer."""
    pytest.importorskip("mistral_common")
    recipe = make_project(tmp_path)
    teacher = tmp_path / "models/teacher"
    for file in teacher.glob("tokenizer*"):
        file.unlink()
    size = read_json(tekken(teacher) / "tekken.json")["config"]["default_vocab_size"]
    tiny_model(arch="mistral", vocab_size=size, eos_token_id=2, pad_token_id=11).save_pretrained(teacher)
    assert command("run", recipe) == 0, command.err
    assert {read_json(path)["kind"] for path in tmp_path.glob("run/cache/*/store.json")} == {"bytes"}


def test_files_of_transformers_go_before_mistrals(tmp_path):
    """Whether mistral-common is installed or not: the student's tokenizer is saved from it."""
    folder = tekken(tmp_path)
    tiny_model(arch="mistral").config.save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    tokenizer = load_tokenizer(Model(model_name_or_path=str(folder)))
    assert tokenizer.get_vocab() == bpe_tokenizer().get_vocab()


def test_sentencepiece_without_a_fast_form_spells_every_text(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import GPTSw3Tokenizer

    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=400, byte_fallback=True,
        hard_vocab_limit=False, remove_extra_whitespaces=False, normalization_rule_name="identity", pad_id=3,
        add_dummy_prefix=False,
    )  # fmt: skip
    tokenizer = GPTSw3Tokenizer(str(tmp_path / "spiece.model"))
    texts = [text for text in TEXTS if "\n" not in text]  # this one takes line breaks for special tokens
    rows = [(text, [*tokenizer(text, add_special_tokens=False)["input_ids"], 0]) for text in texts]
    reader = byte_reader(tokenizer, rows, "teacher")
    assert [reader.text(ids) for _, ids in rows] == [text.encode() for text in texts]
