"""The distribution over the next byte as one would write it down: a dictionary of prefixes, one byte after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

END = 256


def tokens_by_prefix(spelled: Sequence[bytes]) -> dict[bytes, list[int]]:
    """The tokens that begin with each prefix of any token."""
    prefixes = defaultdict(list)
    for token, word in enumerate(spelled):
        for length in range(1, len(word) + 1):
            prefixes[word[:length]].append(token)
    return prefixes


def byte_distributions(
    probabilities: Tensor,
    answer: Sequence[int],
    spelled: Sequence[bytes],
    prefixes: dict[bytes, list[int]],
    longer: bool = True,
) -> Tensor:
    """[bytes + 1, 257] probabilities of the next byte of an answer and of its end.

    probabilities: [tokens, ids]. answer: token ids, the last is end-of-sequence. prefixes: as `tokens_by_prefix`.
    longer: whether tokens that spell on past the end of the answer's own token count.
    """
    text = b"".join(spelled[token] for token in answer[:-1])
    masses = probabilities.new_zeros(len(text) + 1, END + 1)
    start, reach = 0, 1.0
    for chances, own in zip(probabilities, (spelled[token] for token in answer), strict=True):
        entries = [(start, END, answer[-1])]  # of masses, and a token that counts there
        for byte in range(start, len(text) + 1 if longer else start + max(len(own), 1)):
            if byte > start and text[start:byte] not in prefixes:
                break
            for following in range(256):
                words = prefixes.get(text[start:byte] + bytes([following]), ())
                entries += [(byte, following, token) for token in words]
        bytes_, following, tokens = torch.tensor(entries).T
        masses = masses.index_put((bytes_, following), reach * chances[tokens], accumulate=True)
        same = [token for token, word in enumerate(spelled) if word == own]
        reach = reach * chances[same].sum() if longer else 1.0
        start += len(own)
    return masses / masses.sum(-1, keepdim=True)
