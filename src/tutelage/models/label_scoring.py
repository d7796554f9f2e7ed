"""The likeliest of a closed set of answers: prompts are read once, and candidates that cannot win any more are not read
at all.

A candidate's score is its mean log-likelihood in nats a token, end-of-sequence included. `label_scores` computes all of
them, plainly; `choose_labels` finds the best and leaves out what cannot change it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tutelage.data.collate import pad_id_of
from tutelage.errors import ModelError
from tutelage.models.generation import at_rest, cache_of, check_tokens, length_batches, pad_left
from tutelage.models.heads import takes_logits_to_keep

SCORED_ROWS = 64
"""Most (prompt, candidate) pairs in one forward pass: each holds a copy of its prompt's keys and values."""
SCORED_POSITIONS = 512
"""Most candidate positions in one forward pass, a single longer candidate aside: each holds logits over the vocabulary,
in float32 at 152,000 entries 300 MB."""
EQUAL = 1e-5
"""Nats within which two scores are equal: what float32 makes of the same sum when other rows share the forward pass."""

Answers = list[list[list[int]]]
"""For each prompt its candidates as token ids, end-of-sequence included."""


class Winner(NamedTuple):
    """The likeliest of a prompt's candidates."""

    place: int
    log_prob: float
    """Nats, at most 0: of all its tokens, end-of-sequence included, summed. NaN where the logits were no numbers."""


def choose_labels(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Winner]:
    """The likeliest of each prompt's own candidates: the best of `label_scores`, the first among equals.

    Exact, by branch and bound. Log-probabilities are never above 0, so (sum of the tokens known so far) / (number of
    tokens) is the most that a candidate can still reach. The first tokens are known once the prompt is read; the
    candidate with the best bound is read next, which also tells the tokens that others share with it and the one where
    they part from it, and candidates whose bound falls below the best full score are dropped. A sure model needs one to
    three candidates a prompt. Then 1, 2, 4, ... candidates a prompt are read in a round, so that an unsure model costs
    few forward passes. Worst case (all candidates equally likely, no shared beginnings): every candidate is read, as in
    `label_scores`, in about log2 of their number more passes. Arguments and errors are those of `label_scores`.
    """
    check_tokens(prompts, candidates)
    chosen = [Winner(0, math.nan)] * len(prompts)
    with at_rest(model) as plain:
        for places in length_batches(prompts, batch_size):
            read = _Read(plain, tokenizer, [prompts[place] for place in places])
            races = [_Race(own, read.first[row]) for row, own in enumerate(_with_end(tokenizer, candidates, places))]
            _run(read, races)
            for place, race in zip(places, races, strict=True):
                chosen[place] = race.winner()
            if on_batch:
                on_batch(len(places))
    return chosen


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

    candidates: for each prompt a list of answers as token ids, without end-of-sequence; that is added here and counts
    as a token of the answer. Probabilities are over the tokenizer's entries alone, in float32. A prompt is read once,
    whatever the number of its candidates. batch_size: prompts read at a time. on_batch gets the number of prompts
    scored since its last call. Raises DataError for prompts or candidates without tokens and for prompts without
    candidates, ModelError for a model that keeps no cache to continue from.
    """
    check_tokens(prompts, candidates)
    scores: list[list[float]] = [[] for _ in prompts]
    with at_rest(model) as plain:
        for places in length_batches(prompts, batch_size):
            read = _Read(plain, tokenizer, [prompts[place] for place in places])
            for place, row in zip(places, _all_scores(read, _with_end(tokenizer, candidates, places)), strict=True):
                scores[place] = row
            if on_batch:
                on_batch(len(places))
    return scores


def _with_end(tokenizer: Any, candidates: Sequence[Sequence[Sequence[int]]], places: list[int]) -> Answers:
    return [[[*ids, tokenizer.eos_token_id] for ids in candidates[place]] for place in places]


class _Read:
    """A batch of prompts after one forward pass: what may come next, and a cache to go on from."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompts: list[Sequence[int]]) -> None:
        """Raises ModelError if the model returns no cache."""
        inputs = pad_left(prompts, pad_id_of(tokenizer), model.device)
        keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
        output = model(**inputs, use_cache=True, **keep)
        self.cache = cache_of(output)
        if self.cache is None:
            raise ModelError(
                f"{type(model).__name__} returns no key-value cache, so candidates cannot be scored after a prompt read once;"
                " use task.decoding=generate"
            )
        self.model, self.vocabulary, self.mask = model, len(tokenizer), inputs["attention_mask"]
        self.first = output.logits[:, -1, : self.vocabulary].float().log_softmax(-1)
        """[B, V] log-probabilities of an answer's first token."""

    def after(self, rows: list[int], answers: list[list[int]]) -> Tensor:
        """[P, W, V] log-probabilities after each answer's first, second, ... token; W: the longest answer's tokens but
        the end.

        rows: [P] the prompt, by its place in the batch, that each answer stands behind. Beyond an answer's own end:
        anything.
        """
        width, device = max(map(len, answers)) - 1, self.mask.device
        ids = torch.tensor([answer[:-1] + [0] * (width + 1 - len(answer)) for answer in answers], device=device)
        real = torch.tensor(
            [[1] * (len(answer) - 1) + [0] * (width + 1 - len(answer)) for answer in answers], device=device
        )
        places = torch.tensor(rows, device=device)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.cat([self.mask[places], real], dim=1),
            position_ids=self.mask.sum(1)[places, None] + torch.arange(width, device=device),
            past_key_values=_rows_of(self.cache, places),
            use_cache=True,
        ).logits
        return logits[..., : self.vocabulary].float().log_softmax(-1)


def _rows_of(cache: Any, rows: Tensor) -> Any:
    """A cache of its own with these rows (they may repeat); the given one stays as it is, though a pass writes into its
    cache.

    Only the rows are copied: layers of transformers' own cache replace their tensors when rows are selected, so a
    shallow copy of the layers (and of the dicts that recurrent ones keep their states in) is enough. Other caches are
    copied whole.
    """
    if type(cache) is DynamicCache:
        own = copy.copy(cache)
        own.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in own.layers:
            vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    else:
        own = copy.deepcopy(cache)
    own.reorder_cache(rows)
    return own


def _chunks(pairs: list[tuple[int, int]], answers: Answers) -> Iterator[list[tuple[int, int]]]:
    """The (row, candidate) pairs, longest candidates first, in pieces that keep to the two limits above."""
    pairs = sorted(pairs, key=lambda pair: -len(answers[pair[0]][pair[1]]))
    start = 0
    while start < len(pairs):
        row, place = pairs[start]
        stop = start + max(1, min(SCORED_ROWS, SCORED_POSITIONS // (len(answers[row][place]) - 1)))
        yield pairs[start:stop]
        start = stop


def _all_scores(read: _Read, answers: Answers) -> list[list[float]]:
    """`label_scores` of one batch, every candidate by a pass of its own. Sums of Python's floats: equal terms give
    equal means."""
    scores = [[0.0] * len(own) for own in answers]
    for chunk in _chunks([(row, place) for row, own in enumerate(answers) for place in range(len(own))], answers):
        paths = [answers[row][place] for row, place in chunk]
        after = read.after([row for row, _ in chunk], paths)
        for (row, place), path, known in zip(chunk, paths, after, strict=True):
            rest = known[torch.arange(len(path) - 1), path[1:]].tolist()
            scores[row][place] = sum(rest, start=float(read.first[row, path[0]])) / len(path)
    return scores


class _Race:
    """One prompt's candidates: the sum of the log-probabilities known of each, and who can still win."""

    def __init__(self, answers: list[list[int]], first: Tensor) -> None:
        """first: [V] log-probabilities of the first token."""
        self.answers, self.best = answers, -math.inf
        self.totals = first[[answer[0] for answer in answers]].tolist()
        self.known = [1] * len(answers)

    def bound(self, place: int) -> float:
        """The most that a candidate's score can be; the score itself once all of its tokens are known."""
        return self.totals[place] / len(self.answers[place])

    def can_win(self, place: int) -> bool:
        """Whether the score may be the best or equal to it; written so that NaN, which no bound excludes, is read to
        its end."""
        return not self.bound(place) < self.best - EQUAL

    def is_open(self, place: int) -> bool:
        """Whether the candidate may win and has tokens that nobody has asked for."""
        return self.known[place] < len(self.answers[place]) and self.can_win(place)

    def open(self) -> list[int]:
        """The open candidates, best bound first."""
        return sorted(filter(self.is_open, range(len(self.answers))), key=lambda place: -self.bound(place))

    def ask(self, place: int) -> list[tuple[int, int]]:
        """(candidate, token) pairs that a pass over this candidate will tell; they count as known from here on.

        Its own tokens, and of every open candidate those up to the token where the two part.
        """
        path, asked = self.answers[place], []
        for other in filter(self.is_open, range(len(self.answers))):
            answer = self.answers[other]
            stop = min(_shared(path, answer) + 1, len(path), len(answer))
            asked += [(other, token) for token in range(self.known[other], stop)]
            self.known[other] = max(self.known[other], stop)
        return asked

    def settle(self) -> None:
        """To be called when all that was asked for has come: the best full score."""
        self.best = max([self.best, *map(self.bound, filter(self._is_read, range(len(self.answers))))])

    def winner(self) -> Winner:
        """The first candidate whose score is the best."""
        place = next(place for place in range(len(self.answers)) if self._is_read(place) and self.can_win(place))
        return Winner(place, self.totals[place])

    def _is_read(self, place: int) -> bool:
        return self.known[place] == len(self.answers[place])


def _shared(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _run(read: _Read, races: list[_Race]) -> None:
    """Read candidates until no race has an open one."""
    answers, take = [race.answers for race in races], 1
    while pairs := [(row, place) for row, race in enumerate(races) for place in race.open()[:take]]:
        for chunk in _chunks(pairs, answers):
            _pass(read, races, chunk)
        take *= 2


def _pass(read: _Read, races: list[_Race], chunk: list[tuple[int, int]]) -> None:
    """One forward pass over those of the chunk that are still open, and what it tells of their races."""
    rows, paths, asked = [], [], []
    for row, place in chunk:
        if races[row].is_open(
            place
        ):  # a pass since the round began, or a pair before it in this one, may have settled it
            asked += [(len(rows), row, other, token) for other, token in races[row].ask(place)]
            rows.append(row)
            paths.append(races[row].answers[place])
    if not rows:
        return
    after = read.after(rows, paths)
    pairs, positions = [pair for pair, *_ in asked], [token - 1 for *_, token in asked]
    wanted = [races[row].answers[other][token] for _, row, other, token in asked]
    for (_, row, other, _), value in zip(asked, after[pairs, positions, wanted].tolist(), strict=True):
        races[row].totals[other] += value
    for row in set(rows):
        races[row].settle()
