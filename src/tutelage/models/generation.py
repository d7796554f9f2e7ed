"""What a model answers in its own words: greedy text for batches of prompts, and the probability it gave each answer.

Also what every decoding shares: batching and padding.

Prompts are token ids, padded on the left, with attention mask and positions; results come in the order given. Answers
out of a closed set are the business of `labels.py`, turning rows into ids that of `data.py`, judging the answers that
of `tasks/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from tutelage.data.collate import pad_id_of
from tutelage.errors import DataError, problems
from tutelage.models.heads import takes_logits_to_keep

DROP_FROM = 0.25
"""Share of a batch that must be finished for its rows to leave it. Leaving copies the cache of those that stay once; a
step copies it anyway to append to it, so waiting longer saves next to nothing, and at every single row it would copy B
times."""


class Answer(NamedTuple):
    """What a model answered, and how sure it was."""

    text: str
    log_prob: float
    """Nats, at most 0: of all tokens that it wrote, end-of-sequence included, summed. NaN where its logits were no
    numbers."""

    @property
    def confidence(self) -> float | None:
        """Probability in [0, 1] that the model gave the whole of its answer; None where that is no number."""
        return None if math.isnan(self.log_prob) else math.exp(self.log_prob)


class _Written(NamedTuple):
    """Token ids of an answer, without its end, and the sum of their log-probabilities, with it."""

    ids: list[int]
    log_prob: float


def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Greedy answers to `prompts` (token ids), decoded without special tokens and stripped, in the order given.

    Each token is the likeliest of the tokenizer's entries; entries that only the model's matrix has are never written.
    An answer ends before the first end-of-sequence token (the tokenizer's, or any of the model's own generation
    config), or after
    `max_new_tokens`. Its log-probability is over the tokenizer's entries alone, in float32, of the tokens that were
    written: with the end where it came to one, without where it was cut off. Sampling, penalties and forced tokens of
    that config do not apply. on_batch gets the number of prompts answered since its last call. A model that returns no
    key-value cache is decoded by its own `generate`, with the same result. Raises DataError for prompts without tokens.
    """
    check_tokens(prompts)
    ends, vocabulary, cached = _end_ids(model, tokenizer), len(tokenizer), True
    answers = [Answer("", 0.0)] * len(prompts)
    with at_rest(model) as plain:
        for places in length_batches(prompts, batch_size):
            inputs = pad_left([prompts[place] for place in places], pad_id_of(tokenizer), plain.device)
            written = _greedy(plain, inputs, vocabulary, ends, max_new_tokens) if cached else None
            if written is None:
                cached = False
                written = _generate(plain, inputs, vocabulary, ends, max_new_tokens, pad_id_of(tokenizer))
            for place, (ids, log_prob) in zip(places, written, strict=True):
                answers[place] = Answer(_decode(tokenizer, ids), log_prob)
            if on_batch:
                on_batch(len(places))
    return answers


def _greedy(
    model: nn.Module, inputs: dict[str, Tensor], vocabulary: int, ends: list[int], max_new_tokens: int
) -> list[_Written] | None:
    """What each row of a batch writes; None if the model keeps no cache.

    `model.generate` carries finished rows to the end of the longest answer; here they leave the batch.
    """
    keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    output = model(**inputs, use_cache=True, **keep)
    cache = cache_of(output)
    if cache is None:
        return None
    mask, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    written: list[list[int]] = [[] for _ in mask]
    totals = [0.0] * len(written)
    rows = list(range(len(written)))  # that are in the batch
    writing = set(rows)  # and of these, that have not ended
    for left in reversed(range(max_new_tokens)):
        tokens, log_probs = _likeliest(output.logits[:, -1, :vocabulary])
        tokens = tokens.to(mask.device)
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if row not in writing:
                continue
            totals[row] += log_prob
            if token in ends:
                writing.discard(row)
            else:
                written[row].append(token)
        if not writing or not left:
            break
        if len(rows) - len(writing) >= DROP_FROM * len(rows):
            stay = torch.tensor([place for place, row in enumerate(rows) if row in writing], device=mask.device)
            # the one selection that attention, sliding-window and recurrent layers all have
            cache.reorder_cache(stay)
            mask, position, tokens = mask[stay], position[stay], tokens[stay]
            rows = [row for row in rows if row in writing]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position = position + 1
        output = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            **keep,
        )
    return [_Written(ids, total) for ids, total in zip(written, totals, strict=True)]


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[B] the likeliest of the entries, the first among equals, and its log-probability. logits: [B, entries]."""
    logits = logits.float()
    tokens = logits.argmax(-1, keepdim=True)
    return tokens[:, 0], (logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True))[:, 0]


class _Recorder(LogitsProcessor):
    """Changes nothing: keeps, a step, the log-probability of the token that greedy `generate` is about to write."""

    def __init__(self, vocabulary: int) -> None:
        """vocabulary: entries that have a probability."""
        self.vocabulary = vocabulary
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, entries]. All logits of all steps, which `output_logits` would keep, are not needed."""
        self.steps.append(_likeliest(scores[:, : self.vocabulary])[1])
        return scores


def _generate(
    model: Any, inputs: dict[str, Tensor], vocabulary: int, ends: list[int], max_new_tokens: int, pad_id: int
) -> list[_Written]:
    """The same by transformers' own loop."""
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
        suppress_tokens=list(range(vocabulary, model.config.get_text_config().vocab_size)) or None,
    )
    recorder = _Recorder(vocabulary)
    texts = model.generate(**inputs, generation_config=config, logits_processor=[recorder])[
        :, inputs["input_ids"].shape[1] :
    ]
    log_probs = torch.stack(recorder.steps, dim=1).tolist()
    return [_until_end(*row, ends) for row in zip(texts.tolist(), log_probs, strict=True)]


def _until_end(ids: list[int], log_probs: list[float], ends: list[int]) -> _Written:
    """A row without what comes after its first end."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return _Written(ids[:stop], sum(log_probs[: stop + 1]))


def cache_of(output: Any) -> Any:
    """The key-value cache that a forward pass returned, if decoding can go on from it row by row; else None.

    Purely recurrent models (Mamba, RWKV) return their state by another name or not at all; remote code may return
    tuples.
    """
    cache = getattr(output, "past_key_values", None)
    return cache if hasattr(cache, "reorder_cache") else None


@contextmanager
def at_rest(model: nn.Module) -> Iterator[Any]:
    """The model under any adapter wrapper, in eval mode, without gradients, its generation config set aside; all
    restored.

    `generate` fills whatever a config leaves open from the model's own generation config, and warns about what does not
    fit greedy decoding; with an empty one there is nothing to fill in.
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


def length_batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of the prompts, longest first: little padding, and memory trouble shows at once."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad_left(prompts: list[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask, position_ids [B, T]; models with absolute positions would otherwise count the
    padding."""
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


def _decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of an answer; spaces in front of punctuation stay, as surfaces of entities must."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def check_tokens(prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]] | None = None) -> None:
    """Raises DataError that names the rows whose prompt or candidates have no tokens."""
    wrong = [f"row {place}: the prompt has no tokens" for place, prompt in enumerate(prompts) if len(prompt) == 0]
    for place, own in enumerate(candidates if candidates is not None else []):
        if len(own) == 0:
            wrong.append(f"row {place}: there are no candidates to choose from")
        wrong += [f"row {place}: candidate {i} has no tokens" for i, answer in enumerate(own) if len(answer) == 0]
    if wrong:
        more = [f"... and {len(wrong) - 5:,} more"] if len(wrong) > 5 else []
        raise DataError(
            problems("rows that cannot be answered; check their columns and the template:", wrong[:5] + more)
        )
    if candidates is not None and len(candidates) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts but {len(candidates)} lists of candidates; there must be one for each"
        )
