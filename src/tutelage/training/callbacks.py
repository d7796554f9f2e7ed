"""Callbacks of the trainer: resume checkpoints, the log in JSON lines, progress, and TAID's interpolation.

A resume checkpoint counts only if it was written completely. `SaveAt` marks it with the file WHOLE after everything
else in it, and after their checksums are recorded; a half-written one is ignored, a damaged one is refused.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from tutelage.method.taid import Interpolation
from tutelage.utils import ranks
from tutelage.utils.files import read_json, sync_tree, write_json, write_text
from tutelage.utils.integrity import reading
from tutelage.utils.progress import note

WHOLE = "whole"
"""File in a complete resume checkpoint; it holds the seconds of training up to there."""


def checkpoint_folder(args: Any, step: int) -> Path:
    """Where transformers saves after this optimizer step."""
    return Path(args.output_dir) / f"checkpoint-{step}"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete resume checkpoint in a training folder, or None."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(re.search(r"\d+$", path.name)[0]), default=None)


def seconds_before(folder: Path) -> float:
    """Seconds of training up to the resume checkpoint that a run in this folder continues from; 0 without one."""
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return 0.0
    with reading(checkpoint / WHOLE, ValueError):
        return float((checkpoint / WHOLE).read_text(encoding="utf-8") or 0)


class SaveAt(TrainerCallback):
    """Saves after chosen optimizer steps, and marks each saved folder as complete."""

    def __init__(self, steps: Sequence[int], began: float | None = None) -> None:
        """steps: after which to save, counted from 1. began: `time.monotonic()` at the start, less the seconds trained
        before an interruption; default: now."""
        self.steps, self.began = set(steps), time.monotonic() if began is None else began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint after these steps."""
        control.should_save = state.global_step in self.steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint: the disk has everything in it, from all processes."""
        ranks.once(lambda: self._mark(checkpoint_folder(args, state.global_step)))

    def _mark(self, folder: Path) -> None:
        seconds = time.monotonic() - self.began
        sync_tree(folder)
        note(folder, folder)
        write_text(folder / WHOLE, f"{seconds:.3f}")


class JsonLog(TrainerCallback):
    """Appends every log record to a JSON-lines file."""

    def __init__(self, path: Path, **fixed: Any) -> None:
        """fixed: keys added to every record (stage, checkpoint)."""
        self.path, self.fixed = path, fixed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the records that an interrupted run wrote after its resume checkpoint; they are logged again."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        with reading(self.path, ValueError, KeyError, TypeError):
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and not self._is_later(json.loads(line), state)]
        write_text(self.path, "".join(kept))

    def _is_later(self, record: dict[str, Any], state: Any) -> bool:
        return self.fixed.items() <= record.items() and record["step"] > state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write one line per record."""
        if logs and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.fixed, "step": state.global_step, **logs}) + "\n")


class OnStep(TrainerCallback):
    """Reports (steps done, total steps) at the start and after every optimizer step: for progress bars."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        """report: called with (steps done, total steps)."""
        self.report = report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the start; a resumed run starts at its resume checkpoint."""
        self.report(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more step is done."""
        self.report(state.global_step, state.max_steps)


class Interpolate(TrainerCallback):
    """TAID: updates t after every optimizer step, and saves it in every resume checkpoint."""

    NAME = "taid.json"

    def __init__(self, interpolation: Interpolation, *, steps: int, done: int = 0) -> None:
        """steps: of all stages together. done: steps of the stages before this one."""
        self.interpolation, self.steps, self.done = interpolation, steps, done
        self._terms: list[Tensor] = []

    def observe(self, terms: Tensor) -> None:
        """terms: sums of cross-entropy and divergence over the rows of a batch of all processes, and their number."""
        self._terms.append(terms.detach())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run continues with the saved t."""
        saved = checkpoint_folder(args, state.global_step) / self.NAME
        if state.global_step and saved.is_file():
            self.interpolation = Interpolation(**read_json(saved))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update t from the divergence of this step."""
        _, divergence, rows = torch.stack(self._terms).sum(0).tolist()
        self.interpolation.update(divergence / rows, self.done + state.global_step, self.steps)
        self._terms.clear()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save t beside the other files of the resume checkpoint."""
        if not state.is_world_process_zero:
            return
        saved = checkpoint_folder(args, state.global_step) / self.NAME
        write_json(saved, self.interpolation.state())
