"""Near-duplicate texts in nearly linear time: hashed character shingles, MinHash, locality-sensitive hashing.

A text is the set of its runs of a few characters. 64 hashes of that set form its signature; two texts whose signatures
agree in one of 16 bands of 4 become candidates, and candidates are compared by their sets. Texts with a Jaccard index
of 0.8 share a band with probability 1 - (1 - 0.8^4)^16 = 0.9998, texts with 0.3 with 0.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from tutelage.data.splits import prompt_text
from tutelage.records import Example

LEAST_JACCARD = 0.8
"""Least Jaccard index of the shingles of near-duplicates."""
HASHES, BANDS = 64, 16
LEAST_AGREEING = 0.6
"""Fraction of equal hashes below which a candidate is dropped; 99.9 % of pairs with Jaccard index 0.8 have more."""
SHORTEST = 12
"""Characters of a text below which one changed word makes another text: shorter texts are never near-duplicates."""
LARGEST_BUCKET = 8
"""Earlier rows of a bucket that a later row is compared with: a bucket of thousands of equal texts stays linear."""
_CHUNK = 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)


def near_pairs(earlier: Sequence[str], later: Sequence[str]) -> list[tuple[int, int, float]]:
    """(index in `later`, index in `earlier`, Jaccard index) of near-duplicates, at most one for each later text.

    Texts are normalised by the caller. Equal texts count, too.
    """
    shingles = [_shingles(text) for text in [*earlier, *later]]
    signatures, first = _signatures(shingles), len(earlier)
    pairs: dict[int, tuple[int, int, float]] = {}
    for late, early in _candidates(signatures, shingles, first):
        if late in pairs:
            continue
        if np.count_nonzero(signatures[late] == signatures[early]) < LEAST_AGREEING * HASHES:
            continue
        jaccard = _jaccard(shingles[late], shingles[early])
        if jaccard >= LEAST_JACCARD:
            pairs[late] = (late - first, early, jaccard)
    return sorted(pairs.values())


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


def _candidates(signatures: np.ndarray, shingles: Sequence[np.ndarray], first: int) -> list[tuple[int, int]]:
    """Distinct (later, earlier) indices of texts that share a band. first: index of the first later text."""
    width, pairs = HASHES // BANDS, {}
    indices = [index for index in range(len(shingles)) if len(shingles[index])]
    for band in range(BANDS):
        part = signatures[:, band * width : (band + 1) * width]
        buckets: dict[bytes, list[int]] = {}
        for index in indices:
            bucket = buckets.setdefault(part[index].tobytes(), [])
            if index < first:
                if len(bucket) < LARGEST_BUCKET:
                    bucket.append(index)
            else:
                pairs.update(dict.fromkeys((index, early) for early in bucket))
    return list(pairs)


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


# --- texts without what all prompts share ---


def distinct_texts(examples: Sequence[Example]) -> list[str]:
    """The prompts without the words that all prompts of their language begin and end with."""
    texts = [prompt_text(example.prompt) for example in examples]
    groups: dict[str | None, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.language, []).append(index)
    for indices in groups.values():
        distinct = {texts[index] for index in indices}
        if len(distinct) < 2:
            continue
        # Cut at white space and punctuation: parts of words must not be compared.
        start = _whole_words(_common_start(distinct))
        stop = _whole_words(_common_start({text[start:][::-1] for text in distinct}))
        for index in indices:
            texts[index] = texts[index][start : len(texts[index]) - stop].strip()
    return texts


def _common_start(texts: set[str]) -> str:
    """The characters that all texts begin with: what the first and the last in sorted order have in common."""
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _whole_words(start: str) -> int:
    """Length of the whole words at the start of a text."""
    return next((len(start) - back for back, letter in enumerate(reversed(start)) if not letter.isalnum()), 0)
