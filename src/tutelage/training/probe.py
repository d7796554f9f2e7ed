"""The choice of a stage's checkpoint: distances measured on the probe set, then the method's schedule.

The probe set is a seeded sample of training rows, the same in every stage. One student pass over it gives the distances
to all checkpoints. KL(T* || T_k) does not depend on the student; it is computed once and kept for later stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.bytes.alphabet import byte_log_probs
from tutelage.bytes.lookups import Lookups
from tutelage.bytes.loss import ByteTargets
from tutelage.data.collate import IGNORED, Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.method import schedule
from tutelage.method.divergences import forward_kl, reverse_kl
from tutelage.method.mixed_loss import Targets
from tutelage.method.schedule import Candidate
from tutelage.models.forward import evaluating
from tutelage.models.heads import FAITHFUL_NATS, Head, answer_hidden, answer_states, head_error, head_of
from tutelage.models.placement import device_of
from tutelage.run.artifacts import ChoiceRecord, StageRecord
from tutelage.teacher.sources import HiddenTargets, TeacherSource
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.stage_records import choice_record, previous_candidate
from tutelage.utils.files import write_json

BATCH_ROWS = 16
CHUNK_POSITIONS = 128
"""Answer positions compared at a time: no more of a checkpoint's logits are held."""
HELD_BYTES = 1 << 28
"""Largest size of the student's logits that are held; larger ones are recomputed for every checkpoint."""
PROBED_FRACTION = 0.02
"""Size of the probe set relative to what a stage trains on, so that choosing costs at most 2 % of a stage."""
FEWEST_PROBED, MOST_PROBED = 16, 256
"""Bounds of the default size of the probe set."""


class CheckpointChooser:
    """Chooses the checkpoint of each stage of one student."""

    def __init__(self, plan: DistillationPlan, setup: StudentSetup, folder: Path) -> None:
        """folder: where probe.json, the ids of the probe set, is written."""
        self._plan, self._setup, self._folder = plan, setup, folder
        self._probe: Probe | None = None

    def choose(self, stage: int, model: nn.Module, records: Sequence[StageRecord]) -> ChoiceRecord:
        """The choice of a stage for the student as it is now. records: of the stages before."""
        plan, setup = self._plan, self._setup
        method = plan.components
        if method.schedule == "none":
            return {"chosen": None, "candidates": [], "reason": "gold only", "stall": None}
        if not method.compares_student:
            choice = schedule.fixed(
                method.schedule,
                setup.teacher.checkpoints,
                stage=stage,
                num_stages=plan.num_stages,
                best=setup.best,
                seed=plan.seed,
            )
            return choice_record(choice, [])
        with setup.autocast():
            candidates = self._probe_set().compare(model)
        previous = previous_candidate(records)
        state = {"stage": stage, "num_stages": plan.num_stages, "best": setup.best, "previous": previous}
        if callable(method.schedule):
            choice = schedule.by_function(method.schedule, candidates, **state)
        else:
            choice = schedule.nearest(candidates, **state, advance=plan.advance)
        return choice_record(choice, candidates)

    def _probe_set(self) -> Probe:
        """The probe set, drawn at the first use."""
        if self._probe is None:
            plan, setup = self._plan, self._setup
            count = probe_size(plan, len(setup.rows))
            indices = np.sort(np.random.default_rng(plan.seed).permutation(len(setup.rows))[:count])
            items = [(int(index), setup.rows[index]) for index in indices]
            write_json(self._folder / "probe.json", [row.id for _, row in items])
            self._probe = Probe(items, setup.teacher, setup.best, setup.vocabulary, setup.pad_id, plan.student_kl)
        return self._probe


def probe_size(plan: DistillationPlan, rows: int) -> int:
    """Number of rows in the probe set."""
    default = min(MOST_PROBED, max(FEWEST_PROBED, round(PROBED_FRACTION * rows * plan.epochs_per_stage)))
    return min(rows, plan.probe_rows or default)


class _StudentLogits:
    """The student's logits at all probe positions, used for one checkpoint after another; held if they are small."""

    def __init__(self, targets: HiddenTargets) -> None:
        positions, vocabulary = len(targets.hidden), len(targets.head.weight)
        self._targets, self._hold = targets, 4 * positions * vocabulary <= HELD_BYTES
        self._held: dict[int, Tensor] = {}

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, vocabulary]."""
        if start not in self._held:
            logits = self._targets.logits(start, stop)
            if not self._hold:
                return logits
            self._held[start] = logits
        return self._held[start]


class Probe:
    """The probe set with the checkpoints that are compared on it."""

    def __init__(
        self,
        items: Sequence[tuple[int, EncodedRow]],
        source: TeacherSource,
        best: str,
        vocabulary: int,
        pad_id: int,
        student_kl: str = "reverse",
    ) -> None:
        """items: (index among the training rows, row). best: name of T*. student_kl: `reverse` or `forward`, as in the
        recipe."""
        longest_first = sorted(items, key=lambda item: -len(item[1].prompt) - len(item[1].answer))
        starts = range(0, len(longest_first), BATCH_ROWS)
        self._batches = [longest_first[start : start + BATCH_ROWS] for start in starts]
        self._collate, self.source, self.best, self.vocabulary = Collator(pad_id), source, best, vocabulary
        self._distance = forward_kl if student_kl == "forward" else reverse_kl
        self._positions = sum(len(row.answer) for _, row in items)
        self._kl_best: dict[str, float] | None = None
        self._lookups: list[Lookups] = []  # of each batch, where distributions are over bytes

    @torch.no_grad()
    def compare(self, model: nn.Module) -> list[Candidate]:
        """Every checkpoint with KL(T* || T_k) and its distance to the student: means over the student's answer
        positions, in nats; where distributions are over bytes, their sum divided by the number of these positions.

        Raises ModelError where full distributions of the teacher or the student's logits cannot be computed.
        """
        device = device_of(model)
        batches = [
            {name: tensor.to(device) for name, tensor in self._collate(items).items()} for items in self._batches
        ]
        best = None if self._kl_best else [self._targets(self.best, batch) for batch in batches]
        if best is not None:
            self._lookups = [targets.lookups for targets in best if isinstance(targets, ByteTargets)]
        with evaluating(model):
            student = self._bytes_of(model, batches) if self._lookups else self._logits_of(model, batches)
        # One checkpoint after the other, so that the head of each is loaded once.
        distances = {name: self._distances(name, batches, student, best) for name in self.source.checkpoints}
        if best is not None:
            self._kl_best = {name: kl_best for name, (kl_best, _) in distances.items()}
        return [Candidate(name, self._kl_best[name], kl_student) for name, (_, kl_student) in distances.items()]

    def _logits_of(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> _StudentLogits:
        """The student's distributions over tokens."""
        head = head_of(model, self.vocabulary)
        if self._kl_best is None:  # the first time
            _check_head(head, *answer_states(model, batches[0]))
        return _StudentLogits(HiddenTargets(torch.cat([answer_hidden(model, batch) for batch in batches]), head))

    def _bytes_of(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> ByteTargets:
        """The student's distributions over bytes."""
        found = []
        for batch, lookups in zip(batches, self._lookups, strict=True):
            logits = answer_states(model, batch)[1][:, : self.vocabulary]
            found.append(byte_log_probs(logits, lookups))
        return ByteTargets(torch.cat(found), self._lookups[0])

    def _distances(
        self,
        name: str,
        batches: list[dict[str, Tensor]],
        student: _StudentLogits | ByteTargets,
        best: list[Targets] | None,
    ) -> tuple[float, float]:
        """KL(T* || T_k), 0 unless `best` is given, and the distance between student and T_k."""
        kl_best = kl_student = 0.0
        done = 0
        for number, batch in enumerate(batches):
            targets = self._targets(name, batch)
            over_bytes = isinstance(targets, ByteTargets)
            positions = len(targets.log_probs) if over_bytes else int((batch["targets"] != IGNORED).sum())
            for start in range(0, positions, CHUNK_POSITIONS):
                stop = min(start + CHUNK_POSITIONS, positions)
                logits = targets.logits(start, stop)
                kl_student += float(self._distance(student.logits(done + start, done + stop), logits).sum())
                if best is not None:
                    kl_best += float(forward_kl(logits, best[number].logits(start, stop)).sum())
            done += positions
        return kl_best / self._positions, kl_student / self._positions

    def _targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        targets = self.source.targets(checkpoint, batch)
        if targets.top_k(0, 1) is not None:
            raise ModelError(
                "SCD compares full distributions, and this teacher's cache holds top-k entries only, because its logits"
                " are not a function of the final hidden state alone. Use a schedule that does not compare:"
                " distill.methods=[cd-aw] or [td-aw]"
            )
        return targets


def _check_head(head: Head, hidden: Tensor, logits: Tensor) -> None:
    if (error := head_error(head, hidden, logits)) > FAITHFUL_NATS:
        raise ModelError(
            f"the student's logits are not a function of its final hidden state alone ({error:.2g} nats off), so its KL"
            " to a checkpoint cannot be measured. Use a schedule that does not compare: distill.methods=[cd-aw] or"
            " [td-aw]"
        )
