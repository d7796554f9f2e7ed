"""prepare: read, check and freeze the rows, before any model weights are loaded.

Writes prepare/rows.jsonl (every example that is used), prepare/tokens/ (the same as token ids, see `token_store.py`),
prepare/unlabelled.jsonl (rows without gold) and prepare/data.json (label set, vocabulary size, lengths, notes).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tutelage.bytes.pair import Pair
from tutelage.data.dataset import Rows, load_rows
from tutelage.data.encode import Misfits, check_not_emptied, fitting_test
from tutelage.data.token_store import TokenStore, row_lengths, write_tokens
from tutelage.data.unlabelled import RoomTest, UnlabelledRows, differences, load_fitting, notes_of
from tutelage.errors import ConfigError, Kind, ModelError, Problem
from tutelage.models.load import (
    check_lora_targets,
    check_models,
    longest_context,
)
from tutelage.models.placement import check_quantizer, device
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Recipe
from tutelage.records import SPLITS, Example
from tutelage.run import stage_inputs
from tutelage.run.artifacts import TeacherTokens
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.run_folder import RunFolder
from tutelage.tasks import make_task
from tutelage.teacher.build_cache import predicted_size, predicted_size_of_bytes
from tutelage.teacher.silver_rows import longest_generated
from tutelage.training.trainer import check_arguments
from tutelage.utils.files import discard, write_json, write_jsonl

DIFFERENT = (
    "teacher and student have different tokenizers: they are compared by the next byte of the answer, and losses of the"
    " teacher are in nats per token of the student"
)

OTHER_PROMPTS = (
    "prompts get other tokens from the teacher's own tokenizer than from the student's, which both models read: if the"
    " teacher was fine-tuned with its own, copy its tokenizer files into the student's folder"
)
PROMPTS = 200
"""Prompts that both tokenizers read."""


def run_stage(run: RunFolder) -> None:
    """Do the stage."""
    recipe = run.recipe
    with run.work("prepare", stage_inputs.prepare(run)) as work:
        if work is None:
            return
        pair_of = cache(lambda: Pair.of(recipe))  # errors of rows come before those of models
        fits = fitting_test(recipe.data, lambda: pair_of().encoders)
        rows = load_rows(recipe, fits, folder=work.folder, progress=run.screen.progress)
        task = make_task(recipe.task, rows.labels, choice=rows.choice)
        if recipe.task.decoding == "labels" and not task.closed:
            raise ConfigError(Problem(Kind.DECODING_UNSUITABLE, key="task.decoding"))
        _check_trainers(run)
        pair = pair_of()
        checkpoints = _check_models(recipe, pair)
        tokens = work.folder / "tokens"
        encoded, dropped = _tokenize(run, rows.examples, pair, tokens)
        if pair.over_bytes:
            _check_bytes(run, rows.examples["train"], set(dropped), pair, tokens, checkpoints)
        else:
            settings = (checkpoints, pair.vocabulary, recipe.cache.dtype, run.folder)
            predicted_size(encoded["train"], recipe.teacher, *settings)
        lengths = {split: _lengths(encoded[split]) for split in SPLITS}
        longest_rows = {"student": max(entry["longest"] for entry in lengths.values())}
        max_new_tokens = recipe.task.max_new_tokens or longest_generated(lengths["train"]["longest_answer"])
        of_teacher = _of_teacher(recipe, pair, tokens)
        longest_rows["teacher"] = of_teacher["longest"] if of_teacher else longest_rows["student"]
        _check_fit(run, longest_rows)
        unlabelled = load_fitting(recipe, rows, _room_test(recipe, pair, tokens), folder=work.folder)
        if unlabelled:
            write_jsonl(work.folder / "unlabelled.jsonl", unlabelled.examples)
        bf16, why = bf16_pays(device().type)
        notes = [*rows.notes, *_left_out(recipe, rows, dropped, unlabelled), *_tokenizers(pair, rows.examples["train"])]
        if not {"bf16", "fp16"} & recipe.trainer.keys():
            notes.append(f"precision: {'bfloat16' if bf16 else 'float32'}, since {why}; trainer.bf16 can say otherwise")
        counts = ", ".join(f"{lengths[split]['rows']:,} {split}" for split in SPLITS)
        counts += f", {len(unlabelled.examples):,} unlabelled" if unlabelled else ""
        for line in (*notes, f"prepare: {counts} rows, longest {longest_rows['student']} tokens"):
            run.screen.say(line)
        left_out, everything = set(dropped), itertools.chain.from_iterable(rows.examples[split] for split in SPLITS)
        write_jsonl(work.folder / "rows.jsonl", (example for example in everything if example.id not in left_out))
        write_json(
            work.folder / "data.json",
            {
                "labels": rows.labels,
                "choice": rows.choice,
                "vocabulary": pair.vocabulary,
                "max_new_tokens": max_new_tokens,
                **({"teacher": of_teacher} if of_teacher else {}),
                "lengths": lengths,
                **({"unlabelled": unlabelled.counts} if unlabelled else {}),
                "bf16": bf16,
                "dropped": dropped,
                "decided": rows.decided,
                "notes": notes,
            },
        )


def _tokenizers(pair: Pair, examples: Sequence[Example]) -> Iterator[str]:
    """What two tokenizers mean for the run."""
    if pair.teacher:
        yield DIFFERENT
    elif unlike := pair.unlike_teacher(list(itertools.islice(examples, PROMPTS))):
        yield f"{unlike} of the first {min(PROMPTS, len(examples))} {OTHER_PROMPTS}"


def _check_models(recipe: Recipe, pair: Pair) -> int:
    """Check both models, the anchor and the checkpoints that the recipe names. Returns how many checkpoints the teacher
    has or will have."""
    for model in (recipe.teacher, recipe.student):
        check_quantizer(model)
        check_lora_targets(model)
    given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else None
    anchor = Path(recipe.anchor.model_name_or_path) if recipe.anchor.model_name_or_path else None
    check_models(recipe.teacher, recipe.student, pair.vocabulary, given or [], anchor, pair.of_teacher)
    return len(given) if given else recipe.teach.num_checkpoints


def _left_out(recipe: Recipe, rows: Rows, dropped: Sequence[str], unlabelled: UnlabelledRows | None) -> Iterator[str]:
    """What was left out after the rows were read, and how rows without gold differ, a line each."""
    if dropped:
        yield f"{len(dropped):,} rows are longer than {recipe.data.max_length} tokens and left out: {dropped[:3]} ..."
    if unlabelled:
        yield from notes_of(unlabelled, recipe.data)
        yield from differences(rows.examples["train"], unlabelled.examples)


def _tokenize(
    run: RunFolder, examples: Mapping[str, Sequence[Example]], pair: Pair, folder: Path
) -> tuple[dict[str, TokenStore], list[str]]:
    """Write the rows of every split that fit as token ids, for a teacher with its own tokenizer in `teacher/`; ids of
    those that are left out. Raises DataError as the encoder does."""
    misfits, encoder = Misfits(), pair.student
    try:
        with run.screen.progress("tokenize rows", sum(map(len, examples.values()))) as advance:
            for split in SPLITS:
                encoded = encoder.fitting(_counted(examples[split], advance), misfits, pair.teacher)
                write_tokens(folder / f"{split}.arrow", encoded)
                if pair.teacher:
                    own = pair.teacher.fitting(examples[split], Misfits(), encoder)
                    write_tokens(folder / "teacher" / f"{split}.arrow", own)
        dropped = encoder.check(misfits)
        stores = {split: TokenStore(folder / f"{split}.arrow", split) for split in SPLITS}
        check_not_emptied({split: len(stores[split]) for split in SPLITS}, examples, encoder.max_length)
    except BaseException:
        discard(folder)  # refused rows leave nothing behind that a corrected recipe would trip over
        raise
    return stores, dropped


def _counted(examples: Iterable[Example], advance: Callable[[int], None]) -> Iterator[Example]:
    for example in examples:
        yield example
        advance(1)


def _check_bytes(
    run: RunFolder, examples: Sequence[Example], left_out: Container[str], pair: Pair, folder: Path, checkpoints: int
) -> None:
    """Refuse tokenizers that do not spell the training answers, and a disk that is too small for the cache."""
    kept = [example for example in examples if example.id not in left_out]
    student, teacher = (
        TokenStore(place / "train.arrow", "train") for place in (folder, folder / "teacher" if pair.teacher else folder)
    )
    reader, _ = pair.readers(kept, student, teacher)
    predicted_size_of_bytes(reader.lengths(student), checkpoints, run.recipe.cache.dtype, run.folder)


def _of_teacher(recipe: Recipe, pair: Pair, folder: Path) -> TeacherTokens | None:
    """What differs for a teacher with its own tokenizer."""
    if pair.teacher is None:
        return None
    stores = [TokenStore(folder / "teacher" / f"{split}.arrow", split) for split in SPLITS]
    return {
        "vocabulary": pair.of_teacher,
        "max_new_tokens": recipe.task.max_new_tokens or longest_generated(int(stores[0].answer_lengths.max(initial=0))),
        "longest": max(int(row_lengths(store).max(initial=0)) for store in stores),
    }


def _room_test(recipe: Recipe, pair: Pair, folder: Path) -> RoomTest:
    """Whether an unlabelled row fits with an answer that is generated, or with a label that is scored."""
    folders = [folder, *([folder / "teacher"] if pair.teacher else [])]
    longest = [int(TokenStore(own / "train.arrow", "train").answer_lengths.max(initial=0)) for own in folders]
    answers = [max(recipe.task.max_new_tokens or longest_generated(tokens), tokens) for tokens in longest]
    return RoomTest(pair.rooms(recipe.teacher, recipe.student), answers)


def _lengths(rows: TokenStore) -> dict[str, int]:
    """Size of a split in rows and tokens."""
    return {
        "rows": len(rows),
        "longest": int(row_lengths(rows).max(initial=0)),
        "longest_answer": int(rows.answer_lengths.max(initial=0)),
    }


def _check_trainers(run: RunFolder) -> None:
    """Build every training's arguments once: transformers checks their values, and should do so before hours of
    work."""
    for sections in (("teach",), ("distill", "anchor"), ("distill",)):
        try:
            check_arguments(run.recipe.trainer_arguments(*sections))
        except ConfigError as error:
            raise ConfigError(f"{sections[-1]}.trainer: {error}") from error


def _check_fit(run: RunFolder, longest_rows: dict[str, int]) -> None:
    """Refuse rows that are longer than a model has positions for. longest_rows: in tokens, by role."""
    for role in ("teacher", "student"):
        most, longest = longest_context(getattr(run.recipe, role)), longest_rows[role]
        if most is not None and longest > most:
            raise ModelError(
                f"the longest row has {longest:,} tokens and the {role} has positions for {most:,}:"
                f" set data.max_length={most} and data.too_long=truncate_prompt (or drop)"
            )
