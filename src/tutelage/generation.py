"""What a model answers: batched greedy text, or the best of a closed set of answers by log-likelihood.

Both take prompts as token ids, pad them on the left, pass attention mask and positions, and return results in the order given.
Turning rows into ids is `data.py`'s business, judging the answers is that of `tasks/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tutelage.data import IGNORED, pad_id_of
from tutelage.errors import DataError, ModelError, problems
from tutelage.heads import takes_logits_to_keep

SCORED_ROWS = 64
"""Most (prompt, candidate) pairs in one forward pass: each holds a copy of its prompt's keys and values."""
SCORED_POSITIONS = 512
"""Most candidate positions in one forward pass, a single longer candidate aside: each holds logits over the vocabulary, in
float32 at 152,000 entries 300 MB."""


def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to `prompts` (token ids), decoded without special tokens and stripped, in the order given.

    An answer ends before the first end-of-sequence token (the tokenizer's, or any of the model's own generation config), or
    after `max_new_tokens`. Sampling, penalties and forced tokens of that config do not apply. on_batch gets the number of
    prompts answered since its last call. Raises DataError for prompts without tokens.
    """
    _check_tokens(prompts)
    ends = _end_ids(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id_of(tokenizer),
    )
    answers = [""] * len(prompts)
    with _at_rest(model) as plain:
        for places in _batches(prompts, batch_size):
            inputs = _pad_left([prompts[place] for place in places], pad_id_of(tokenizer), plain.device)
            written = plain.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
            for place, ids in zip(places, written.tolist(), strict=True):
                answers[place] = _decode(tokenizer, ids, ends)
            if on_batch:
                on_batch(len(places))
    return answers


def choose_labels(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[int]:
    """Place of the likeliest of each prompt's own candidates: the best of `label_scores`, the first among equals."""
    scores = label_scores(model, tokenizer, prompts, candidates, batch_size=batch_size, on_batch=on_batch)
    return [row.index(max(row)) for row in scores]


def label_scores(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Mean log-likelihood (nats a token, <= 0) of each prompt's own candidates, in the order given.

    candidates: for each prompt a list of answers as token ids, without end-of-sequence; that is added here and counts as a
    token of the answer. Probabilities are over the tokenizer's entries alone, in float32. A prompt is read once, whatever the
    number of its candidates. batch_size: prompts read at a time. on_batch gets the number of prompts scored since its last
    call. Raises DataError for prompts or candidates without tokens and for prompts without candidates, ModelError for a model
    that keeps no cache to continue from.
    """
    _check_tokens(prompts, candidates)
    scores: list[list[float]] = [[] for _ in prompts]
    with _at_rest(model) as plain:
        for places in _batches(prompts, batch_size):
            own = [candidates[place] for place in places]
            for place, row in zip(places, _score_batch(plain, tokenizer, [prompts[p] for p in places], own), strict=True):
                scores[place] = row
            if on_batch:
                on_batch(len(places))
    return scores


def _score_batch(
    model: nn.Module, tokenizer: Any, prompts: list[Sequence[int]], candidates: list[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """`label_scores` of one batch: one pass over the prompts, then passes over chunks of (row, candidate) pairs."""
    inputs = _pad_left(prompts, pad_id_of(tokenizer), model.device)
    keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    output = model(**inputs, use_cache=True, **keep)
    if getattr(output, "past_key_values", None) is None:
        raise ModelError(
            f"{type(model).__name__} returns no key-value cache, so candidates cannot be scored after a prompt read once;"
            " use task.decoding=generate"
        )
    first = output.logits[:, -1, : len(tokenizer)].float().log_softmax(-1)
    scores = [[0.0] * len(own) for own in candidates]
    for pairs in _chunks(candidates):
        rows = torch.tensor([row for row, _ in pairs], device=model.device)
        answers = [[*candidates[row][place], tokenizer.eos_token_id] for row, place in pairs]
        total = first[rows, torch.tensor([answer[0] for answer in answers], device=model.device)]
        total = total + _continuation(model, output.past_key_values, inputs["attention_mask"], rows, answers, len(tokenizer))
        for (row, place), answer, value in zip(pairs, answers, total.tolist(), strict=True):
            scores[row][place] = value / len(answer)
    return scores


def _continuation(
    model: nn.Module, cache: Any, prompt_mask: Tensor, rows: Tensor, answers: list[list[int]], vocabulary: int
) -> Tensor:
    """[pairs] summed log-likelihood of each answer's tokens after its first, behind the prompt in that row of the cache."""
    width = max(map(len, answers)) - 1
    ids = torch.tensor([answer[:-1] + [0] * (width + 1 - len(answer)) for answer in answers], device=rows.device)
    gold = torch.tensor([answer[1:] + [IGNORED] * (width + 1 - len(answer)) for answer in answers], device=rows.device)
    # A forward pass writes into the cache it is given, so every chunk works on a copy. `reorder_cache` is the one selection
    # that attention, sliding-window and recurrent layers all have; rows may repeat in it.
    own = copy.deepcopy(cache)
    own.reorder_cache(rows)
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([prompt_mask[rows], (gold != IGNORED).long()], dim=1),
        position_ids=prompt_mask.sum(1)[rows, None] + torch.arange(width, device=rows.device),
        past_key_values=own,
        use_cache=True,
    ).logits
    logits = logits[..., :vocabulary].float()
    return -nn.functional.cross_entropy(logits.mT, gold.to(logits.device), ignore_index=IGNORED, reduction="none").sum(1)


def _chunks(candidates: list[Sequence[Sequence[int]]]) -> Iterator[list[tuple[int, int]]]:
    """All (row, place of the candidate) pairs, longest candidates first, in pieces that keep to the two limits above."""
    pairs = [(row, place) for row, own in enumerate(candidates) for place in range(len(own))]
    pairs.sort(key=lambda pair: -len(candidates[pair[0]][pair[1]]))
    start = 0
    while start < len(pairs):
        row, place = pairs[start]
        stop = start + max(1, min(SCORED_ROWS, SCORED_POSITIONS // len(candidates[row][place])))
        yield pairs[start:stop]
        start = stop


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[Any]:
    """The model under any adapter wrapper, in eval mode, without gradients, its generation config set aside; all restored.

    `generate` fills whatever a config leaves open from the model's own generation config, and warns about what does not fit
    greedy decoding; with an empty one there is nothing to fill in.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    training = [module for module in model.modules() if module.training]
    config, plain.generation_config = plain.generation_config, GenerationConfig()
    model.eval()
    try:
        with torch.inference_mode():
            yield plain
    finally:
        plain.generation_config = config
        for module in training:
            module.training = True


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of the prompts, longest first: little padding, and memory trouble shows at once."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _pad_left(prompts: list[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask, position_ids [B, T]; models with absolute positions would otherwise count the padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def _end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Ids that end an answer."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = plain.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({end for end in [tokenizer.eos_token_id, *own] if end is not None})


def _decode(tokenizer: Any, ids: list[int], ends: list[int]) -> str:
    """Text up to the first end; spaces in front of punctuation stay, as surfaces of entities must."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def _check_tokens(prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]] | None = None) -> None:
    """Raises DataError that names the rows whose prompt or candidates have no tokens."""
    wrong = [f"row {place}: the prompt has no tokens" for place, prompt in enumerate(prompts) if len(prompt) == 0]
    for place, own in enumerate(candidates if candidates is not None else []):
        if len(own) == 0:
            wrong.append(f"row {place}: there are no candidates to choose from")
        wrong += [f"row {place}: candidate {i} has no tokens" for i, answer in enumerate(own) if len(answer) == 0]
    if wrong:
        more = [f"... and {len(wrong) - 5:,} more"] if len(wrong) > 5 else []
        raise DataError(problems("rows that cannot be answered; check their columns and the template:", wrong[:5] + more))
    if candidates is not None and len(candidates) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(candidates)} lists of candidates; there must be one for each")
