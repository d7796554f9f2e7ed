"""The most probable answer out of a closed set: each prompt is read once, and candidates that cannot win are not read.

A candidate's score is its mean log-likelihood in nats per token, end-of-sequence included. `label_scores` computes the
scores of all candidates; `choose_labels` finds the best one and skips what cannot change it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tutelage.data.collate import pad_id_of, vocabulary_of
from tutelage.errors import ModelError
from tutelage.models.generation import (
    cache_of,
    check_tokens,
    greedy_mode,
    length_batches,
    pad_left,
    with_cache,
)
from tutelage.models.heads import takes_logits_to_keep
from tutelage.models.placement import device_of
from tutelage.utils import ranks

SCORED_ROWS = 64
"""Most (prompt, candidate) pairs in one forward pass: each holds a copy of its prompt's keys and values."""
SCORED_POSITIONS = 512
"""Most candidate positions in one forward pass, unless a single candidate is longer: each holds float32 logits over the
vocabulary, 300 MB at 152,000 entries."""
EQUAL = 1e-5
"""Nats within which two scores are equal: float32 sums differ by this when other rows share the forward pass."""

Answers = list[list[list[int]]]
"""For each prompt its candidates as token ids, end-of-sequence included."""


class Winner(NamedTuple):
    """The most probable of a prompt's candidates."""

    index: int
    log_prob: float
    """Nats, at most 0: summed over all its tokens, end-of-sequence included. NaN if the logits were NaN."""


def choose_labels(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Winner]:
    """The candidate with the best of `label_scores` for each prompt, the first of equal ones.

    Exact, by branch and bound. Log-probabilities are at most 0, so (sum over the tokens known so far) / (number of
    tokens) bounds a candidate's score from above. First tokens are known once the prompt is read. The candidate with
    the best bound is read next; that pass also gives the tokens that others share with it, and the token where they
    differ. Candidates whose bound falls below the best complete score are dropped. A confident model needs one to three
    candidates per prompt. Rounds read 1, 2, 4, ... candidates per prompt, so that an unsure model needs few passes.
    Worst case (all candidates equally probable, no common prefixes): every candidate is read, as in `label_scores`, in
    about log2(candidates) more passes. Several processes share the batches out. Arguments and errors are those of
    `label_scores`.
    """
    check_tokens(prompts, candidates)
    winners: dict[int, Winner] = {}
    with greedy_mode(model) as plain:
        for indices in ranks.share(length_batches(prompts, batch_size)):
            read = _ReadPrompts(plain, tokenizer, [prompts[index] for index in indices])
            answers = _with_end(tokenizer, candidates, indices)
            searches = [_Search(own_answers, read.first[row]) for row, own_answers in enumerate(answers)]
            _search_all(read, searches)
            for index, search in zip(indices, searches, strict=True):
                winners[index] = search.winner()
            if on_batch:
                on_batch(len(indices) * ranks.size())
    winners = ranks.joined(winners)
    return [winners[index] for index in range(len(prompts))]


def label_scores(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Mean log-likelihood (nats per token, at most 0) of each prompt's own candidates, in the order given.

    candidates: for each prompt its answers as token ids, without end-of-sequence, which is added here and counts as a
    token. Probabilities are in float32, over the tokenizer's entries. A prompt is read once, however many candidates it
    has. batch_size: prompts read at a time. on_batch: called with the number of prompts scored since its last call.
    Raises DataError for empty prompts, empty candidates and prompts without candidates, ModelError for a model that
    returns no cache.
    """
    check_tokens(prompts, candidates)
    scores: list[list[float]] = [[] for _ in prompts]
    with greedy_mode(model) as plain:
        for indices in length_batches(prompts, batch_size):
            read = _ReadPrompts(plain, tokenizer, [prompts[index] for index in indices])
            batch_scores = _all_scores(read, _with_end(tokenizer, candidates, indices))
            for index, row_scores in zip(indices, batch_scores, strict=True):
                scores[index] = row_scores
            if on_batch:
                on_batch(len(indices))
    return scores


def _with_end(tokenizer: Any, candidates: Sequence[Sequence[Sequence[int]]], indices: list[int]) -> Answers:
    return [[[*ids, tokenizer.eos_token_id] for ids in candidates[index]] for index in indices]


class _ReadPrompts:
    """A batch of prompts after one forward pass: probabilities of the first answer token, and the cache."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompts: list[Sequence[int]]) -> None:
        """Raises ModelError if the model returns no cache."""
        inputs = pad_left(prompts, pad_id_of(tokenizer), device_of(model))
        keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
        output = model(**inputs, use_cache=True, **keep)
        self.cache = cache_of(output)
        if self.cache is None:
            raise ModelError(
                f"{type(model).__name__} returns no key-value cache, which scoring labels needs: use"
                " task.decoding=generate"
            )
        self.model, self.vocabulary, self.mask = model, vocabulary_of(tokenizer), inputs["attention_mask"]
        self.first = output.logits[:, -1, : self.vocabulary].float().log_softmax(-1)
        """[B, V] log-probabilities of an answer's first token."""

    def after(self, rows: list[int], answers: list[list[int]]) -> Tensor:
        """[P, W, V] log-probabilities after each answer's first, second, ... token.

        rows: [P] index in the batch of each answer's prompt. W: number of tokens of the longest answer without its end;
        values after an answer's own end are meaningless.
        """
        width, device = max(map(len, answers)) - 1, self.mask.device
        padding = [width + 1 - len(answer) for answer in answers]
        ids = torch.tensor(
            [answer[:-1] + [0] * pad for answer, pad in zip(answers, padding, strict=True)], device=device
        )
        real = torch.tensor([[1] * (width - pad) + [0] * pad for pad in padding], device=device)
        selected = torch.tensor(rows, device=device)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.cat([self.mask[selected], real], dim=1),
            position_ids=self.mask.sum(1)[selected, None] + torch.arange(width, device=device),
            use_cache=True,
            **with_cache(self.model, _select_rows(self.cache, selected)),
        ).logits
        return logits[..., : self.vocabulary].float().log_softmax(-1)


def _select_rows(cache: Any, rows: Tensor) -> Any:
    """A new cache with these rows, which may repeat; the given one is not changed by passes that use the new one.

    Only the selected rows are copied: layers of transformers' own cache replace their tensors on selection, so a
    shallow copy of the layers (and of the dicts in which recurrent layers keep their states) is enough. Other caches
    are copied whole.
    """
    if type(cache) is DynamicCache:
        selected = copy.copy(cache)
        selected.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in selected.layers:
            vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    else:
        selected = copy.deepcopy(cache)
    selected.reorder_cache(rows)
    return selected


def _chunks(pairs: list[tuple[int, int]], answers: Answers) -> Iterator[list[tuple[int, int]]]:
    """(row, candidate) pairs in chunks for one forward pass each, longest candidates first."""
    pairs = sorted(pairs, key=lambda pair: -len(answers[pair[0]][pair[1]]))
    start = 0
    while start < len(pairs):
        row, candidate = pairs[start]
        positions = len(answers[row][candidate]) - 1
        stop = start + max(1, min(SCORED_ROWS, SCORED_POSITIONS // positions))
        yield pairs[start:stop]
        start = stop


def _all_scores(read: _ReadPrompts, answers: Answers) -> list[list[float]]:
    """Scores of all candidates of a batch. Sums are of Python floats, so that equal terms give equal scores."""
    scores = [[0.0] * len(own_answers) for own_answers in answers]
    pairs = [(row, candidate) for row, own_answers in enumerate(answers) for candidate in range(len(own_answers))]
    for chunk in _chunks(pairs, answers):
        paths = [answers[row][candidate] for row, candidate in chunk]
        after = read.after([row for row, _ in chunk], paths)
        for (row, candidate), path, log_probs in zip(chunk, paths, after, strict=True):
            rest = log_probs[torch.arange(len(path) - 1), path[1:]].tolist()
            scores[row][candidate] = sum(rest, start=float(read.first[row, path[0]])) / len(path)
    return scores


class _Search:
    """The search for one prompt's best candidate: known log-probabilities, and which candidates can still win."""

    def __init__(self, answers: list[list[int]], first: Tensor) -> None:
        """first: [V] log-probabilities of the first token."""
        self.answers, self.best = answers, -math.inf
        self.totals = first[[answer[0] for answer in answers]].tolist()
        self.known = [1] * len(answers)
        """Number of tokens whose log-probability is in the total, or will be once the current pass ends."""

    def bound(self, candidate: int) -> float:
        """Upper bound of a candidate's score; the score itself once all its tokens are known."""
        return self.totals[candidate] / len(self.answers[candidate])

    def can_win(self, candidate: int) -> bool:
        """Whether the score may reach the best one. Negated, so that a NaN bound excludes nothing."""
        return not self.bound(candidate) < self.best - EQUAL

    def is_open(self, candidate: int) -> bool:
        """Whether the candidate can win and has unknown tokens."""
        return self.known[candidate] < len(self.answers[candidate]) and self.can_win(candidate)

    def open(self) -> list[int]:
        """The open candidates, best bound first."""
        return sorted(filter(self.is_open, range(len(self.answers))), key=lambda candidate: -self.bound(candidate))

    def take_tokens(self, candidate: int) -> list[tuple[int, int]]:
        """(candidate, token index) pairs that a pass over this candidate gives; they count as known from now on.

        Its own tokens, and of every other open candidate those up to and including the first that differs.
        """
        path, taken = self.answers[candidate], []
        for other in filter(self.is_open, range(len(self.answers))):
            answer = self.answers[other]
            stop = min(_common_prefix(path, answer) + 1, len(path), len(answer))
            taken += [(other, token) for token in range(self.known[other], stop)]
            self.known[other] = max(self.known[other], stop)
        return taken

    def update_best(self) -> None:
        """Set the best complete score; to be called when the totals hold all known tokens."""
        self.best = max([self.best, *map(self.bound, filter(self._is_complete, range(len(self.answers))))])

    def winner(self) -> Winner:
        """The first complete candidate with the best score."""
        candidates = range(len(self.answers))
        index = next(index for index in candidates if self._is_complete(index) and self.can_win(index))
        return Winner(index, self.totals[index])

    def _is_complete(self, candidate: int) -> bool:
        return self.known[candidate] == len(self.answers[candidate])


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Number of leading tokens that two answers share."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _search_all(read: _ReadPrompts, searches: list[_Search]) -> None:
    """Read candidates until no search has an open one."""
    answers, count = [search.answers for search in searches], 1
    while pairs := [(row, candidate) for row, search in enumerate(searches) for candidate in search.open()[:count]]:
        for chunk in _chunks(pairs, answers):
            _read_candidates(read, searches, chunk)
        count *= 2


def _read_candidates(read: _ReadPrompts, searches: list[_Search], chunk: list[tuple[int, int]]) -> None:
    """One forward pass over the chunk's candidates that are still open, and the totals that it completes."""
    rows, paths, taken = [], [], []
    for row, candidate in chunk:
        # an earlier pass of this round, or an earlier candidate of this chunk, may have closed it
        if searches[row].is_open(candidate):
            taken += [(len(rows), row, other, token) for other, token in searches[row].take_tokens(candidate)]
            rows.append(row)
            paths.append(searches[row].answers[candidate])
    if not rows:
        return
    after = read.after(rows, paths)
    pairs, positions = [pair for pair, *_ in taken], [token - 1 for *_, token in taken]
    ids = [searches[row].answers[other][token] for _, row, other, token in taken]
    for (_, row, other, _), log_prob in zip(taken, after[pairs, positions, ids].tolist(), strict=True):
        searches[row].totals[other] += log_prob
    for row in set(rows):
        searches[row].update_best()
