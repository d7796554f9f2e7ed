"""Greedy answers to batches of prompts, each with the probability that the model gave it; batching and padding.

Prompts are token ids, padded on the left, with attention mask and positions; results come in the order of the prompts.
Answers from a closed set of labels are in `label_scoring`.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from tutelage.data.collate import pad_id_of, vocabulary_of
from tutelage.errors import DataError, Kind, ModelError, Problem, problems
from tutelage.models.forward import evaluating
from tutelage.models.heads import takes_logits_to_keep
from tutelage.models.placement import device_of, without_gradients
from tutelage.utils import ranks

CACHE, OLDER_CACHE = "cache", "past_key_values"
"""Names of the key-value cache in arguments and outputs of models, from transformers 5.24 on and before."""
DROP_FROM = 0.25
"""Fraction of a batch that must be finished before its rows leave it. Dropping rows copies the cache of the others
once, which appending to it at every step does anyway; dropping every single row at once would copy it B times."""


class Answer(NamedTuple):
    """What a model answered, and how probable it found its answer."""

    text: str
    log_prob: float
    """Nats, at most 0: summed over all tokens of the answer, end-of-sequence included. NaN if its logits were NaN."""
    ended: bool = True
    """Whether the model ended it; False for an answer that was cut off, whose end has no part in `log_prob`."""

    @property
    def confidence(self) -> float | None:
        """Probability in [0, 1] that the model gave to its whole answer; None if that is NaN."""
        return None if math.isnan(self.log_prob) else math.exp(self.log_prob)


class _Written(NamedTuple):
    """An answer in tokens."""

    ids: list[int]
    """Without end-of-sequence."""
    log_prob: float
    """Sum over the tokens, end-of-sequence included, in nats."""
    ended: bool
    """Whether there was an end-of-sequence."""


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

    Each token is the most probable of the tokenizer's entries; padding entries of the model's matrix are never written.
    An answer ends before the first end-of-sequence token (the tokenizer's, or any in the model's configs) or
    after `max_new_tokens`. Its log-probability is in float32, over the tokenizer's entries. Other settings of that
    config (sampling, penalties, forced tokens) are ignored. A model that returns no key-value cache is decoded by its
    own `generate`, with the same result. Several processes share the batches out, each with the answers to all.

    on_batch: called with the number of prompts answered since its last call. Raises DataError for empty prompts.
    """
    check_tokens(prompts)
    ends, vocabulary, cached = end_ids(model, tokenizer), vocabulary_of(tokenizer), True
    answers: dict[int, Answer] = {}
    with greedy_mode(model) as plain:
        for indices in ranks.share(length_batches(prompts, batch_size)):
            inputs = pad_left([prompts[index] for index in indices], pad_id_of(tokenizer), device_of(plain))
            written = _greedy(plain, inputs, vocabulary, ends, max_new_tokens) if cached else None
            if written is None:
                cached = False
                written = _generate(plain, inputs, vocabulary, ends, max_new_tokens, pad_id_of(tokenizer))
            for index, (ids, log_prob, ended) in zip(indices, written, strict=True):
                answers[index] = Answer(_decode(tokenizer, ids), log_prob, ended)
            if on_batch:
                on_batch(len(indices) * ranks.size())
    answers = ranks.joined(answers)
    return [answers[index] for index in range(len(prompts))]


class _Batch:
    """The rows that `_greedy` is decoding, and what each has written."""

    def __init__(self, size: int, ends: list[int]) -> None:
        """size: number of rows. ends: token ids that end an answer."""
        self.ids: list[list[int]] = [[] for _ in range(size)]
        self.log_probs, self.ends = [0.0] * size, ends
        self.rows = list(range(size))  # in the model's batch, in this order
        self.unfinished = set(self.rows)

    def add(self, tokens: Tensor, log_probs: Tensor) -> None:
        """Append a token to each unfinished row. tokens, log_probs: [rows in the batch]."""
        for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if row not in self.unfinished:
                continue
            self.log_probs[row] += log_prob
            if token in self.ends:
                self.unfinished.discard(row)
            else:
                self.ids[row].append(token)

    def drop_finished(self) -> list[int] | None:
        """Take finished rows out. Returns the batch indices of the others; None if too few are finished."""
        if len(self.rows) - len(self.unfinished) < DROP_FROM * len(self.rows):
            return None
        kept = [index for index, row in enumerate(self.rows) if row in self.unfinished]
        self.rows = [self.rows[index] for index in kept]
        return kept

    def written(self) -> list[_Written]:
        """The answers of all rows."""
        pairs = enumerate(zip(self.ids, self.log_probs, strict=True))
        return [_Written(ids, log_prob, row not in self.unfinished) for row, (ids, log_prob) in pairs]


def _greedy(
    model: nn.Module, inputs: dict[str, Tensor], vocabulary: int, ends: list[int], max_new_tokens: int
) -> list[_Written] | None:
    """Answers of a batch; None if the model keeps no cache.

    `model.generate` decodes finished rows until the longest answer ends; here they leave the batch.
    """
    keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    output = model(**inputs, use_cache=True, **keep)
    cache = cache_of(output)
    if cache is None:
        return None
    mask, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    batch = _Batch(len(mask), ends)
    for steps_left in reversed(range(max_new_tokens)):
        tokens, log_probs = _most_probable(output.logits[:, -1, :vocabulary])
        tokens = tokens.to(mask.device)
        batch.add(tokens, log_probs)
        if not batch.unfinished or not steps_left:
            break
        if (kept := batch.drop_finished()) is not None:
            selected = torch.tensor(kept, device=mask.device)
            cache.reorder_cache(selected)  # attention, sliding-window and recurrent layers all have this one
            mask, position, tokens = mask[selected], position[selected], tokens[selected]
        mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
        position = position + 1
        output = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
            **with_cache(model, cache),
            **keep,
        )
    return batch.written()


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[B] the most probable entry of each row, the first of equal ones, and its log-probability. logits: [B, V]."""
    logits = logits.float()
    tokens = logits.argmax(-1, keepdim=True)
    return tokens[:, 0], (logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True))[:, 0]


class _Recorder(LogitsProcessor):
    """Changes no logits; records the log-probability of the token that greedy `generate` writes at each step."""

    def __init__(self, vocabulary: int) -> None:
        """vocabulary: number of entries that have a probability."""
        self.vocabulary = vocabulary
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, entries]. `output_logits` would keep these of all steps."""
        self.steps.append(_most_probable(scores[:, : self.vocabulary])[1])
        return scores


def _generate(
    model: Any, inputs: dict[str, Tensor], vocabulary: int, ends: list[int], max_new_tokens: int, pad_id: int
) -> list[_Written]:
    """Like `_greedy`, by transformers' own loop."""
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
    texts = model.generate(**inputs, generation_config=config, logits_processor=[recorder])
    answers = texts[:, inputs["input_ids"].shape[1] :].tolist()
    log_probs = torch.stack(recorder.steps, dim=1).tolist()
    return [_until_end(*row, ends) for row in zip(answers, log_probs, strict=True)]


def _until_end(ids: list[int], log_probs: list[float], ends: list[int]) -> _Written:
    """A row up to its first end-of-sequence token."""
    stop = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return _Written(ids[:stop], sum(log_probs[: stop + 1]), stop < len(ids))


def cache_of(output: Any) -> Any:
    """The key-value cache that a forward pass returned, if rows can be selected from it; otherwise None.

    Purely recurrent models (Mamba, RWKV) return their state under another name or not at all; remote code may return
    tuples.
    """
    cache = getattr(output, CACHE, None)
    cache = getattr(output, OLDER_CACHE, None) if cache is None else cache  # asking for it warns in 5.24
    return cache if hasattr(cache, "reorder_cache") else None


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of `model.forward` that holds a key-value cache. transformers 5.24 renamed it, and warns about the
    older name, which remote code and earlier versions have."""
    return {CACHE if CACHE in inspect.signature(model.forward).parameters else OLDER_CACHE: cache}


@contextmanager
def greedy_mode(model: nn.Module) -> Iterator[Any]:
    """The model without its adapter wrapper, in eval mode, without gradients and generation config; restored on exit.

    `generate` fills settings that a config leaves open from the model's own generation config, and warns about those
    that do not fit greedy decoding; an empty config prevents both.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        with evaluating(model), without_gradients(plain):
            yield plain
    finally:
        plain.generation_config = config


def length_batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the prompts in batches, longest first: little padding, and running out of memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad_left(prompts: list[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask, position_ids [B, T]; models with absolute positions would otherwise count the
    padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the tokenizer's, and those of the model's config and generation config."""
    configured = itertools.chain.from_iterable(_ends(config) for config in _configs(model).values())
    return sorted({tokenizer.eos_token_id, *configured} - {None})


def check_ends(model: nn.Module, name: str) -> None:
    """Raises ModelError for a config or generation config that ends answers with something that is no token of the
    model. name: of the model."""
    rows = len(model.get_input_embeddings().weight)
    for file, config in _configs(model).items():
        wrong = [end for end in _ends(config) if type(end) is not int or not 0 <= end < rows]
        if wrong:
            raise ModelError(
                Problem(Kind.END_IDS_INVALID, values={"name": name, "file": file, "wrong": wrong, "rows": rows})
            )


def drop_ends(model: nn.Module, vocabulary: int) -> None:
    """Take ids that are not below `vocabulary` out of what ends an answer."""
    for config in _configs(model).values():
        ends = _ends(config)
        if any(end >= vocabulary for end in ends):
            config.eos_token_id = [end for end in ends if end < vocabulary] or None


def _configs(model: nn.Module) -> dict[str, Any]:
    """What says which tokens end an answer, by the name of its file."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"generation_config.json": plain.generation_config, "config.json": plain.config.get_text_config()}


def _ends(config: Any) -> list[Any]:
    """The entries of `eos_token_id`, as they are written."""
    ends = getattr(config, "eos_token_id", None)
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of an answer; spaces before punctuation stay, because entities are copied with them."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def check_tokens(prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]] | None = None) -> None:
    """Raises DataError that names the rows whose prompt or candidates have no tokens."""
    wrong = [f"row {row}: the prompt has no tokens" for row, prompt in enumerate(prompts) if len(prompt) == 0]
    for row, answers in enumerate(candidates if candidates is not None else []):
        if len(answers) == 0:
            wrong.append(f"row {row}: there are no candidates to choose from")
        wrong += [f"row {row}: candidate {i} has no tokens" for i, answer in enumerate(answers) if len(answer) == 0]
    if wrong:
        more = [f"... and {len(wrong) - 5:,} more"] if len(wrong) > 5 else []
        raise DataError(
            problems("rows that cannot be answered; check their columns and the template:", wrong[:5] + more)
        )
    if candidates is not None and len(candidates) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many lists of candidates; got {len(candidates)}")
