"""How far every checkpoint is from the best one and from the student, on a sample of rows: what SCD chooses by.

One student pass over the probe rows, whatever the number of checkpoints. What does not depend on the student, KL(T* ||
T_k), is worked out once and kept for the stages that follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.data.collate import IGNORED, Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.method.divergences import forward_kl, reverse_kl
from tutelage.method.mixed_loss import Targets
from tutelage.method.schedule import Candidate
from tutelage.models.heads import FAITHFUL_NATS, Head, answer_hidden, answer_states, head_error, head_of
from tutelage.teacher.sources import HiddenTargets, TeacherSource

BATCH_ROWS = 16
CHUNK_POSITIONS = 128
"""Answer positions compared at a time: a checkpoint's logits at more of them are never held."""
HELD_BYTES = 1 << 28
"""Most that the student's logits may take; more of them are worked out anew for every checkpoint."""


class _Student:
    """The student's logits at all probe positions, for one checkpoint after another: kept where they are few."""

    def __init__(self, targets: HiddenTargets) -> None:
        positions, vocabulary = len(targets.hidden), len(targets.head.weight)
        self._targets, self._few = targets, 4 * positions * vocabulary <= HELD_BYTES
        self._held: dict[int, Tensor] = {}

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V]."""
        if start not in self._held:
            logits = self._targets.logits(start, stop)
            if not self._few:
                return logits
            self._held[start] = logits
        return self._held[start]


class Probe:
    """The probe rows with the checkpoints that are compared on them."""

    def __init__(
        self,
        items: Sequence[tuple[int, EncodedRow]],
        source: TeacherSource,
        best: str,
        vocabulary: int,
        pad_id: int,
        student_kl: str = "reverse",
    ) -> None:
        """items: (place in the training rows, row). best: name of T*. student_kl: see `Schedule` in recipe/schema.py."""
        longest_first = sorted(items, key=lambda item: -len(item[1].prompt) - len(item[1].answer))
        self._batches = [
            longest_first[start : start + BATCH_ROWS] for start in range(0, len(longest_first), BATCH_ROWS)
        ]
        self._collate, self.source, self.best, self.vocabulary = Collator(pad_id), source, best, vocabulary
        self._far = forward_kl if student_kl == "forward" else reverse_kl
        self._to_best: dict[str, float] | None = None

    @torch.no_grad()
    def compare(self, model: nn.Module) -> list[Candidate]:
        """Every checkpoint with KL(T* || T_k) and the student's distance to it: means over answer positions, in
        nats."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        batches = [
            {name: tensor.to(device) for name, tensor in self._collate(items).items()} for items in self._batches
        ]
        head = head_of(model, self.vocabulary)
        if self._to_best is None:  # the first time
            _check_head(head, *answer_states(model, batches[0]))
        student = _Student(HiddenTargets(torch.cat([answer_hidden(model, batch) for batch in batches]), head))
        best = None if self._to_best else [self._targets(self.best, batch) for batch in batches]
        # One checkpoint after the other: each one's head is loaded once.
        distances = {name: self._distances(name, batches, student, best) for name in self.source.checkpoints}
        model.train(training)
        if best is not None:
            self._to_best = {name: kl for name, (kl, _) in distances.items()}
        return [Candidate(name, self._to_best[name], far) for name, (_, far) in distances.items()]

    def _distances(
        self, name: str, batches: list[dict[str, Tensor]], student: _Student, best: list[Targets] | None
    ) -> tuple[float, float]:
        """KL(T* || T_k), where `best` is given, and the student's distance to T_k."""
        to_best = far = 0.0
        done = 0
        for place, batch in enumerate(batches):
            targets, positions = self._targets(name, batch), int((batch["targets"] != IGNORED).sum())
            for start in range(0, positions, CHUNK_POSITIONS):
                stop = min(start + CHUNK_POSITIONS, positions)
                logits = targets.logits(start, stop)
                far += float(self._far(student.logits(done + start, done + stop), logits).sum())
                if best is not None:
                    to_best += float(forward_kl(logits, best[place].logits(start, stop)).sum())
            done += positions
        return to_best / done, far / done

    def _targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        targets = self.source.targets(checkpoint, batch)
        if targets.top_k(0, 1) is not None:
            raise ModelError(
                "SCD's choice compares full distributions, and this teacher's cache holds top-k entries only (its output head is"
                " no function of one hidden state). Use a schedule that does not look: distill.methods=[cd-aw] or [td-aw]"
            )
        return targets


def _check_head(head: Head, hidden: Tensor, logits: Tensor) -> None:
    if (error := head_error(head, hidden, logits)) > FAITHFUL_NATS:
        raise ModelError(
            f"the student's output head is no function of one hidden state ({error:.2g} nats off), so its distance to a"
            " checkpoint cannot be measured. Use a schedule that does not look: distill.methods=[cd-aw] or [td-aw]"
        )
