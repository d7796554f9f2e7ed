"""prepare: read, check and freeze the rows, before any model weights are loaded.

Writes prepare/rows.jsonl (every example that is used), prepare/tokens/ (the same as token ids, see `token_store.py`),
prepare/unlabelled.jsonl (rows without gold) and prepare/data.json (label set, vocabulary size, lengths, notes).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tutelage.data.dataset import Rows, load_rows
from tutelage.data.encode import Encoder, Misfits, check_not_emptied, fitting_test, make_encoder
from tutelage.data.token_store import TokenStore, row_lengths, write_tokens
from tutelage.data.unlabelled import UnlabelledRows, differences, load_fitting, notes_of
from tutelage.errors import ConfigError, Kind, ModelError, Problem
from tutelage.models.load import (
    check_lora_targets,
    check_models,
    check_vocabularies,
    device,
    load_tokenizer,
    longest_context,
)
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Recipe
from tutelage.records import SPLITS, Example
from tutelage.run import stage_inputs
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.run_folder import RunFolder
from tutelage.tasks import make_task
from tutelage.teacher.build_cache import predicted_size
from tutelage.teacher.silver_rows import longest_generated
from tutelage.training.trainer import check_arguments
from tutelage.utils.files import discard, write_json, write_jsonl


def run_stage(run: RunFolder) -> None:
    """Do the stage."""
    recipe = run.recipe
    with run.work("prepare", stage_inputs.prepare(run)) as work:
        if work is None:
            return
        fits = fitting_test(recipe.data, lambda: load_tokenizer(recipe.student))
        rows = load_rows(recipe, fits, folder=work.folder, progress=run.screen.progress)
        task = make_task(recipe.task, rows.labels, choice=rows.choice)
        if recipe.task.decoding == "labels" and not task.closed:
            raise ConfigError(Problem(Kind.DECODING_UNSUITABLE, key="task.decoding"))
        _check_trainers(run)
        for model in (recipe.teacher, recipe.student):
            check_lora_targets(model)
        given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else None
        tokenizer = load_tokenizer(recipe.student)
        vocabulary = check_vocabularies(load_tokenizer(recipe.teacher), tokenizer)
        own = recipe.anchor.model_name_or_path
        check_models(recipe.teacher, recipe.student, vocabulary, given or [], Path(own) if own else None)
        encoded, dropped = _tokenize(run, rows.examples, make_encoder(recipe.data, tokenizer), work.folder / "tokens")
        predicted_size(
            encoded["train"],
            recipe.teacher,
            len(given) if given else recipe.teach.num_checkpoints,
            vocabulary,
            recipe.cache.dtype,
            run.folder,
        )
        lengths = {split: _lengths(encoded[split]) for split in SPLITS}
        _check_fit(run, max(entry["longest"] for entry in lengths.values()))
        max_new_tokens = recipe.task.max_new_tokens or longest_generated(lengths["train"]["longest_answer"])
        encoder = make_encoder(recipe.data, tokenizer)
        unlabelled = load_fitting(recipe, rows, encoder, max_new_tokens, folder=work.folder)
        if unlabelled:
            write_jsonl(work.folder / "unlabelled.jsonl", unlabelled.examples)
        bf16, why = bf16_pays(device().type)
        notes = [*rows.notes, *_left_out(recipe, rows, dropped, unlabelled)]
        if not {"bf16", "fp16"} & recipe.trainer.keys():
            notes.append(f"precision: {'bfloat16' if bf16 else 'float32'}, since {why}; trainer.bf16 can say otherwise")
        for note in notes:
            run.screen.say(note)
        counts = ", ".join(f"{lengths[split]['rows']:,} {split}" for split in SPLITS)
        counts += f", {len(unlabelled.examples):,} unlabelled" if unlabelled else ""
        run.screen.say(f"prepare: {counts} rows, longest {max(v['longest'] for v in lengths.values())} tokens")
        left_out, everything = set(dropped), itertools.chain.from_iterable(rows.examples[split] for split in SPLITS)
        write_jsonl(work.folder / "rows.jsonl", (example for example in everything if example.id not in left_out))
        write_json(
            work.folder / "data.json",
            {
                "labels": rows.labels,
                "choice": rows.choice,
                "vocabulary": vocabulary,
                "max_new_tokens": max_new_tokens,
                "lengths": lengths,
                **({"unlabelled": unlabelled.counts} if unlabelled else {}),
                "bf16": bf16,
                "dropped": dropped,
                "decided": rows.decided,
                "notes": notes,
            },
        )


def _left_out(recipe: Recipe, rows: Rows, dropped: Sequence[str], unlabelled: UnlabelledRows | None) -> Iterator[str]:
    """What was left out after the rows were read, and how rows without gold differ, a line each."""
    if dropped:
        yield f"{len(dropped):,} rows are longer than {recipe.data.max_length} tokens and left out: {dropped[:3]} ..."
    if unlabelled:
        yield from notes_of(unlabelled, recipe.data)
        yield from differences(rows.examples["train"], unlabelled.examples)


def _tokenize(
    run: RunFolder, examples: Mapping[str, Sequence[Example]], encoder: Encoder, folder: Path
) -> tuple[dict[str, TokenStore], list[str]]:
    """Write the rows of every split that fit as token ids; ids of those that are left out. Raises DataError as the
    encoder does."""
    misfits = Misfits()
    try:
        with run.screen.progress("tokenize rows", sum(map(len, examples.values()))) as advance:
            for split in SPLITS:
                encoded = encoder.fitting(_counted(examples[split], advance), misfits)
                write_tokens(folder / f"{split}.arrow", encoded)
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


def _check_fit(run: RunFolder, longest: int) -> None:
    """Refuse rows that are longer than a model has positions for."""
    for role in ("teacher", "student"):
        most = longest_context(getattr(run.recipe, role))
        if most is not None and longest > most:
            raise ModelError(
                f"the longest row has {longest:,} tokens and the {role} has positions for {most:,}:"
                f" set data.max_length={most} and data.too_long=truncate_prompt (or drop)"
            )
