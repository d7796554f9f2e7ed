"""cache: read every teacher checkpoint once over the training rows and keep what it said.

Writes cache/checkpoint-*/ (see `hidden_store.py`) with sample_loss.jsonl, and the heads beside them, or distributions
over bytes if teacher and student have different tokenizers or the recipe asks for them; for methods that
learn from the teacher's own answers also teacher_answers/, the training rows with T*'s answers in place of gold, which
stays where an answer cannot be learned. Rows without gold are read with T*'s answer; sample_loss.jsonl has those with
gold alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import unit_lengths, write_tokens
from tutelage.errors import ModelError
from tutelage.method.methods import find_method
from tutelage.models.evaluation import loss_records
from tutelage.run import stage_inputs
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.hidden_store import HiddenStore
from tutelage.teacher.silver_rows import SilverAnswer, learned_rows, left_out_counts, silver_answer
from tutelage.training.run_models import RunModels
from tutelage.utils import ranks
from tutelage.utils.files import read_json, write_jsonl


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage, as far as the recipe's methods need it."""
    methods = [find_method(name) for name in run.recipe.distill.methods]
    if any(method.schedule != "none" for method in methods):
        _states(run, models)
        _refuse_top_k(run)
    if any(method.answers == "teacher" for method in methods):
        _answers(run, models)


def _states(run: RunFolder, models: RunModels) -> None:
    recipe = run.recipe
    with run.work("cache", stage_inputs.cache(run)) as work:
        if work is None:
            return
        folders = list(run.checkpoint_folders.values())
        builder = models.taught.cache_builder(work.folder)
        size = builder.predicted_size(recipe.teacher, len(folders))
        run.screen.say(f"cache: {size or 'its size is known once the teacher is here'}")
        rows, gold = builder.rows, models.encoded("train")
        pending = [folder for folder in folders if not (work.folder / folder.name / "store.json").is_file()]
        for folder in pending:
            done = builder.done_before(folder.name)
            with run.screen.progress(f"cache {folder.name}", len(rows), done) as advance:
                model = models.load(recipe.teacher, folder)
                note = builder.build(folder.name, model, {"checkpoint": folder.name}, advance)
                del model  # before the next one is loaded
            if note:
                run.screen.warn(note)
        ranks.once(lambda: _write_losses([work.folder / folder.name for folder in folders], gold, unit_lengths(rows)))


def _write_losses(stores: Sequence[Path], gold: Sequence[EncodedRow], units: np.ndarray | None) -> None:
    """sample_loss.jsonl of every store. gold: the rows with gold, which are the first of each."""
    for store in stores:
        losses = HiddenStore(store).nll(units)
        write_jsonl(store / "sample_loss.jsonl", loss_records(gold, losses[: len(gold)]))


def _refuse_top_k(run: RunFolder) -> None:
    """Raises ModelError, before a student is trained, for methods that need more of the teacher than such a cache
    holds."""
    stores = (read_json(path)["kind"] for path in (run.folder / "cache").glob("*/store.json"))
    if "top_k" not in stores:
        return
    settings = {name: run.varied(name).recipe.distill for name in run.recipe.distill.methods}
    refused = [
        name
        for name, section in settings.items()
        if find_method(name).needs_distributions
        or (find_method(name).schedule != "none" and section.temperature != 1.0)
    ]
    if refused:
        raise ModelError(
            f"{', '.join(refused)} cannot learn from this teacher: its logits are not a function of the final hidden"
            " state alone, so the cache holds top-k entries only. Use a method with forward KL at temperature 1 whose"
            " schedule does not compare checkpoints: td, td-aw, cd, cd-aw, random"
        )


def _answers(run: RunFolder, models: RunModels) -> None:
    """T*'s answers to the training rows: answers.jsonl, and the rows as token ids with those answers."""
    with run.work("teacher_answers", stage_inputs.teacher_answers(run)) as work:
        if work is None:
            return
        teacher, evaluator = models.load(run.recipe.teacher, run.best_teacher), models.taught.evaluator
        asked = models.taught.eval_set("train")
        with run.screen.progress("teacher's answers", len(asked.examples)) as advance:
            answers = evaluator.answers(teacher, asked, advance)
        lines = [
            silver_answer(evaluator, example, answer) for example, answer in zip(asked.examples, answers, strict=True)
        ]
        counts = ranks.once(lambda: _write_answers(models, work.folder, lines))
        if gold := sum(counts.values()):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
            run.screen.say(
                f"teacher's answers: {gold:,} of {len(lines):,} cannot be learned ({reasons}), so gold stays there"
            )


def _write_answers(models: RunModels, folder: Path, lines: Sequence[SilverAnswer]) -> dict[str, int]:
    """Returns how many cannot be learned, by reason."""
    rows = learned_rows(models.rooms[0], models.encoded("train"), lines)
    silver = islice(models.training_rows(), len(lines), None)
    write_tokens(folder / "train.arrow", chain(rows, silver))
    kept = ("id", "raw", "target", "left_out")
    write_jsonl(folder / "answers.jsonl", ({key: line[key] for key in kept if key in line} for line in lines))
    return left_out_counts(lines)
