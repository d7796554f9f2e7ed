"""Batched answers are the answers of one row alone: against a hand-written greedy loop and full, unpadded forward passes."""

import logging
import math
import warnings

import pytest
import torch

from tiny import byte_tokenizer, tiny_model
from tutelage import generation
from tutelage.errors import DataError, ModelError
from tutelage.generation import choose_labels, generate_answers, label_scores

PROMPTS = [list(text.encode()) for text in ("a fever", "x", "left knee, three weeks", "no", "a fever since Monday")]
LABELS = [list(text.encode()) for text in ("flu", "sprain of the knee", "x", "fracture", "flu A")]


def id_tokenizer():
    """Decodes to the ids themselves: invalid bytes would all look alike, and different answers must not."""
    tokenizer = byte_tokenizer()
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    return tokenizer


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


@torch.no_grad()
def naive_scores(model, prompt, candidates, vocabulary=258):
    """Each candidate by its own full forward pass over prompt + candidate."""
    scores = []
    for candidate in candidates:
        answer = [*candidate, 256]
        logits = model(torch.tensor([[*prompt, *candidate]]), use_cache=False).logits[0, len(prompt) - 1 :, :vocabulary]
        log_probabilities = logits.float().log_softmax(-1)
        scores.append(sum(float(log_probabilities[i, token]) for i, token in enumerate(answer)) / len(answer))
    return scores


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
    assert generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=batch_size) == expected


def test_end_of_sequence_of_the_tokenizer_stops_a_row_and_what_comes_after_is_left_out():
    model = tiny_model(3)
    free = [greedy_loop(model, prompt, 8) for prompt in PROMPTS]
    end = free[0][2]
    with torch.no_grad():  # the model now says 256 where it said `end`
        model.lm_head.weight[[end, 256]] = model.lm_head.weight[[256, end]]
    answers = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5)
    assert answers[0] == text_of(free[0][: free[0].index(end)])
    assert answers == [text_of(greedy_loop(model, prompt, 8)) for prompt in PROMPTS]


@pytest.mark.parametrize("listed", [True, False])
def test_every_end_of_the_generation_config_stops_a_row(listed):
    model = tiny_model(3)
    end = greedy_loop(model, PROMPTS[2], 8)[3]
    model.generation_config.eos_token_id = [256, end] if listed else end
    expected = [text_of(greedy_loop(model, prompt, 8, ends=(256, end))) for prompt in PROMPTS]
    assert generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5) == expected
    assert len(expected[2].split()) <= 3


def test_the_models_own_sampling_settings_change_nothing_and_nothing_is_warned_about(caplog):
    model = tiny_model(3)
    expected = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5)
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "repetition_penalty": 9.0, "num_beams": 3}
    settings |= {
        "forced_bos_token_id": 65,
        "forced_eos_token_id": 66,
        "suppress_tokens": list(range(100, 228)),
        "max_length": 9,
    }
    own = model.generation_config
    own.update(**settings, min_new_tokens=3, no_repeat_ngram_size=1)
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=5) == expected
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert caplog.messages == []
    assert model.generation_config is own
    assert own.temperature == 5.0


def test_answers_are_text_without_special_tokens_or_outer_spaces():
    model, tokenizer = tiny_model(3), byte_tokenizer()
    words = iter([" a,", " b ", "<|pad|>"])
    script = [token for word in words for token in tokenizer(word)["input_ids"]]
    assert script[-1] == 257

    def written(input_ids, **_):
        return torch.cat([input_ids, torch.tensor([[*script, 256, 65]])], dim=1)

    model.generate = written
    assert generate_answers(model, tokenizer, [[65]], max_new_tokens=9, batch_size=1) == ["a, b"]


def test_training_modes_come_back_module_by_module():
    model = tiny_model(3, "gpt2").train()
    model.transformer.h[0].eval()
    generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=1, batch_size=5)
    label_scores(model, id_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)
    assert model.training
    assert not model.transformer.h[0].attn.training
    assert model.transformer.h[1].attn.training


def test_dropout_is_off_while_answering():
    model = tiny_model(3, "gpt2", resid_pdrop=0.5)
    expected = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=4, batch_size=5)
    assert generate_answers(model.train(), id_tokenizer(), PROMPTS, max_new_tokens=4, batch_size=5) == expected


def test_progress_adds_up_to_the_prompts():
    model, seen = tiny_model(3), []
    generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=1, batch_size=2, on_batch=seen.append)
    assert seen == [2, 2, 1]
    label_scores(model, id_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=2, on_batch=seen.append)
    assert seen == [2, 2, 1, 2, 2, 1]


def test_no_prompts_no_answers():
    model = tiny_model()
    assert generate_answers(model, byte_tokenizer(), [], max_new_tokens=4, batch_size=2) == []
    assert choose_labels(model, byte_tokenizer(), [], [], batch_size=2) == []


def test_rows_without_tokens_are_named_together():
    model, tokenizer = tiny_model(), byte_tokenizer()
    with pytest.raises(DataError, match="row 1: the prompt has no tokens"):
        generate_answers(model, tokenizer, [[65], []], max_new_tokens=4, batch_size=2)
    with pytest.raises(DataError) as caught:
        choose_labels(model, tokenizer, [[], [65], [66]], [[[65]], [], [[65], []]], batch_size=2)
    assert "row 0: the prompt has no tokens" in str(caught.value)
    assert "row 1: there are no candidates" in str(caught.value)
    assert "row 2: candidate 1 has no tokens" in str(caught.value)


@pytest.mark.parametrize(("arch", "config"), ARCHITECTURES)
def test_label_scores_equal_full_unpadded_passes(arch, config):
    model, tokenizer = tiny_model(5, arch, **config), byte_tokenizer()
    expected = [naive_scores(model, prompt, LABELS) for prompt in PROMPTS]
    for batch_size in (1, 2, 5):
        scores = label_scores(model, tokenizer, PROMPTS, [LABELS] * len(PROMPTS), batch_size=batch_size)
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)
    best = [row.index(max(row)) for row in expected]
    assert choose_labels(model, tokenizer, PROMPTS, [LABELS] * len(PROMPTS), batch_size=3) == best


def test_each_prompt_may_have_its_own_candidates():
    model = tiny_model(5)
    own = [LABELS[:1], LABELS[1:3], LABELS, LABELS[2:], [LABELS[1]] * 2]
    expected = [naive_scores(model, prompt, labels) for prompt, labels in zip(PROMPTS, own, strict=True)]
    scores = label_scores(model, byte_tokenizer(), PROMPTS, own, batch_size=3)
    assert [len(row) for row in scores] == [1, 2, 5, 3, 2]
    for got, wanted in zip(scores, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)
    assert choose_labels(model, byte_tokenizer(), PROMPTS, own, batch_size=3)[4] == 0, "the first among equals"


@pytest.mark.parametrize(("rows", "positions"), [(1, 512), (3, 512), (64, 20), (64, 1)])
def test_scores_do_not_depend_on_how_many_pairs_share_a_pass(monkeypatch, rows, positions):
    model = tiny_model(5, "qwen2")
    monkeypatch.setattr(generation, "SCORED_ROWS", rows)
    monkeypatch.setattr(generation, "SCORED_POSITIONS", positions)
    shapes = []
    hook = model.register_forward_pre_hook(lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True)
    scores = label_scores(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)
    hook.remove()
    prompt_pass, *passes = shapes
    assert prompt_pass == (5, 22), "the prompts are read once"
    assert sum(height for height, _ in passes) == 25
    assert all(height <= rows and (height == 1 or height * width <= positions) for height, width in passes)
    expected = [naive_scores(model, prompt, LABELS) for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_entries_past_the_tokenizer_take_no_probability():
    """All weights zero: every token is equally likely, 1 in 258, however many rows the model's matrix is padded with."""
    model = tiny_model(5, vocab_size=300)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    [[score]] = label_scores(model, byte_tokenizer(), [[65]], [[[66, 67]]], batch_size=1)
    assert score == pytest.approx(-math.log(258), abs=1e-5)


def test_a_model_without_a_cache_to_continue_from_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match="decoding=generate"):
        label_scores(tiny_model(5, "mamba"), byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)


def test_adapters_take_part_and_their_wrapper_is_left_as_it_was():
    peft = pytest.importorskip("peft")
    plain = tiny_model(3)
    before = generate_answers(plain, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=5)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(3), config, autocast_adapter_dtype=False).eval()
    answers = generate_answers(model, id_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=2)
    assert answers != before
    scores = label_scores(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=2)
    assert model.generation_config.eos_token_id == 256
    merged = model.merge_and_unload()
    assert answers == [text_of(greedy_loop(merged, prompt, 6)) for prompt in PROMPTS]
    expected = [naive_scores(merged, prompt, LABELS) for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-3, rtol=0)
