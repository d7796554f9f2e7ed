"""Checks of the rows as token ids: do they fit, can answers be written and read back, does the disk hold the cache."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from tutelage.bytes.pair import Pair
from tutelage.bytes.reader import ByteReader
from tutelage.data.dataset import Rows
from tutelage.data.encode import Encoder, Misfits, check_not_emptied
from tutelage.data.token_store import TokenStore, answer_lengths, row_lengths, write_tokens
from tutelage.data.unlabelled import RoomTest, differences, load_fitting, notes_of
from tutelage.doctor.checks import Check, argument_line, failed
from tutelage.doctor.data_checks import MANY_LABELS, data_line
from tutelage.errors import DataError, Kind, ModelError, UserError
from tutelage.models.load import longest_context
from tutelage.recipe.schema import Recipe
from tutelage.recipe.yaml_text import on_one_line
from tutelage.records import SPLITS, Example
from tutelage.run.checkpoints import list_checkpoints
from tutelage.tasks.verbalizers import KEY, LONG, long_labels
from tutelage.teacher.build_cache import predicted_size, predicted_size_of_bytes
from tutelage.utils.spool import Picked

MANY_CUT = 0.05
"""Fraction of rows left out or cut that is worth a look."""
FEW_LONG = 0.005
"""Fraction of answers longer than what is generated that costs hardly any score."""
FEW_STEPS = 10
"""Optimizer steps below which nothing is learned."""
BATCH_SIZE = "per_device_train_batch_size"
PROMPTS = 200
"""Prompts that both tokenizers read."""
DECODED_ROWS = 200
"""Answers that are decoded again."""


@dataclass
class FittingRows:
    """The rows as the run would train on them."""

    encoder: Encoder
    stores: dict[str, TokenStore]
    """By split, in the order of `examples`."""
    examples: Mapping[str, Sequence[Example]]
    """Of the rows that fit."""
    vocabulary: int
    longest_answer: int
    """Of the training rows, in tokens, end-of-sequence included."""
    unlabelled: int = 0
    """Number of rows without gold."""
    own: FittingRows | None = None
    """The same rows as a teacher with its own tokenizer reads them."""
    readers: tuple[ByteReader, ByteReader] | None = None
    """Of the student's and the teacher's tokenizer, if the models are compared byte by byte."""

    def of(self, role: str) -> FittingRows:
        """The rows in the tokens of the teacher or the student."""
        return self.own if role == "teacher" and self.own else self

    @property
    def budget_rows(self) -> int:
        """Rows that `distill.epochs_per_stage` counts."""
        return len(self.stores["train"]) + self.unlabelled

    @property
    def max_new_tokens(self) -> int:
        """What `prepare` sets if the recipe does not."""
        return self.longest_answer + self.longest_answer // 2 + 4

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(int(row_lengths(store).max(initial=0)) for store in self.stores.values())


def check_fit(rows: Rows, recipe: Recipe, pair: Pair, scratch: Path) -> tuple[FittingRows | None, list[Check]]:
    """Tokenize all rows into `scratch`, and check their lengths. None if nothing is left to train on."""
    encoder, misfits = pair.student, Misfits()
    try:
        for split in SPLITS:
            examples = rows.examples[split]
            write_tokens(scratch / f"{split}.arrow", encoder.fitting(examples, misfits, pair.teacher))
            if pair.teacher:
                own = pair.teacher.fitting(examples, Misfits(), encoder)
                write_tokens(scratch / "teacher" / f"{split}.arrow", own)
    except DataError as error:  # a row that the chat template refuses
        return None, [failed("chat_template", "models", error.problems[0], "data.chat_template=false")]
    stores = {split: TokenStore(scratch / f"{split}.arrow", split) for split in SPLITS}
    checks = [_lengths(encoder, rows, misfits, stores, recipe)]
    if not len(stores["train"]):
        return None, checks
    left_out = {*misfits.empty, *(row.id for row in misfits.long)}
    kept = {split: _without(rows.examples[split], left_out) for split in SPLITS}
    fitting = FittingRows(encoder, stores, kept, pair.vocabulary, int(answer_lengths(stores["train"]).max()))
    if pair.over_bytes:
        fitting, more = _over_bytes(fitting, pair, scratch / "teacher")
        if more:
            return None, [*checks, more]
    if recipe.data.has_unlabelled:
        check, count = _unlabelled(rows, recipe, fitting, pair)
        fitting, checks = replace(fitting, unlabelled=count), [*checks, check]
    if pair.unused and not recipe.data.chat_template:  # there the check `chat_template` speaks
        checks.append(_prompt_tokens(fitting, pair))
    checks += [_positions(fitting, recipe), _answer_lengths(fitting, recipe), _answers_as_tokens(fitting)]
    if rows.labels and recipe.task.type != "ner":
        checks.append(_label_tokens(fitting, rows))
    checks += [_steps(fitting, recipe), *_cache_size(fitting, recipe)]
    return fitting, checks


def _over_bytes(fitting: FittingRows, pair: Pair, folder: Path) -> tuple[FittingRows, Check | None]:
    """The rows as both models read them, or the check of a tokenizer that does not spell the training answers."""
    own = None
    if pair.teacher:
        stores = {
            split: TokenStore(folder / f"{split}.arrow", split, store.answer_lengths)
            for split, store in fitting.stores.items()
        }
        longest = int(stores["train"].answer_lengths.max())
        own = FittingRows(pair.teacher, stores, fitting.examples, pair.of_teacher, longest)
    trained = [rows.stores["train"] for rows in (fitting, own or fitting)]
    try:
        readers = pair.readers(fitting.examples["train"], *trained)
    except ModelError as error:
        problem = error.problems[0]
        return fitting, failed("spelling", "models", problem, f"{problem.values.get('role')}.model_name_or_path=...")
    return replace(fitting, own=own, readers=readers), None


def _without(examples: Sequence[Example], ids: set[str]) -> Sequence[Example]:
    """The examples but those with one of the ids."""
    if not ids:
        return examples
    kept = array("q", (index for index, example in enumerate(examples) if example.id not in ids))
    return Picked(examples, np.asarray(kept, dtype=np.int64))


# --- rows without gold ---


def _unlabelled(rows: Rows, recipe: Recipe, fitting: FittingRows, pair: Pair) -> tuple[Check, int]:
    """How many rows without gold are left, and whether they are like those with gold."""
    sides = [fitting, *([fitting.own] if fitting.own else [])]
    longest = [max(recipe.task.max_new_tokens or side.max_new_tokens, side.longest_answer) for side in sides]
    try:
        found = load_fitting(recipe, rows, RoomTest(pair.rooms(recipe.teacher, recipe.student), longest))
    except DataError as error:
        return failed("unlabelled", "data", error.problems[0], "data.unlabelled=MENDED_FILE"), 0
    differ = differences(rows.examples["train"], found.examples)
    details = {"notes": notes_of(found, recipe.data), "differences": differ}
    if differ:
        change = "data.unlabelled=ROWS_OF_THE_SAME_KIND"
        check = Check("unlabelled", "data", "look", Kind.UNLABELLED_DIFFERS, found.counts, change, details=details)
    else:
        check = Check("unlabelled", "data", "passed", numbers=found.counts, details=details)
    return check, len(found.examples)


# --- lengths ---


def _lengths(encoder: Encoder, rows: Rows, misfits: Misfits, stores: dict[str, TokenStore], recipe: Recipe) -> Check:
    total = sum(len(rows.examples[split]) for split in SPLITS)
    fitting = [int(row_lengths(store).max(initial=0)) for store in stores.values()]
    longest = max([*fitting, *(row.prompt + row.answer for row in misfits.long)])
    numbers = {
        "rows": total,
        "too_long": len(misfits.long),
        "longest": longest,
        "max_length": encoder.max_length,
    }
    try:
        encoder.check(misfits)
        check_not_emptied({split: len(store) for split, store in stores.items()}, rows.examples, encoder.max_length)
    except DataError as error:
        problems = tuple(error.groups()[0])
        change = problems[0].change or data_line(recipe)
        return Check("lengths", "data", "fail", error.kind, numbers, change, problems=problems)
    truncates = encoder.too_long == "truncate_prompt"
    cut = _cut_prompts(encoder, rows) if truncates else len(misfits.long)
    numbers["cut"] = cut
    if cut > MANY_CUT * total:
        change = f"data.max_length={longest}" if misfits.long else "data.max_length=MORE"
        details = {"truncates": truncates}
        return Check("lengths", "data", "look", Kind.ROWS_CUT, numbers, change, details=details)
    return Check("lengths", "data", "passed", numbers=numbers)


def _cut_prompts(encoder: Encoder, rows: Rows) -> int:
    misfits = Misfits()
    for split in SPLITS:
        for _ in replace(encoder, too_long="drop").fitting(rows.examples[split], misfits):
            pass
    return len(misfits.long)


def _prompt_tokens(fitting: FittingRows, pair: Pair) -> Check:
    prompts = list(islice(fitting.examples["train"], PROMPTS))
    numbers = {"prompts": len(prompts), "unlike": pair.unlike_teacher(prompts)}
    if not numbers["unlike"]:
        return Check("prompt_tokens", "models", "passed", numbers=numbers)
    change = "student.model_name_or_path=ONE_WITH_THE_TEACHERS_TOKENIZER"
    return Check("prompt_tokens", "models", "look", Kind.PROMPT_TOKENS_DIFFER, numbers, change)


def _positions(fitting: FittingRows, recipe: Recipe) -> Check:
    """Context lengths of the models, which `prepare` refuses to exceed."""
    contexts = {role: longest_context(getattr(recipe, role)) for role in ("teacher", "student")}
    numbers = {"longest": fitting.longest, **contexts}
    short = {role: length for role, length in contexts.items() if length is not None and length < fitting.longest}
    if not short:
        return Check("positions", "models", "passed", numbers=numbers)
    role, length = min(short.items(), key=lambda item: item[1])
    change, details = f"data.max_length={length}", {"role": role, "length": length}
    return Check("positions", "models", "fail", Kind.CONTEXT_TOO_SHORT, numbers, change, details=details)


# --- answers ---


def _answer_lengths(fitting: FittingRows, recipe: Recipe) -> Check:
    """Whether decoding may write as many tokens as gold answers have."""
    lengths = np.concatenate([answer_lengths(store) for store in fitting.stores.values()])
    allowed, longest = recipe.task.max_new_tokens or fitting.max_new_tokens, int(lengths.max())
    numbers = {
        "median": int(np.median(lengths)),
        "p95": int(np.quantile(lengths, 0.95)),
        "longest": longest,
        "allowed": allowed,
    }
    cut_off = int(np.count_nonzero(lengths - 1 > allowed))  # the end-of-sequence token need not be written
    details = {"cut_off": cut_off, "answers": len(lengths)}
    fraction = cut_off / len(lengths)
    if fraction <= FEW_LONG or recipe.task.decoding != "generate":
        return Check("answer_lengths", "data", "passed", numbers=numbers, details=details)
    status, change = "fail" if fraction > 0.5 else "look", f"task.max_new_tokens={longest + 4}"
    return Check("answer_lengths", "data", status, Kind.ANSWERS_CUT_OFF, numbers, change, details=details)


def _answers_as_tokens(fitting: FittingRows) -> Check:
    """Whether the tokenizer can write the answers: with unknown characters or lower-casing it cannot."""
    encoder, changed, examples = fitting.encoder, [], fitting.examples["train"]
    for example in islice(examples, DECODED_ROWS):
        ids = encoder.answer(example.answer)[:-1]
        text = encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text.split() != encoder.answer_text(example.answer).split():
            changed.append((example.answer, text.strip()))
    name, numbers = "answers_as_tokens", {"answers": min(DECODED_ROWS, len(examples)), "changed": len(changed)}
    if not changed:
        return Check(name, "models", "passed", numbers=numbers)
    change, details = "teacher.model_name_or_path=ANOTHER_FAMILY", {"example": changed[0]}
    return Check(name, "models", "look", Kind.ANSWERS_NOT_WRITABLE, numbers, change, details=details)


def _label_tokens(fitting: FittingRows, rows: Rows) -> Check:
    """How many tokens labels take, and short forms for those that take many."""
    encoder, labels = fitting.encoder, rows.labels or []
    given, tokens = encoder.verbalizers.forms, {label: len(encoder.answer(label)) - 1 for label in labels}
    found = long_labels(tokens, given.values())
    numbers = {
        "labels": len(labels),
        "longest": max(tokens.values()),
        "long": len(found.tokens),
        "tokens": found.tokens,
    }
    if not found.tokens:
        return Check("label_tokens", "data", "passed", numbers=numbers)
    forms = {**given, **found.forms}
    change = f"{KEY}={on_one_line(forms)}" if len(forms) <= MANY_LABELS else f"{KEY}={{LABEL: SHORT, ...}}"
    return Check("label_tokens", "data", "look", Kind.LABELS_LONG, numbers, change, details={"least": LONG})


# --- steps and disk ---


def _steps(fitting: FittingRows, recipe: Recipe) -> Check:
    """Whether batches leave enough optimizer steps to learn from."""
    plan, rows = recipe.distill, {"teach": len(fitting.stores["train"])}
    rows |= dict.fromkeys(("anchor", "stage"), fitting.budget_rows)
    epochs = {"anchor": plan.num_stages * plan.epochs_per_stage, "stage": plan.epochs_per_stage}
    if recipe.teach.checkpoints is None:
        epochs = {"teach": recipe.trainer_arguments("teach").get("num_train_epochs", 3), **epochs}
    if recipe.anchor.model_name_or_path:
        del epochs["anchor"]
    sections = {"teach": ("teach",), "anchor": ("distill", "anchor"), "stage": ("distill",)}
    arguments = {name: recipe.trainer_arguments(*sections[name]) for name in epochs}
    batches = {
        name: given.get(BATCH_SIZE, 8) * given.get("gradient_accumulation_steps", 1)
        for name, given in arguments.items()
    }
    steps = {name: math.ceil(epochs[name] * math.ceil(rows[name] / batches[name])) for name in epochs}
    name = min(steps, key=steps.get)
    largest = int(rows[name] * epochs[name] / FEW_STEPS)
    if steps[name] >= FEW_STEPS or largest < 1:  # so few rows fail the check `sizes`
        return Check("steps", "models", "passed", numbers=steps)
    key = "gradient_accumulation_steps" if arguments[name].get("gradient_accumulation_steps", 1) > 1 else BATCH_SIZE
    factor = batches[name] // arguments[name].get(key, 8)
    line = argument_line(recipe, "distill" if name == "stage" else name, key)
    details = {"rows": rows[name], "batch": batches[name], "steps": steps[name], "part": name}
    change = f"{line}={max(1, largest // factor)}"
    return Check("steps", "models", "look", Kind.FEW_STEPS, steps, change, details=details)


def _cache_size(fitting: FittingRows, recipe: Recipe) -> list[Check]:
    """What the cache will take; `prepare` refuses a disk that is too small."""
    given = recipe.teach.checkpoints
    try:
        count = len(list_checkpoints(given, recipe.teacher)) if given else recipe.teach.num_checkpoints
    except ModelError:
        return []  # the check `checkpoints` reports it
    train = fitting.stores["train"]
    where = Path(recipe.output_dir)
    try:
        if fitting.readers:
            size = predicted_size_of_bytes(fitting.readers[0].lengths(train), count, recipe.cache.dtype, where)
        else:
            size = predicted_size(train, recipe.teacher, count, fitting.vocabulary, recipe.cache.dtype, where)
    except UserError as error:
        return [failed("cache_size", "budget", error.problems[0], "output_dir=A_LARGER_DISK/RUN")]
    return [Check("cache_size", "budget", "passed", numbers={"checkpoints": count}, details={"size": size})]
