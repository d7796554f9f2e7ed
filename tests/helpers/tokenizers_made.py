"""Two small tokenizers of different families, made in code: byte-level BPE, and Unigram with byte fallback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from helpers.tiny import EOS, PAD, tiny_model

CORPUS = [
    "positive negative neutral mixed positively negatively",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "new newton news newer newest Newton knows the news of New York",
    "person: Ada Lovelace | place: London | person: Charles Babbage",
    "fast faster fastest, high higher highest; low lower lowest!",
    "感情はとても良いです。感情は良くないです。",
    "Очень хорошо, очень плохо, очень хорошо.",
]


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2."""
    inner = _bpe(CORPUS)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)


def tekken_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as transformers makes it of Tekken's and tiktoken's files: words by a regular expression, whole
    words before merges."""
    inner = _bpe(CORPUS[:3], ignore_merges=True)
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)


def _bpe(corpus: Sequence[str], **options: bool) -> Tokenizer:
    """BPE that has merged every beginning of every word, from its first byte on; nothing is learned, so nothing is left
    to chance."""
    alphabet = bytes_to_unicode()
    entries, merges = dict.fromkeys(alphabet.values()), []
    for word in " ".join(corpus).replace(" ", "\n ").split("\n"):
        spelled = "".join(alphabet[byte] for byte in word.encode())
        for length in range(1, len(spelled)):
            if spelled[: length + 1] not in entries:
                entries[spelled[: length + 1]] = None
                merges.append((spelled[:length], spelled[length]))
    inner = Tokenizer(models.BPE(vocab={entry: n for n, entry in enumerate(entries)}, merges=merges, **options))
    inner.decoder = decoders.ByteLevel()
    return inner


def unigram_tokenizer(adds_space: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram with byte fallback. adds_space: puts a space in front of every text, as Llama 2 does."""
    inner = Tokenizer(models.Unigram(_pieces(), unk_id=0, byte_fallback=True))
    first = [normalizers.Prepend("▁")] if adds_space else []
    inner.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", int(adds_space), 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token=EOS, pad_token=PAD)


def _pieces() -> list[tuple[str, float]]:
    """Pieces with scores: the words of the corpus with and without a space, their beginnings, every ASCII character,
    and every byte. The longer the better."""
    words = [word.strip(",.;:!|") for line in CORPUS[:5] for word in line.split()]
    starts = {word[:length] for word in words for length in range(2, len(word) + 1)}
    texts = sorted({*starts, *(f"▁{start}" for start in starts), "▁", *(chr(code) for code in range(33, 127))})
    bytes_alone = [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    return [("<unk>", 0.0), *((text, -10.0 - 1.0 / len(text)) for text in texts), *bytes_alone]


def save_cross_pair(folder: Path, **config: Any) -> tuple[Path, Path]:
    """Folders of a teacher with the Unigram tokenizer, which adds a space to every text, and a student with byte-level
    BPE. config: keys of both models' configurations."""
    pair = {"teacher": (unigram_tokenizer(adds_space=True), 32, 4), "student": (bpe_tokenizer(), 16, 2)}
    for seed, (name, (tokenizer, hidden, layers)) in enumerate(pair.items()):
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model = tiny_model(seed, hidden=hidden, layers=layers, vocab_size=len(tokenizer) + 3, **ids, **config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "teacher", folder / "student"
