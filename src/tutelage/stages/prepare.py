"""prepare: read, check and freeze the rows, before any model weights are loaded.

Writes prepare/rows.jsonl (every example that is used) and prepare/data.json (label set, vocabulary size, lengths, notes).
"""

from __future__ import annotations

from tutelage import lineage
from tutelage.artifacts import write_json
from tutelage.caching import foretell
from tutelage.data import EncodedRow
from tutelage.errors import ConfigError, ModelError
from tutelage.models import check_vocabularies, list_checkpoints, load_tokenizer, longest_context
from tutelage.records import SPLITS, write_jsonl
from tutelage.rows import load_rows
from tutelage.tasks import make_task
from tutelage.trainer import training_arguments
from tutelage.workspace import Workspace, make_encoder


def run(space: Workspace) -> None:
    """Do the stage."""
    recipe = space.recipe
    with space.work("prepare", lineage.prepare(space)) as work:
        if work is None:
            return
        rows = load_rows(recipe)
        task = make_task(recipe.task, rows.labels, choice=rows.choice)
        if recipe.task.decoding == "labels" and not task.closed:
            raise ConfigError("task.decoding: labels needs closed answers, and these rows have free text: write generate")
        _check_trainers(space)
        given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else None
        tokenizer = load_tokenizer(recipe.student)
        vocabulary = check_vocabularies(load_tokenizer(recipe.teacher), tokenizer)
        encoder = make_encoder(recipe, tokenizer)
        examples = [example for split in SPLITS for example in rows.examples[split]]
        encoded, dropped = encoder.rows(examples)
        left = {row.id for row in encoded}
        kept = [example for example in examples if example.id in left]
        train = [row for row in encoded if row.split == "train"]
        foretell(
            train,
            recipe.teacher,
            len(given) if given else recipe.teach.num_checkpoints,
            vocabulary,
            recipe.cache.dtype,
            space.folder,
        )
        lengths = {split: _lengths([row for row in encoded if row.split == split]) for split in SPLITS}
        notes = list(rows.notes)
        if dropped:
            notes.append(f"{len(dropped):,} rows are longer than {recipe.data.max_length} tokens and left out: {dropped[:3]} ...")
        _check_fit(space, max(entry["longest"] for entry in lengths.values()))
        longest = max(lengths["train"]["longest_answer"], 1)
        for note in notes:
            space.screen.say(note)
        counts = ", ".join(f"{lengths[split]['rows']:,} {split}" for split in SPLITS)
        space.screen.say(f"prepare: {counts} rows, longest {max(v['longest'] for v in lengths.values())} tokens")
        write_jsonl(work.folder / "rows.jsonl", kept)
        write_json(
            work.folder / "data.json",
            {
                "labels": rows.labels,
                "choice": rows.choice,
                "vocabulary": vocabulary,
                "max_new_tokens": recipe.task.max_new_tokens or longest + longest // 2 + 4,
                "lengths": lengths,
                "dropped": dropped,
                "notes": notes,
            },
        )


def _lengths(rows: list[EncodedRow]) -> dict[str, int]:
    """Size of a split in rows and tokens."""
    return {
        "rows": len(rows),
        "longest": max((len(row.prompt) + len(row.answer) for row in rows), default=0),
        "longest_answer": max((len(row.answer) for row in rows), default=0),
    }


def _check_trainers(space: Workspace) -> None:
    """Build every training's arguments once: transformers checks their values, and should do so before hours of work."""
    for sections in (("teach",), ("distill", "anchor"), ("distill",)):
        try:
            training_arguments(space.folder, space.recipe.trainer_arguments(*sections), seed=0)
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"{sections[-1]}.trainer: transformers refuses these arguments: {error}") from error


def _check_fit(space: Workspace, longest: int) -> None:
    """Refuse rows that are longer than a model has positions for."""
    for role in ("teacher", "student"):
        most = longest_context(getattr(space.recipe, role))
        if most is not None and longest > most:
            raise ModelError(
                f"the longest row has {longest:,} tokens and the {role} has positions for {most:,}:"
                f" set data.max_length={most} and data.too_long=truncate_prompt (or drop)"
            )
