"""Texts that are almost the same, found in nearly linear time: hashed character shingles, MinHash, buckets of bands.

A text is the set of its runs of a few characters. 64 hashes of that set stand for it; two texts whose hashes agree in
one of 16 bands of 4 become candidates, and candidates are compared by their sets. Texts with a Jaccard index of 0.8
meet in a band with a probability of 1 - (1 - 0.8^4)^16 = 0.9998, texts with one of 0.3 with 0.12.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIKE = 0.8
"""Least share of shingles in common (Jaccard index) of texts that are almost the same."""
HASHES, BANDS = 64, 16
SHORTEST = 12
"""Characters of a text below which one changed word makes another text: shorter ones are compared as wholes only."""
HELD = 8
"""Earlier rows of one bucket that a later row is compared with: a bucket of thousands of equal texts stays linear."""
_CHUNK = 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)


def near_pairs(earlier: Sequence[str], later: Sequence[str]) -> list[tuple[int, int, float]]:
    """(place among `later`, place among `earlier`, Jaccard index) of a text of `earlier` that each of `later` is
    almost.

    Texts are normalised by the caller. At most one pair for each later text. Equal texts count too.
    """
    shingles = [_shingles(text) for text in [*earlier, *later]]
    signatures, first = _signatures(shingles), len(earlier)
    found: dict[int, tuple[int, int, float]] = {}
    for late, early in _candidates(signatures, shingles, first):
        if late in found:
            continue
        if (
            np.count_nonzero(signatures[late] == signatures[early]) < 0.6 * HASHES
        ):  # of 0.8 alike, 38 or more agree in 99.9 %
            continue
        share = _jaccard(shingles[late], shingles[early])
        if share >= ALIKE:
            found[late] = (late - first, early, share)
    return sorted(found.values())


def _shingles(text: str) -> np.ndarray:
    """[n] hashes of the distinct runs of characters: 5 of an alphabet, 3 of Hangul, kana and Han; none for a short
    text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    wide = np.count_nonzero(codes >= 0x2E80) * 2 > len(codes)
    if len(codes) < (SHORTEST // 2 if wide else SHORTEST):
        return np.empty(0, dtype=np.uint64)
    size = 3 if wide else 5
    hashes = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _ODD + codes[place : place + len(hashes)]
    return np.unique(_mixed(hashes))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers in which every bit depends on every other (the finisher of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _signatures(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """[texts, HASHES] smallest value of each hash over a text's shingles; rows of texts without any mean nothing."""
    salts = _mixed(np.arange(1, HASHES + 1, dtype=np.uint64) * _ODD)
    signatures = np.zeros((len(shingles), HASHES), dtype=np.uint64)
    full = [place for place, own in enumerate(shingles) if len(own)]
    while full:
        taken, size = 0, 0
        while taken < len(full) and (size == 0 or size + len(shingles[full[taken]]) <= _CHUNK):
            size += len(shingles[full[taken]])
            taken += 1
        places, full = full[:taken], full[taken:]
        values = np.concatenate([shingles[place] for place in places])
        starts = np.cumsum([0, *(len(shingles[place]) for place in places[:-1])])
        for number, salt in enumerate(salts):
            mixed = (values ^ salt) * _ODD
            signatures[places, number] = np.minimum.reduceat(mixed ^ (mixed >> np.uint64(29)), starts)
    return signatures


def _candidates(signatures: np.ndarray, shingles: Sequence[np.ndarray], first: int) -> list[tuple[int, int]]:
    """Distinct (later, earlier) places, in one numbering, that share a band."""
    width, pairs = HASHES // BANDS, {}
    places = [place for place in range(len(shingles)) if len(shingles[place])]
    for band in range(BANDS):
        part = signatures[:, band * width : (band + 1) * width]
        buckets: dict[bytes, list[int]] = {}
        for place in places:
            bucket = buckets.setdefault(part[place].tobytes(), [])
            if place < first:
                if len(bucket) < HELD:
                    bucket.append(place)
            else:
                pairs.update(dict.fromkeys((place, early) for early in bucket))
    return list(pairs)


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
