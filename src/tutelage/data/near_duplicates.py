"""Near-duplicate texts in nearly linear time: hashed character shingles, MinHash, locality-sensitive hashing.

A text is the set of its runs of a few characters. 64 hashes of that set form its signature; two texts whose signatures
agree in one of 16 bands of 4 become candidates, and candidates are compared by their sets. Texts with a Jaccard index
of 0.8 share a band with probability 1 - (1 - 0.8^4)^16 = 0.9998, texts with 0.3 with 0.12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile

import numpy as np

from tutelage.data.contents.sameness import prompt_text
from tutelage.records import Example
from tutelage.utils.spool import Mapped

LEAST_JACCARD = 0.8
"""Least Jaccard index of the shingles of near-duplicates."""
HASHES, BANDS = 64, 16
LEAST_AGREEING = 0.6
"""Fraction of equal hashes below which a candidate is dropped; 99.9 % of pairs with Jaccard index 0.8 have more."""
SHORTEST = 12
"""Characters of a text below which one changed word makes another text: shorter texts are never near-duplicates."""
LARGEST_BUCKET = 8
"""Earlier rows of a bucket that a later row is compared with: a bucket of thousands of equal texts stays linear."""
CHUNK_TEXTS = 2048
"""Texts whose shingles are in memory at a time."""
COMPACTED = 1 << 14
"""Entries that a band may gain before its buckets are cut to their size."""
_CHUNK = 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)


def near_pairs(earlier: Sequence[str], later: Sequence[str]) -> list[tuple[int, int, float]]:
    """(index in `later`, index in `earlier`, Jaccard index) of near-duplicates, at most one for each later text.

    Texts are normalised by the caller. Equal texts count, too. The texts are read some at a time, up to three times;
    memory grows with the shorter of the two sequences, by some 200 bytes a text, and with what is found.
    """
    wanted = None if len(earlier) <= len(later) else _band_keys(later)
    buckets = _Buckets(wanted)
    for start, texts in _chunks(earlier):
        buckets.add(_keys_of(_signatures([_shingles(text) for text in texts])), start)
    pairs = []
    for start, texts in _chunks(later):
        shingles = [_shingles(text) for text in texts]
        signatures = _signatures(shingles)
        candidates = buckets.candidates(_keys_of(signatures))
        for late, early, jaccard in _verified(candidates, shingles, signatures, earlier):
            pairs.append((start + late, early, jaccard))
    return pairs


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(index of the first, some texts in order)."""
    rest, start = iter(texts), 0
    while chunk := list(islice(rest, CHUNK_TEXTS)):
        yield start, chunk
        start += len(chunk)


def _verified(
    candidates: Sequence[list[int]], shingles: Sequence[np.ndarray], signatures: np.ndarray, earlier: Sequence[str]
) -> Iterator[tuple[int, int, float]]:
    """(later, earlier, Jaccard index) of the first candidate of each later text that nearly repeats it.

    candidates: [later texts of a chunk] indices of `earlier`, the likeliest first.
    """
    start = 0
    while start < len(candidates):
        stop, early = start, dict[int, int]()
        while stop < len(candidates) and len(early) < CHUNK_TEXTS:
            for index in candidates[stop]:
                early.setdefault(index, len(early))
            stop += 1
        others = [_shingles(earlier[index]) for index in early]
        other_signatures = _signatures(others)
        for late in range(start, stop):
            for index in candidates[late]:
                place = early[index]
                if np.count_nonzero(signatures[late] == other_signatures[place]) < LEAST_AGREEING * HASHES:
                    continue
                jaccard = _jaccard(shingles[late], others[place])
                if jaccard >= LEAST_JACCARD:
                    yield late, index, jaccard
                    break
        start = stop


def _shingles(text: str) -> np.ndarray:
    """[n] hashes of the distinct runs of 5 characters, of 3 in Hangul, kana and Han; none for a short text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    wide = np.count_nonzero(codes >= 0x2E80) * 2 > len(codes)
    if len(codes) < (SHORTEST // 2 if wide else SHORTEST):
        return np.empty(0, dtype=np.uint64)
    size = 3 if wide else 5
    hashes = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for offset in range(size):
        hashes = hashes * _ODD + codes[offset : offset + len(hashes)]
    return np.unique(_mixed(hashes))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers in which every bit depends on every other (the finisher of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _signatures(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """[texts, HASHES] smallest value of each hash over the shingles of a text; zeros for texts without shingles."""
    salts = _mixed(np.arange(1, HASHES + 1, dtype=np.uint64) * _ODD)
    signatures = np.zeros((len(shingles), HASHES), dtype=np.uint64)
    waiting = [index for index, hashes in enumerate(shingles) if len(hashes)]
    while waiting:
        taken, size = 0, 0
        while taken < len(waiting) and (size == 0 or size + len(shingles[waiting[taken]]) <= _CHUNK):
            size += len(shingles[waiting[taken]])
            taken += 1
        chunk, waiting = waiting[:taken], waiting[taken:]
        values = np.concatenate([shingles[index] for index in chunk])
        starts = np.cumsum([0, *(len(shingles[index]) for index in chunk[:-1])])
        for number, salt in enumerate(salts):
            mixed = (values ^ salt) * _ODD
            signatures[chunk, number] = np.minimum.reduceat(mixed ^ (mixed >> np.uint64(29)), starts)
    return signatures


def _keys_of(signatures: np.ndarray) -> np.ndarray:
    """[texts, BANDS] a number for each band of a signature; 0 for texts without shingles."""
    keys = np.zeros((len(signatures), BANDS), dtype=np.uint64)
    for part in np.moveaxis(signatures.reshape(len(signatures), BANDS, -1), 2, 0):
        keys = _mixed(keys * _ODD + part)
    keys[~signatures.any(axis=1)] = 0
    return keys


def _band_keys(texts: Sequence[str]) -> list[np.ndarray]:
    """[BANDS] the distinct numbers of the texts in each band, ascending."""
    keys = [_keys_of(_signatures([_shingles(text) for text in chunk])) for _, chunk in _chunks(texts)]
    together = np.concatenate(keys) if keys else np.empty((0, BANDS), dtype=np.uint64)
    return [np.unique(together[:, band]) for band in range(BANDS)]


class _Buckets:
    """Indices of texts by band and the number of the band; of each bucket the first `LARGEST_BUCKET`."""

    def __init__(self, wanted: list[np.ndarray] | None) -> None:
        """wanted: [BANDS] ascending numbers, of which there are buckets; None: of all."""
        self.wanted = wanted
        empty = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        self.sorted = [empty] * BANDS
        self.added: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(BANDS)]
        self.sizes = [0] * BANDS

    def add(self, keys: np.ndarray, start: int) -> None:
        """keys: [texts, BANDS]. start: index of the first text, greater than all before."""
        for band in range(BANDS):
            taken = keys[:, band] != 0
            if self.wanted is not None:
                taken &= np.isin(keys[:, band], self.wanted[band], kind="sort")
            indices = np.flatnonzero(taken)
            if len(indices):
                self.added[band].append((keys[indices, band], indices + start))
                self.sizes[band] += len(indices)
            if self.sizes[band] > max(COMPACTED, len(self.sorted[band][0])):
                self._compact(band)

    def _compact(self, band: int) -> None:
        parts = [self.sorted[band], *self.added[band]]
        keys, indices = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        order = np.argsort(keys, kind="stable")
        keys, indices = keys[order], indices[order]
        rank = np.arange(len(keys)) - np.searchsorted(keys, keys)
        first = rank < LARGEST_BUCKET
        self.sorted[band], self.added[band], self.sizes[band] = (keys[first], indices[first]), [], 0

    def candidates(self, keys: np.ndarray) -> list[list[int]]:
        """[texts] indices that share a bucket with a text, each once, by band. keys: [texts, BANDS]."""
        found: list[dict[int, None]] = [{} for _ in keys]
        for band in range(BANDS):
            if self.added[band]:
                self._compact(band)
            known, indices = self.sorted[band]
            first, last = (np.searchsorted(known, keys[:, band], side) for side in ("left", "right"))
            for text in np.flatnonzero((last > first) & (keys[:, band] != 0)).tolist():
                found[text].update(dict.fromkeys(indices[first[text] : last[text]].tolist()))
        return [list(of_text) for of_text in found]


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


# --- texts without what all prompts share ---


Cuts = Mapping[str | None, tuple[int, int]]
"""By language, how many characters all prompts begin and end with."""


def distinct_texts(examples: Sequence[Example]) -> Sequence[str]:
    """The prompts without the words that all prompts of their language begin and end with, made when they are read."""
    cuts = shared_parts(examples)
    return Mapped(examples, lambda _, example: distinct_text(example, cuts))


def distinct_text(example: Example, cuts: Cuts) -> str:
    """The prompt without what all prompts of its language share, see `shared_parts`."""
    text = prompt_text(example.prompt)
    if example.language not in cuts:
        return text
    start, stop = cuts[example.language]
    return text[start : len(text) - stop].strip()


def shared_parts(examples: Sequence[Example]) -> Cuts:
    """How many characters, in whole words, the prompts of each language all begin and end with.

    Languages of which all prompts are equal are left out.
    """
    ends = _ends(examples, lambda example: prompt_text(example.prompt))
    starts = {language: _whole_words(_common_start(pair)) for language, pair in ends.items() if pair[0] != pair[1]}
    ends = _ends(examples, lambda example: prompt_text(example.prompt)[starts.get(example.language, 0) :][::-1])
    # Cut at white space and punctuation: parts of words must not be compared.
    return {language: (start, _whole_words(_common_start(ends[language]))) for language, start in starts.items()}


def _ends(examples: Iterable[Example], text_of: Callable[[Example], str]) -> dict[str | None, tuple[str, str]]:
    """By language, the first and the last of the texts in sorted order."""
    ends: dict[str | None, tuple[str, str]] = {}
    for example in examples:
        text = text_of(example)
        low, high = ends.get(example.language, (text, text))
        ends[example.language] = min(low, text), max(high, text)
    return ends


def _common_start(ends: tuple[str, str]) -> str:
    """The characters that all texts begin with: what the first and the last in sorted order have in common."""
    pairs = zip(*ends, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _whole_words(start: str) -> int:
    """Length of the whole words at the start of a text."""
    return next((len(start) - back for back, letter in enumerate(reversed(start)) if not letter.isalnum()), 0)
