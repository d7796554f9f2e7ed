"""The best label equals that of full, unpadded passes over every candidate, however few candidates are read."""

import math
import random

import pytest
import torch

from benchmarks.decode import Ids, Taught, count_tokens, random_labels, random_prompts
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.errors import DataError, ModelError
from tutelage.models import label_scoring as labels
from tutelage.models.label_scoring import choose_labels, label_scores

PROMPTS = [list(text.encode()) for text in ("a fever", "x", "left knee, three weeks", "no", "a fever since Monday")]
LABELS = [list(text.encode()) for text in ("flu", "sprain of the knee", "x", "fracture", "flu A")]
RECURRENT = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]}
"""A Bamba with a recurrent and an attention layer."""
ARCHITECTURES = [
    ("llama", {}),
    ("qwen2", {}),
    ("gpt2", {}),
    ("gemma2", {"sliding_window": 8}),
    ("cohere", {}),
    ("mistral", {"sliding_window": 5}),
    ("bamba", RECURRENT),
]


def chosen(*args, **options):
    """The indices alone."""
    return [winner.index for winner in choose_labels(*args, **options)]


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


@pytest.mark.parametrize(("arch", "config"), ARCHITECTURES)
def test_label_scores_equal_full_unpadded_passes(arch, config):
    model, tokenizer = tiny_model(5, arch, **config), byte_tokenizer()
    expected = [naive_scores(model, prompt, LABELS) for prompt in PROMPTS]
    for batch_size in (1, 2, 5):
        scores = label_scores(model, tokenizer, PROMPTS, [LABELS] * len(PROMPTS), batch_size=batch_size)
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)
    best = [row.index(max(row)) for row in expected]
    assert chosen(model, tokenizer, PROMPTS, [LABELS] * len(PROMPTS), batch_size=3) == best


def test_each_prompt_may_have_its_own_candidates():
    model = tiny_model(5)
    candidates = [LABELS[:1], LABELS[1:3], LABELS, LABELS[2:], [LABELS[1]] * 2]
    expected = [naive_scores(model, prompt, labels) for prompt, labels in zip(PROMPTS, candidates, strict=True)]
    scores = label_scores(model, byte_tokenizer(), PROMPTS, candidates, batch_size=3)
    assert [len(row) for row in scores] == [1, 2, 5, 3, 2]
    for got, wanted in zip(scores, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)
    assert chosen(model, byte_tokenizer(), PROMPTS, candidates, batch_size=3)[4] == 0, "the first among equals"


@pytest.mark.parametrize(("rows", "positions"), [(1, 512), (3, 512), (64, 20), (64, 1)])
def test_scores_do_not_depend_on_how_many_pairs_share_a_pass(monkeypatch, rows, positions):
    model = tiny_model(5, "qwen2")
    monkeypatch.setattr(labels, "SCORED_ROWS", rows)
    monkeypatch.setattr(labels, "SCORED_POSITIONS", positions)
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    scores = label_scores(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)
    hook.remove()
    prompt_pass, *passes = shapes
    assert prompt_pass == (5, 22), "the prompts are read once"
    assert sum(height for height, _ in passes) == 25
    assert all(height <= rows and (height == 1 or height * width <= positions) for height, width in passes)
    expected = [naive_scores(model, prompt, LABELS) for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_entries_beyond_the_tokenizer_take_no_probability():
    """All weights are zero: every token has probability 1 / 258, however many padding rows the model's matrix has."""
    model = tiny_model(5, vocab_size=300)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    [[score]] = label_scores(model, byte_tokenizer(), [[65]], [[[66, 67]]], batch_size=1)
    assert score == pytest.approx(-math.log(258), abs=1e-5)


def test_a_model_without_a_cache_to_continue_from_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match="decoding=generate"):
        label_scores(tiny_model(5, "mamba"), byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)


def test_progress_and_training_modes_and_no_prompts():
    model, counts = tiny_model(3, "gpt2").train(), []
    model.transformer.h[0].eval()
    for decide in (label_scores, choose_labels):
        decide(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=2, on_batch=counts.append)
        assert decide(model, byte_tokenizer(), [], [], batch_size=2) == []
    assert counts == [2, 2, 1] * 2
    assert model.training and not model.transformer.h[0].attn.training and model.transformer.h[1].attn.training


def test_rows_without_tokens_or_candidates_are_named_together():
    with pytest.raises(DataError) as caught:
        chosen(tiny_model(), byte_tokenizer(), [[], [65], [66]], [[[65]], [], [[65], []]], batch_size=2)
    assert "row 0: the prompt has no tokens" in str(caught.value)
    assert "row 1: there are no candidates" in str(caught.value)
    assert "row 2: candidate 1 has no tokens" in str(caught.value)


def test_adapters_are_used():
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(3), config, autocast_adapter_dtype=False).eval()
    scores = label_scores(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=2)
    merged = model.merge_and_unload()
    expected = [naive_scores(merged, prompt, LABELS) for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-3, rtol=0)


# --- choosing without reading everything ---


def first_best(scores):
    return [row.index(max(row)) for row in scores]


def candidates_with_common_prefixes(draw):
    """2 to 12 labels over three tokens: with common prefixes, labels that are prefixes of others, and repeated
    labels."""
    return [[draw.choice((97, 98, 99)) for _ in range(draw.randint(1, 6))] for _ in range(draw.randint(2, 12))]


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all_scores(seed, sharpness):
    draw, model = (
        random.Random(seed),
        tiny_model(seed, ("llama", "gemma2", "gpt2")[seed % 3], tie_word_embeddings=False),
    )
    with torch.no_grad():
        model.lm_head.weight *= sharpness
    prompts = [[draw.randrange(256) for _ in range(draw.randint(1, 20))] for _ in range(12)]
    candidates = [candidates_with_common_prefixes(draw) for _ in prompts]
    expected = first_best(label_scores(model, byte_tokenizer(), prompts, candidates, batch_size=12))
    for batch_size in (1, 5, 12):
        assert chosen(model, byte_tokenizer(), prompts, candidates, batch_size=batch_size) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_winners_probability_is_that_of_its_score(seed):
    """The mean over all its tokens, end-of-sequence included, times their number, in whatever order they are read."""
    draw, model = (
        random.Random(seed),
        tiny_model(seed, ("llama", "gemma2", "gpt2")[seed % 3], tie_word_embeddings=False),
    )
    candidates = [candidates_with_common_prefixes(draw) for _ in PROMPTS]
    scores = label_scores(model, byte_tokenizer(), PROMPTS, candidates, batch_size=5)
    for batch_size in (1, 3, 5):
        winners = choose_labels(model, byte_tokenizer(), PROMPTS, candidates, batch_size=batch_size)
        for winner, labels_of_row, row in zip(winners, candidates, scores, strict=True):
            tokens = len(labels_of_row[winner.index]) + 1
            assert winner.log_prob == pytest.approx(row[winner.index] * tokens, abs=1e-4)
            assert winner.log_prob <= 0


@pytest.mark.parametrize("seed", range(4))
def test_equal_scores_go_to_the_first(seed):
    draw = random.Random(seed)
    candidates = [candidates_with_common_prefixes(draw) for _ in PROMPTS]
    blank, twins = tiny_model(seed), tiny_model(seed)
    with torch.no_grad():
        blank.lm_head.weight.zero_()  # every token is as likely as any other, so all means are equal
        twins.lm_head.weight[98] = twins.lm_head.weight[97]  # a and b are the same token by two ids
        twins.model.embed_tokens.weight[98] = twins.model.embed_tokens.weight[97]
    assert chosen(blank, byte_tokenizer(), PROMPTS, candidates, batch_size=3) == [0] * 5
    indices = chosen(twins, byte_tokenizer(), PROMPTS, candidates, batch_size=3)
    for index, labels_of_row in zip(indices, candidates, strict=True):
        same = [[97 if token == 98 else token for token in answer] for answer in labels_of_row]
        assert index == same.index(same[index])


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_nan_scores_choose_the_first_candidate(bad):
    model = tiny_model(5)

    def spoil(_, __, output):
        output.logits.fill_(bad)

    model.register_forward_hook(spoil)
    winners = choose_labels(model, byte_tokenizer(), PROMPTS, [LABELS] * 5, batch_size=5)
    assert [winner.index for winner in winners] == [0] * 5
    assert all(math.isnan(winner.log_prob) for winner in winners)


def test_77_labels_cost_less_than_three_times_one_where_the_model_is_sure():
    vocabulary, ids = 600, Ids(600)
    labels_of_model = random_labels(vocabulary, 0)
    model = tiny_model(0, vocab_size=vocabulary, initializer_range=0.02)
    model.register_forward_hook(Taught(labels_of_model), with_kwargs=True)
    prompts = random_prompts(vocabulary, 0, 32)
    true = [len(prompt) % len(labels_of_model) for prompt in prompts]
    tokens = {
        "one": count_tokens(
            model, lambda m: chosen(m, ids, prompts, [[labels_of_model[index]] for index in true], batch_size=16)
        ),
        "all": count_tokens(model, lambda m: label_scores(m, ids, prompts, [labels_of_model] * 32, batch_size=16)),
    }
    tokens["choose"] = count_tokens(model, lambda m: chosen(m, ids, prompts, [labels_of_model] * 32, batch_size=16))
    assert tokens["choose"] < 1.5 * tokens["one"]
    assert tokens["all"] > 5 * tokens["one"]
    assert chosen(model, ids, prompts, [labels_of_model] * 32, batch_size=16) == true


def test_in_the_worst_case_every_candidate_is_read_once():
    model = tiny_model(0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    candidates = [[first, 7, 8] for first in range(20, 97)]  # no common prefixes
    shapes = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    chosen(model, byte_tokenizer(), PROMPTS, [candidates] * 5, batch_size=5)
    assert sum(rows for rows, _ in shapes[1:]) == 5 * 77
    assert len(shapes[1:]) <= math.ceil(5 * 77 / labels.SCORED_ROWS) + math.ceil(math.log2(77))


def test_the_cache_of_the_prompts_is_the_same_after_a_pass():
    for arch, config in (("llama", {}), ("mistral", {"sliding_window": 5}), ("bamba", RECURRENT)):
        model = tiny_model(0, arch, **config)
        with labels.greedy_mode(model) as plain:
            read = labels._ReadPrompts(plain, byte_tokenizer(), PROMPTS)
            first = read.after([1, 1, 4], [[1, 2, 256], [3, 4, 256], [5, 6, 256]])
            assert torch.equal(first, read.after([1, 1, 4], [[1, 2, 256], [3, 4, 256], [5, 6, 256]]))
