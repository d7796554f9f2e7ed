"""Batched answers equal those of single rows: of a hand-written greedy loop, and of `model.generate`."""

import inspect
import json
import logging
import math
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from benchmarks import decode
from benchmarks.shapes import Shape, build_model
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.errors import DataError
from tutelage.models import generation
from tutelage.models.generation import Answer, generate_answers
from tutelage.models.label_scoring import choose_labels

PROMPTS = [list(text.encode()) for text in ("a fever", "x", "left knee, three weeks", "no", "a fever since Monday")]


def id_tokenizer():
    """Decodes to the ids themselves: different invalid bytes would decode to the same text."""
    tokenizer = byte_tokenizer()
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    return tokenizer


def answered(*args, **options):
    """The texts of `generate_answers`."""
    return [answer.text for answer in generate_answers(*args, **options)]


@torch.no_grad()
def greedy_loop(model, prompt, steps, ends=(256,)):
    """One row, no padding, no cache: the argmax of the last logits, until an end."""
    ids = list(prompt)
    for _ in range(steps):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def text_of(ids):
    return " ".join(map(str, ids))


ARCHITECTURES = [
    ("llama", {}),
    ("qwen2", {}),
    ("gpt2", {}),
    ("gemma2", {"sliding_window": 8}),
    ("cohere", {}),
]


@pytest.mark.parametrize(("arch", "config"), ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batched_answers_equal_a_greedy_loop_over_single_rows(arch, config, batch_size):
    model = tiny_model(3, arch, **config)
    expected = [text_of(greedy_loop(model, prompt, 8)) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS), "answers must differ, or a wrong order would pass"
    assert answered(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=batch_size) == expected


RECURRENT = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]}
DECODED = [
    *ARCHITECTURES,
    ("mistral", {"sliding_window": 5}),
    ("gemma3_text", {"sliding_window": 5}),
    ("bamba", RECURRENT),
    ("mamba", {}),
]
"""Windows of 5 are shorter than prompt and answer; Bamba has recurrent and attention layers; Mamba returns no usable
cache."""


def ends_often(model, prompts, steps=12):
    """Sets ids that rows reach after different numbers of tokens as the model's ends; returns them and the
    tokenizer's."""
    free = [greedy_loop(model, prompt, steps) for prompt in prompts]
    ends = [free[0][1], free[1][3], free[2][6]]
    model.generation_config.eos_token_id = ends
    return [256, *ends]


def by_generate(model, prompt, ends, steps=12):
    """One row by transformers' own loop, unpadded; without end-of-sequence."""
    config = GenerationConfig(do_sample=False, max_new_tokens=steps, eos_token_id=ends, pad_token_id=257)
    written = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=config
    )
    ids = written[0, len(prompt) :].tolist()
    return ids[:-1] if ids[-1] in ends else ids


@pytest.mark.parametrize(("arch", "config"), DECODED)
def test_every_row_equals_generate_on_it_alone_whichever_rows_leave_the_batch(arch, config):
    model = tiny_model(3, arch, **config)
    ends = ends_often(model, PROMPTS)
    expected = [by_generate(model, prompt, ends) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) > 2, "rows must end at different times"
    for batch_size in (1, 3, 5):
        answers = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=12, batch_size=batch_size)
        assert answers == [text_of(ids) for ids in expected]


@torch.no_grad()
def forced(model, prompt, answer, vocabulary=258):
    """Log-probability of an answer's tokens, by one pass over prompt and answer, unpadded, without a cache."""
    logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1, :vocabulary]
    return float(logits.float().log_softmax(-1)[range(len(answer)), answer].double().sum())


def whole_answers(model, ends, steps):
    """What each row writes, with end-of-sequence if it was reached."""
    answers = []
    for prompt in PROMPTS:
        ids = greedy_loop(model, prompt, steps, ends)
        if len(ids) < steps:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].argmax()))
        answers.append(ids)
    return answers


@pytest.mark.parametrize(("arch", "config"), DECODED)
def test_the_probability_of_an_answer_equals_that_of_one_pass_whichever_rows_leave_the_batch(arch, config):
    model = tiny_model(3, arch, **config)
    ends = ends_often(model, PROMPTS)
    answers = whole_answers(model, ends, steps=4)
    assert {answer[-1] in ends for answer in answers} == {True, False}, "some must end, and some must be cut off"
    expected = [forced(model, prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    for batch_size in (1, 3, 5):
        batched = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=4, batch_size=batch_size)
        assert [answer.log_prob for answer in batched] == pytest.approx(expected, abs=1e-4)
        assert [answer.confidence for answer in batched] == pytest.approx(np.exp(expected), rel=1e-4)


@pytest.mark.parametrize("vocab_size", [258, 300])
def test_both_ways_of_decoding_give_an_answer_the_same_probability(monkeypatch, vocab_size):
    model = tiny_model(3, vocab_size=vocab_size, tie_word_embeddings=False)
    ends_often(model, PROMPTS)
    with torch.no_grad():  # padding entries of the model's matrix must take no probability
        model.get_output_embeddings().weight[258:] = 9 * model.get_output_embeddings().weight[: vocab_size - 258]
    greedy = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=5, batch_size=3)
    monkeypatch.setattr(generation, "cache_of", lambda output: None)
    generated = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=5, batch_size=3)
    assert [answer.text for answer in generated] == [answer.text for answer in greedy]
    assert [answer.log_prob for answer in generated] == pytest.approx([answer.log_prob for answer in greedy], abs=1e-4)
    texts = [[int(word) for word in answer.text.split()] for answer in greedy]
    cut = [row for row, ids in enumerate(texts) if len(ids) == 5]  # without end-of-sequence
    assert cut and len(cut) < len(PROMPTS)
    for row in cut:
        assert greedy[row].log_prob == pytest.approx(forced(model, PROMPTS[row], texts[row]), abs=1e-4)


def test_a_probability_is_at_most_one_and_none_for_nan():
    assert Answer("x", 0.0).confidence == 1.0 and Answer("x", -1000.0).confidence == 0.0
    assert Answer("x", math.nan).confidence is None
    model = tiny_model(3)
    with torch.no_grad():
        model.lm_head.weight *= 100  # probabilities round to 1
    assert all(
        answer.log_prob <= 0
        for answer in generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5)
    )


def test_rows_that_ended_leave_the_batch_and_only_new_tokens_are_read():
    model = tiny_model(3)
    ends = ends_often(model, PROMPTS)
    lengths = [len(by_generate(model, prompt, ends)) for prompt in PROMPTS]
    shapes, kept = [], []
    model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    model.register_forward_hook(lambda _, __, output: kept.append(output.logits.shape[1]))
    answered(model, id_tokenizer(), PROMPTS, max_new_tokens=12, batch_size=5)
    # a row writes `length` tokens, then its end; 1 of 5 is less than a quarter, so it waits for the second
    waiting = [sum(length > step for length in lengths) for step in range(max(lengths))]
    expected = []
    for writing in waiting:
        before = expected[-1] if expected else 5
        expected.append(writing if before - writing >= 0.25 * before else before)
    assert shapes == [(5, 22), *((rows, 1) for rows in expected)][: len(shapes)]
    assert len(shapes) in (max(lengths), max(lengths) + 1)
    assert expected[-1] < 5
    assert set(kept) == {1}, "logits of the last position only"


@pytest.mark.parametrize("arch", ["llama", "mamba"])
def test_entries_beyond_the_tokenizer_are_never_written(arch):
    model = tiny_model(3, arch, vocab_size=300, tie_word_embeddings=False)
    expected = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=5)
    with torch.no_grad():
        model.get_output_embeddings().weight[258:] = 9 * model.get_output_embeddings().weight[:42]
    assert int(model(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax()) >= 258
    assert answered(model, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=5) == expected


def test_the_tokenizers_end_of_sequence_ends_a_row():
    model = tiny_model(3)
    free = [greedy_loop(model, prompt, 8) for prompt in PROMPTS]
    end = free[0][2]
    with torch.no_grad():  # the model now says 256 where it said `end`
        model.lm_head.weight[[end, 256]] = model.lm_head.weight[[256, end]]
    answers = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5)
    assert answers[0] == text_of(free[0][: free[0].index(end)])
    assert answers == [text_of(greedy_loop(model, prompt, 8)) for prompt in PROMPTS]


@pytest.mark.parametrize("listed", [True, False])
def test_every_end_of_the_generation_config_stops_a_row(listed):
    model = tiny_model(3)
    end = greedy_loop(model, PROMPTS[2], 8)[3]
    model.generation_config.eos_token_id = [256, end] if listed else end
    expected = [text_of(greedy_loop(model, prompt, 8, ends=(256, end))) for prompt in PROMPTS]
    assert answered(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5) == expected
    assert len(expected[2].split()) <= 3


def test_the_models_sampling_settings_are_ignored_without_warnings(caplog):
    model = tiny_model(3)
    expected = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5)
    settings = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "top_p": 0.5,
        "repetition_penalty": 9.0,
        "num_beams": 3,
    }
    settings |= {
        "forced_bos_token_id": 65,
        "forced_eos_token_id": 66,
        "suppress_tokens": list(range(100, 228)),
        "max_length": 9,
    }
    config = model.generation_config
    config.update(**settings, min_new_tokens=3, no_repeat_ngram_size=1)
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert answered(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5) == expected
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert caplog.messages == []
    assert model.generation_config is config
    assert config.temperature == 5.0


def test_answers_are_text_without_special_tokens_or_outer_spaces():
    model, tokenizer = tiny_model(3), byte_tokenizer()
    script = [token for word in (" a,", " b ", "<|pad|>") for token in tokenizer(word)["input_ids"]]
    assert script[-1] == 257, "a special token inside the answer"

    script += [256, 65]

    def speak(_, __, inputs, output):
        output.logits[:, -1, script[int(inputs["position_ids"][0, -1])]] = 1e6

    model.register_forward_hook(speak, with_kwargs=True)
    assert answered(model, tokenizer, [[65]], max_new_tokens=9, batch_size=1) == ["a, b"]


def test_training_modes_are_restored_module_by_module():
    model = tiny_model(3, "gpt2").train()
    model.transformer.h[0].eval()
    answered(model, id_tokenizer(), PROMPTS, max_new_tokens=1, batch_size=5)
    assert model.training
    assert not model.transformer.h[0].attn.training
    assert model.transformer.h[1].attn.training


def test_dropout_is_off_while_answering():
    model = tiny_model(3, "gpt2", resid_pdrop=0.5)
    expected = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=4, batch_size=5)
    assert answered(model.train(), id_tokenizer(), PROMPTS, max_new_tokens=4, batch_size=5) == expected


def test_the_cache_has_the_name_that_the_model_gives_it():
    """transformers 5.24 calls it `cache` in arguments and outputs, and warns about `past_key_values`."""
    model, ids = tiny_model(3), id_tokenizer()
    labels = [[[97], [98, 99]]] * len(PROMPTS)
    expected = generate_answers(model, ids, PROMPTS, max_new_tokens=6, batch_size=3)
    chosen = choose_labels(model, ids, PROMPTS, labels, batch_size=3)
    older, caches = model.forward, []

    def forward(input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None, logits_to_keep=0):
        caches.append(cache)
        name = "cache" if "cache" in inspect.signature(older).parameters else "past_key_values"
        output = older(
            input_ids, attention_mask, position_ids, use_cache=use_cache, logits_to_keep=logits_to_keep, **{name: cache}
        )
        return SimpleNamespace(logits=output.logits, cache=output[name])

    model.forward = forward
    assert generate_answers(model, ids, PROMPTS, max_new_tokens=6, batch_size=3) == expected
    assert choose_labels(model, ids, PROMPTS, labels, batch_size=3) == chosen
    assert any(cache is not None for cache in caches), "prompts are read once"


def test_progress_adds_up_to_the_prompts():
    model, counts = tiny_model(3), []
    answered(model, id_tokenizer(), PROMPTS, max_new_tokens=1, batch_size=2, on_batch=counts.append)
    assert counts == [2, 2, 1]


def test_no_prompts_no_answers():
    model = tiny_model()
    assert answered(model, byte_tokenizer(), [], max_new_tokens=4, batch_size=2) == []


def test_rows_without_tokens_are_named_together():
    model, tokenizer = tiny_model(), byte_tokenizer()
    with pytest.raises(DataError, match="row 1: the prompt has no tokens"):
        answered(model, tokenizer, [[65], []], max_new_tokens=4, batch_size=2)


def test_adapters_are_used_and_their_wrapper_is_not_changed():
    import peft

    plain = tiny_model(3)
    before = answered(plain, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=5)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(3), config, autocast_adapter_dtype=False).eval()
    answers = answered(model, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=2)
    assert answers != before
    assert model.generation_config.eos_token_id == 256
    merged = model.merge_and_unload()
    assert answers == [text_of(greedy_loop(merged, prompt, 6)) for prompt in PROMPTS]


def test_the_benchmark_compares_equal_answers_and_their_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        decode, "MODEL", Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=700)
    )
    (_, hook, variants), *_ = decode.cases(decode.MODEL, 4)
    model = build_model(decode.MODEL, 0).eval()
    model.register_forward_hook(hook, with_kwargs=True)
    answers = {name: run(model) for name, run in variants.items()}
    assert answers["tutelage"] == answers["generate"]
    assert len({len(answer.split()) for answer in answers["tutelage"]}) > 1
    decode.main(json_file=tmp_path / "decode.json", rounds=1, prompts=4, threads=1)
    greedy, sure, unsure = json.loads((tmp_path / "decode.json").read_text())
    assert greedy["tokens"]["tutelage"] < greedy["tokens"]["generate"]
    assert sure["tokens"]["choose"] < 3 * sure["tokens"]["one"] < unsure["tokens"]["choose"]
    assert {"seconds", "ratios", "samples", "machine", "versions"} <= set(unsure)


class Casts(TorchDispatchMode):
    """Counts casts of tensors to bfloat16 by shape."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if str(operator) == "aten._to_copy.default" and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.found[tuple(args[0].shape)] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained", [True, False])
def test_autocast_casts_a_weight_once_for_all_tokens_and_not_for_each(trained):
    model, prompts = tiny_model(3, tie_word_embeddings=False).requires_grad_(trained), [list(b"one"), list(b"two: ")]
    head = tuple(model.get_output_embeddings().weight.shape)
    with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
        found = generate_answers(model, byte_tokenizer(), prompts, max_new_tokens=6, batch_size=2)
    assert casts.found[head] == 1
    assert all(weight.requires_grad == trained for weight in model.parameters())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Casts() as casts:
        expected = generate_answers(model, byte_tokenizer(), prompts, max_new_tokens=6, batch_size=2)
    assert casts.found[head] > 1
    assert found == expected
