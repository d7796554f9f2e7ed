"""Byte distributions equal those of a slow reference, in value and gradient, for random and for real vocabularies."""

import os
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from helpers.byte_reference import byte_distributions, tokens_by_prefix
from helpers.tokenizers_made import EOS, bpe_tokenizer, tekken_tokenizer, unigram_tokenizer
from tutelage.bytes import masses
from tutelage.bytes.alphabet import byte_log_probs
from tutelage.bytes.lookups import lookups_of
from tutelage.bytes.masses import EMPTY
from tutelage.bytes.spelling import added_spaces, spellings
from tutelage.bytes.vocabulary import ByteVocabulary
from tutelage.data.collate import vocabulary_of

TEXTS = [" positive", " Newton knows the news", "person: Ada | place: London", " 感情は良い", " хорошо!", " a\n\tb  c"]


def reference(logits, answers, vocabulary, skip=0):
    """[bytes, 257] probabilities, in the logits' precision."""
    lines, first, prefixes = [], 0, tokens_by_prefix(vocabulary.spelled)
    for answer in answers:
        chances = logits[first : first + len(answer)].softmax(-1)
        first += len(answer)
        lines.append(byte_distributions(chances, answer, vocabulary.spelled, prefixes)[skip:])
    return torch.cat(lines)


def check(answers, vocabulary, scale=3.0, skip=0, seed=0):
    """Values to 1e-6 and gradients to 1e-5 of the largest, for random logits."""
    generator = torch.Generator().manual_seed(seed)
    positions = sum(map(len, answers))
    logits = (scale * torch.randn(positions, vocabulary.size, generator=generator)).requires_grad_()
    found = byte_log_probs(logits, lookups_of(answers, vocabulary, skip))
    precise = logits.detach().double().requires_grad_()
    chances = reference(precise, answers, vocabulary, skip)
    spelled = chances > 0
    expected = chances.masked_fill(~spelled, 1.0).log()
    assert found.shape == expected.shape
    assert torch.equal(found > EMPTY / 2, spelled)
    assert (found.exp() - chances).abs().max() < 1e-6
    assert torch.allclose(found.double()[spelled], expected[spelled], rtol=1e-6, atol=1e-6)
    # a divergence's gradient: weights of a distribution on the log-probabilities
    weight = torch.rand(found.shape, generator=generator).masked_fill(~spelled, 0.0)
    weight = weight / weight.sum(-1, keepdim=True)
    (grad,) = torch.autograd.grad((found.masked_fill(~spelled, 0.0) * weight).sum(), logits)
    (precise_grad,) = torch.autograd.grad((expected * weight).sum(), precise)
    assert (grad.double() - precise_grad).abs().max() < 1e-5


def random_vocabulary(seed, letters=3, longest=5, entries=60):
    """Random words over few letters, so that many begin with each other, every letter among them; some spell nothing,
    some the same as others."""
    draw = random.Random(seed)
    words = [
        bytes([draw.choice(b"abc\xff"[:letters]) for _ in range(draw.randint(1, longest))]) for _ in range(entries)
    ]
    words += [bytes([letter]) for letter in b"abc\xff"[:letters]] + [b"", b"", b""]
    draw.shuffle(words)
    return ByteVocabulary(words, words.index(b""))


@pytest.mark.parametrize("seed", range(12))
def test_random_vocabularies(seed, monkeypatch):
    """Words over two to four letters; prefixes are summed together from 1, 8 or never; logits up to +-30; hardly any
    prefix is kept."""
    monkeypatch.setattr("tutelage.bytes.vocabulary.KEPT", 2 + seed)
    monkeypatch.setattr("tutelage.bytes.masses.WIDE", [1, 8, 2048][seed % 3])
    vocabulary, draw = random_vocabulary(seed, letters=2 + seed % 3), random.Random(seed)
    spelling = [index for index, word in enumerate(vocabulary.spelled) if word]
    answers = [[*draw.choices(spelling, k=draw.randint(1, 6)), vocabulary.end] for _ in range(3)]
    check(answers, vocabulary, scale=[0.0, 1.0, 3.0, 10.0][seed % 4], seed=seed)


def test_chunks_change_nothing(monkeypatch):
    vocabulary, draw = random_vocabulary(5), random.Random(5)
    spelling = [index for index, word in enumerate(vocabulary.spelled) if word]
    answers = [[*draw.choices(spelling, k=5), vocabulary.end] for _ in range(5)]
    monkeypatch.setattr(masses, "CHUNK_BYTES", 4 * vocabulary.size * 7)
    check(answers, vocabulary)


def test_a_byte_of_tiny_probability_is_as_exact_as_any():
    """A range of mass e^-60 beside one of mass 1: a difference of cumulative sums would be 0 in float64."""
    vocabulary = ByteVocabulary([b"a", b"ab", b"b", b"bc", b""], 4)
    logits = torch.tensor([[0.0, -1.0, -60.0, -61.0, -70.0], [0.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = byte_log_probs(logits, lookups_of([[0, 4]], vocabulary))
    expected = torch.tensor([-60.0, -61.0]).logsumexp(0) - logits[0].detach().logsumexp(0)
    assert found[0, ord("b")].item() == pytest.approx(expected.item(), abs=1e-5)
    (grad,) = torch.autograd.grad(found[0, ord("b")], logits)
    assert grad[0, 2].item() == pytest.approx(1 / (1 + torch.e**-1), abs=1e-6)


def encoded(tokenizer, texts, spaces=0):
    """Vocabulary and answers of a tokenizer; checks that it spells the texts."""
    spelled = spellings(tokenizer, vocabulary_of(tokenizer))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert added_spaces(spelled, zip(texts, ids, strict=True), "student") == spaces
    return ByteVocabulary(spelled, tokenizer.eos_token_id), [[*row, tokenizer.eos_token_id] for row in ids]


@pytest.mark.parametrize("make", [bpe_tokenizer, tekken_tokenizer, unigram_tokenizer])
def test_tokenizers_made_here(make):
    vocabulary, answers = encoded(make(), TEXTS)
    check(answers[1:2], vocabulary)
    check([answers[0], answers[3][:3] + answers[3][-1:], answers[5]], vocabulary, seed=1)


def test_a_space_that_the_tokenizer_adds_is_no_part_of_the_text():
    plain, _ = encoded(unigram_tokenizer(), TEXTS[:1])
    vocabulary, answers = encoded(unigram_tokenizer(adds_space=True), TEXTS[:3], spaces=1)
    assert plain.spelled == vocabulary.spelled
    check(answers[:2], vocabulary, skip=1)


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_tokenizers(name):
    """Tokenizers of SmolLM2 and Gemma 3 in Hugging Face format, in $TUTELAGE_TOKENIZERS/NAME; neither is part of this
    project."""
    folder = Path(os.environ.get("TUTELAGE_TOKENIZERS", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    vocabulary, answers = encoded(AutoTokenizer.from_pretrained(folder), TEXTS)
    check(answers[:2], vocabulary)
    check(answers[3:4], vocabulary, seed=1)


def test_special_tokens_spell_nothing():
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens(["<think>"])
    spelled = spellings(tokenizer, vocabulary_of(tokenizer))
    assert spelled[tokenizer.convert_tokens_to_ids(EOS)] == b""
    assert spelled[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
