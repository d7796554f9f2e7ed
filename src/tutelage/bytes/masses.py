"""Probabilities of token ranges, from logits: one pass over a chunk of positions forward, another backward.

Sums run over probabilities, never over their differences. A cumulative sum over the vocabulary would need fewer
operations, but knows a range to 1e-16 of the whole, not of itself, and gradients divide by it: over 49,152 random
logits ranges of 1e-12 are off by up to 1e-4 in float64, ranges of 1e-4 by up to 5e-3 in float32. Exponentials are taken
in float32, sums in float64.

Shapes: N positions, V token ids, K of them that spell something, R look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.bytes.lookups import WIDE, Lookups
from tutelage.bytes.vocabulary import ALPHABET, END

EMPTY = -1e4
"""Stands for the logarithm of 0, where no token spells a byte: finite, so that no difference is NaN."""
UNIT = 2.0**86
"""Probabilities are held in float32 as multiples of the largest one's 2^-86: down to e^-147 of it."""
CHUNK_BYTES = 1 << 24
"""Size of a chunk's float32 logits on a CPU."""
GPU_CHUNK_BYTES = 1 << 26
"""The same on other devices."""


class RangeMasses(torch.autograd.Function):
    """(logits [N, V], look-ups) -> natural logarithms of the masses of the look-ups' children [R, 257] and of the
    answer's own tokens [N], both float64. Keeps nothing for the backward pass but the logits and the result."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, lookups: Lookups) -> tuple[Tensor, Tensor]:
        """`EMPTY` where no token goes on with a byte; an answer's end has no token of its own, and 0."""
        parts = list(chunks(lookups, logits.device, logits.shape[1]))
        pieces = [part.masses(logits[part.positions]) for part in parts]
        masses, exact = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        ctx.parts = parts
        ctx.save_for_backward(logits, masses, exact)
        return masses, exact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_masses: Tensor, of_exact: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits, [N, V]."""
        logits, masses, exact = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for part in ctx.parts:
            at, of = part.positions, part.lookups
            grad[at] = part.gradient(logits[at], masses[of], exact[at], of_masses[of], of_exact[at])
        return grad, None


def chunks(lookups: Lookups, device: torch.device, width: int) -> Iterator[Chunk]:
    """The positions of a batch in chunks. width: entries of a position's logits."""
    size = max(1, (CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES) // (4 * width))
    for start in range(0, lookups.positions, size):
        yield Chunk(lookups, start, min(start + size, lookups.positions), device)


class _Segments(NamedTuple):
    """Ranges of the sorted vocabulary at single positions, laid end to end."""

    tokens: Tensor
    """[T] indices into the chunk's sorted probabilities, flattened."""
    sizes: Tensor
    """[S] tokens in each range."""
    targets: Tensor
    """[S] where the range's mass belongs, flattened."""

    def sums(self, values: Tensor) -> Tensor:
        """[S] sums in float64. values: [n, K]."""
        if not len(self.sizes):
            return values.new_zeros(0, dtype=torch.float64)
        return torch.segment_reduce(values.view(-1)[self.tokens].double(), "sum", lengths=self.sizes, unsafe=True)


class _Wide(NamedTuple):
    """A prefix with many tokens, and the look-ups of a chunk that have it."""

    lookups: Tensor
    """[m] indices within the chunk."""
    positions: Tensor
    """[m] their positions within the chunk."""
    tokens: slice
    sizes: Tensor
    """[C] tokens of each child."""
    bytes: Tensor
    """[C]."""

    def sums(self, values: Tensor) -> Tensor:
        """[m, C] sums in float64. values: [n, K]."""
        of_prefix = (
            values[:, self.tokens] if len(self.positions) == len(values) else values[self.positions, self.tokens]
        )
        sizes = self.sizes.expand(len(of_prefix), -1).contiguous()
        return torch.segment_reduce(of_prefix.double().contiguous(), "sum", lengths=sizes, axis=1, unsafe=True)


class Chunk:
    """Some positions of a batch, with their look-ups on a device."""

    def __init__(self, lookups: Lookups, start: int, stop: int, device: torch.device) -> None:
        """Positions start to stop."""
        first, last = np.searchsorted(lookups.position, [start, stop])
        self.positions, self.lookups = slice(start, stop), slice(int(first), int(last))
        position = lookups.position[first:last] - start
        children = lookups.children[first:last]
        width = len(lookups.vocabulary.order)
        self._end = lookups.vocabulary.end
        self._order = torch.from_numpy(lookups.vocabulary.order).to(device)
        self._position = torch.from_numpy(position).to(device)
        self._counts = torch.from_numpy(np.bincount(position, minlength=stop - start)).to(device)
        self._empty = torch.from_numpy(np.flatnonzero(lookups.empty[first:last])).to(device)

        wide: dict[int, list[int]] = {}
        narrow: list[int] = []
        for index, found in enumerate(children):
            if found.stop - found.start >= WIDE:
                wide.setdefault(id(found), []).append(index)
            else:
                narrow.append(index)
        self._wide = []
        for indices in wide.values():
            found, at = children[indices[0]], torch.tensor(indices, device=device)
            sizes, following = (torch.from_numpy(array).to(device) for array in (found.sizes, found.bytes))
            self._wide.append(_Wide(at, self._position[at], slice(found.start, found.stop), sizes, following))

        chosen = [children[index] for index in narrow]
        starts = np.array([found.start for found in chosen], np.int64) + position[narrow] * width
        targets = [index * ALPHABET + found.bytes for index, found in zip(narrow, chosen, strict=True)]
        self._narrow = _segments(starts, [found.sizes for found in chosen], targets, device)

        exact = lookups.exact[start:stop]
        own = np.flatnonzero(exact[:, 1] > exact[:, 0])
        sizes = (exact[own, 1] - exact[own, 0])[:, None]
        self._exact = _segments(exact[own, 0] + own * width, list(sizes), list(own[:, None]), device)

    def masses(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What `RangeMasses` returns, for this chunk's logits [n, V]."""
        values, ordered, total = self._probabilities(logits)
        masses = values.new_zeros((len(self._position), ALPHABET), dtype=torch.float64)
        for wide in self._wide:
            masses[wide.lookups[:, None], wide.bytes] = wide.sums(ordered)
        masses.view(-1)[self._narrow.targets] = self._narrow.sums(ordered)
        masses[self._empty, END] = values[self._position[self._empty], self._end].double()
        exact = torch.zeros_like(total)
        exact[self._exact.targets] = self._exact.sums(ordered)
        tiny = torch.finfo(torch.float64).tiny
        own = torch.zeros_like(total).index_fill_(0, self._exact.targets, 1.0).bool()
        log_exact = torch.where(own, exact.clamp_min(tiny).log() - total.log(), 0.0)
        return torch.where(masses > 0, masses.log() - total.log()[self._position, None], EMPTY), log_exact

    def gradient(self, logits: Tensor, masses: Tensor, exact: Tensor, of_masses: Tensor, of_exact: Tensor) -> Tensor:
        """Gradient [n, V] of the logits. masses, exact: as `masses` returned them. of_masses, of_exact: their
        gradients.

        With p = softmax(logits) and a range of mass M, d log M / d logit_v = p_v ([v in range] / M - 1).
        """
        values, ordered, total = self._probabilities(logits)
        counted = masses > EMPTY / 2
        of_masses = torch.where(counted, of_masses, 0.0)
        of_exact = of_exact.index_fill(0, self._at_end(of_exact), 0.0)
        # [R, 257] and [n]: by how much a unit of a token's probability, in the units of `values`, changes the loss
        slope = of_masses * torch.where(counted, -masses - total.log()[self._position, None], 0.0).exp()
        of_ordered = torch.zeros_like(ordered)
        for wide in self._wide:
            spread = slope[wide.lookups[:, None], wide.bytes].repeat_interleave(wide.sizes, 1)
            of_ordered[wide.positions, wide.tokens] += spread.mul_(ordered[wide.positions, wide.tokens]).float()
        for segments, slopes in (
            (self._narrow, slope.view(-1)),
            (self._exact, of_exact * (-exact - total.log()).exp()),
        ):
            spread = slopes[segments.targets].repeat_interleave(segments.sizes)
            spread = (spread * ordered.view(-1)[segments.tokens]).float()
            of_ordered.view(-1).index_put_((segments.tokens,), spread, accumulate=True)
        everything = torch.segment_reduce(of_masses.sum(1), "sum", lengths=self._counts, unsafe=True) + of_exact
        grad = values * (-everything / total)[:, None].float()
        grad[:, self._order] += of_ordered
        at_end = self._position[self._empty]
        grad[at_end, self._end] += of_masses[self._empty, END].float()
        return grad.to(logits.dtype)

    def _at_end(self, like: Tensor) -> Tensor:
        """Indices of the positions without a token of their own."""
        own = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        return (~own.index_fill_(0, self._exact.targets, True)).nonzero()[:, 0]

    def _probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities in units of their own: [n, V], those of the sorted tokens [n, K], and float64 sums [n]."""
        logits = logits.float()
        root = (logits - logits.max(-1, keepdim=True).values).mul_(0.5).exp_()
        values = (root * UNIT).mul_(root)  # exp(x + log UNIT) would round x first
        return values, values[:, self._order], values.sum(-1, dtype=torch.float64)


def _segments(
    starts: np.ndarray, sizes: list[np.ndarray], targets: list[np.ndarray], device: torch.device
) -> _Segments:
    """Runs of ranges. starts: [P] first token of each run. sizes, targets: [P] the sizes of its ranges, which follow
    each other, and where their masses belong."""
    none = np.zeros(0, np.int64)
    lengths = np.array([size.sum() for size in sizes], np.int64)
    ends = lengths.cumsum()
    tokens = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
    arrays = tokens, np.concatenate([none, *sizes]), np.concatenate([none, *targets])
    return _Segments(*(torch.from_numpy(array).to(device) for array in arrays))
