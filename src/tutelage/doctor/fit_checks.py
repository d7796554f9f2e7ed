"""Checks of the rows as token ids: do they fit, can answers be written and read back, does the cache fit on the
disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.dataset import Rows
from tutelage.data.encode import Encoder, Misfits, make_encoder
from tutelage.data.token_store import TokenStore, answer_lengths, row_lengths, write_tokens
from tutelage.doctor.checks import Check, argument_line
from tutelage.doctor.row_checks import SPLITS, data_line
from tutelage.errors import DataError, UserError
from tutelage.models.load import longest_context
from tutelage.recipe.schema import Recipe
from tutelage.records import Example
from tutelage.run.checkpoints import list_checkpoints
from tutelage.teacher.build_cache import foretell

MANY_CUT = 0.05
"""Share of the rows above which leaving out or cutting is worth a look."""
FEW_LONG = 0.005
"""Share of the answers that may be longer than what is generated: they cost no score to speak of."""
FEW_STEPS = 10
"""Optimizer steps below which nothing is learned."""
BATCH_SIZE = "per_device_train_batch_size"
DECODED_ROWS = 200
"""Answers that are decoded again."""


@dataclass
class Fitted:
    """The rows as the run would train on them."""

    encoder: Encoder
    stores: dict[str, TokenStore]
    examples: dict[str, list[Example]]
    """Of the rows that fit, in the order of the stores."""
    vocabulary: int
    longest_answer: int
    """Of the training rows, in tokens, end-of-sequence included."""

    @property
    def max_new_tokens(self) -> int:
        """As `prepare` sets it where the recipe does not."""
        return self.longest_answer + self.longest_answer // 2 + 4


def check_fit(
    rows: Rows, recipe: Recipe, tokenizer: Any, vocabulary: int, scratch: Path
) -> tuple[Fitted | None, list[Check]]:
    """Tokenize all rows into `scratch`, and judge their lengths. None where nothing is left to train on."""
    encoder, misfits, kept = make_encoder(recipe.data, tokenizer), Misfits(), {}
    for split in SPLITS:
        kept[split] = []
        write_tokens(scratch / f"{split}.arrow", _noting(encoder, rows.examples[split], misfits, kept[split]))
    stores = {split: TokenStore(scratch / f"{split}.arrow", split) for split in SPLITS}
    checks = [_too_long(encoder, rows, misfits, stores, recipe)]
    if not len(stores["train"]):
        return None, checks
    fitted = Fitted(encoder, stores, kept, vocabulary, int(answer_lengths(stores["train"]).max()))
    more = [_context(fitted, recipe), _answers(fitted, rows, recipe), _decoding(fitted, recipe)]
    more += [_steps(fitted, recipe), _disk(fitted, recipe)]
    return fitted, checks + [check for check in more if check]


def _noting(encoder: Encoder, examples: list[Example], misfits: Misfits, kept: list[Example]) -> Iterator[Any]:
    """The rows that fit, their examples noted in `kept`."""
    for example in examples:
        for row in encoder.fitting([example], misfits):
            kept.append(example)
            yield row


def _too_long(encoder: Encoder, rows: Rows, misfits: Misfits, stores: dict[str, TokenStore], recipe: Recipe) -> Check:
    total, limit = sum(len(rows.examples[split]) for split in SPLITS), encoder.max_length
    longest = max(
        [*(int(row_lengths(store).max(initial=0)) for store in stores.values()), *(p + a for _, p, a in misfits.long)]
    )
    numbers: dict[str, Any] = {"rows": total, "too_long": len(misfits.long), "longest": longest, "max_length": limit}
    try:
        encoder.check(misfits)
    except DataError as error:
        change = f"data.max_length={longest}" if misfits.long else data_line(recipe)
        return Check("lengths", "data", "fail", str(error), numbers, change)
    cut = _cut_prompts(encoder, rows) if encoder.too_long == "truncate_prompt" else len(misfits.long)
    numbers["cut"] = cut
    if cut > MANY_CUT * total:
        what = "lose the start of their prompt" if encoder.too_long == "truncate_prompt" else "are left out"
        text = f"{cut:,} of {total:,} rows are longer than {limit} tokens and {what}: is that meant?"
        return Check(
            "lengths",
            "data",
            "look",
            text,
            numbers,
            f"data.max_length={longest}" if misfits.long else "data.max_length=MORE",
        )
    text = f"every row fits into {limit:,} tokens; the longest has {longest:,}"
    return Check(
        "lengths",
        "data",
        "passed",
        text if not cut else f"{cut:,} of {total:,} rows do not fit ({limit} tokens)",
        numbers,
    )


def _cut_prompts(encoder: Encoder, rows: Rows) -> int:
    misfits = Misfits()
    for split in SPLITS:
        for _ in replace(encoder, too_long="drop").fitting(rows.examples[split], misfits):
            pass
    return len(misfits.long)


def _context(fitted: Fitted, recipe: Recipe) -> Check:
    """Positions of the models, which `prepare` refuses to exceed."""
    longest = max(int(row_lengths(store).max(initial=0)) for store in fitted.stores.values())
    most = {role: longest_context(getattr(recipe, role)) for role in ("teacher", "student")}
    numbers = {"longest": longest, **most}
    short = {role: positions for role, positions in most.items() if positions is not None and positions < longest}
    if short:
        role, positions = min(short.items(), key=lambda item: item[1])
        text = (
            f"the longest row has {longest:,} tokens and the {role} has positions for {positions:,}. Set data.too_long, too:"
            " truncate_prompt or drop"
        )
        return Check("positions", "models", "fail", text, numbers, f"data.max_length={positions}")
    return Check(
        "positions", "models", "passed", f"both models have positions for the longest row, {longest:,} tokens", numbers
    )


def _answers(fitted: Fitted, rows: Rows, recipe: Recipe) -> Check:
    """Whether decoding is allowed as many tokens as gold answers have."""
    lengths = np.concatenate([answer_lengths(store) for store in fitted.stores.values()])
    allowed, longest = recipe.task.max_new_tokens or fitted.max_new_tokens, int(lengths.max())
    numbers = {
        "median": int(np.median(lengths)),
        "p95": int(np.quantile(lengths, 0.95)),
        "longest": longest,
        "allowed": allowed,
    }
    short = int(np.count_nonzero(lengths - 1 > allowed))  # the end-of-sequence token need not be written
    share = short / len(lengths)
    if share > FEW_LONG and recipe.task.decoding == "generate":
        text = f"{short:,} of {len(lengths):,} gold answers are longer than the {allowed} tokens that are generated: never right"
        status = "fail" if share > 0.5 else "look"
        return Check("answer lengths", "data", status, text, numbers, f"task.max_new_tokens={longest + 4}")
    beyond = f" ({short:,} answers are longer)" if short else ""
    text = f"answers have {numbers['median']} tokens (median), at most {longest}; up to {allowed} are generated{beyond}"
    return Check("answer lengths", "data", "passed", text, numbers)


def _decoding(fitted: Fitted, recipe: Recipe) -> Check:
    """Whether the tokenizer can write the answers at all: unknown characters and lower-casing tokenizers cannot."""
    tokenizer, lost, shown, examples = fitted.encoder.tokenizer, 0, [], fitted.examples["train"]
    for example in islice(examples, DECODED_ROWS):
        ids = fitted.encoder.answer(example.answer)[:-1]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if " ".join(text.split()) != " ".join((fitted.encoder.answer_prefix + example.answer).split()):
            lost += 1
            shown.append(f"{example.answer!r} becomes {text.strip()!r}")
    numbers = {"answers": min(DECODED_ROWS, len(examples)), "changed": lost}
    if lost:
        text = (
            f"{lost} of {numbers['answers']} answers change when they are made tokens and text again ({shown[0][:160]}): the"
            " tokenizer has no way to write them, so no model with it can be right"
        )
        return Check("answers as tokens", "models", "look", text, numbers, "teacher.model_name_or_path=ANOTHER_FAMILY")
    return Check(
        "answers as tokens", "models", "passed", "the tokenizer writes answers that read back as they were", numbers
    )


def _steps(fitted: Fitted, recipe: Recipe) -> Check:
    """Whether batches leave optimizer steps to learn by."""
    rows, plan = len(fitted.stores["train"]), recipe.distill
    epochs = {"anchor": plan.num_stages * plan.epochs_per_stage, "stage": plan.epochs_per_stage}
    if recipe.teach.checkpoints is None:
        epochs = {"teach": recipe.trainer_arguments("teach").get("num_train_epochs", 3), **epochs}
    if recipe.anchor.model_name_or_path:
        del epochs["anchor"]
    sections = {"teach": ("teach",), "anchor": ("distill", "anchor"), "stage": ("distill",)}
    arguments = {name: recipe.trainer_arguments(*sections[name]) for name in epochs}
    batches = {
        name: one.get(BATCH_SIZE, 8) * one.get("gradient_accumulation_steps", 1) for name, one in arguments.items()
    }
    steps = {name: math.ceil(epochs[name] * math.ceil(rows / batches[name])) for name in epochs}
    name = min(steps, key=steps.get)
    wanted = int(rows * epochs[name] / FEW_STEPS)
    if steps[name] >= FEW_STEPS or wanted < 1:  # of so few rows another check speaks
        return Check("steps", "models", "passed", ", ".join(f"{key} {count:,}" for key, count in steps.items()), steps)
    key = "gradient_accumulation_steps" if arguments[name].get("gradient_accumulation_steps", 1) > 1 else BATCH_SIZE
    other = batches[name] // arguments[name].get(key, 8)
    text = (
        f"{rows:,} training rows in batches of {batches[name]} make {steps[name]} optimizer steps of"
        f" {'one stage' if name == 'stage' else name}, too few to learn from: make the batch smaller, or train longer"
    )
    line = argument_line(recipe, "distill" if name == "stage" else name, key)
    return Check("steps", "models", "look", text, steps, f"{line}={max(1, wanted // other)}")


def _disk(fitted: Fitted, recipe: Recipe) -> Check | None:
    """What the cache will take; `prepare` refuses where the disk has not got it."""
    try:
        given = recipe.teach.checkpoints
        count = len(list_checkpoints(given, recipe.teacher)) if given else recipe.teach.num_checkpoints
        where = Path(recipe.output_dir)
        text = foretell(fitted.stores["train"], recipe.teacher, count, fitted.vocabulary, recipe.cache.dtype, where)
    except UserError as error:
        if "cache needs" not in str(error):
            return None  # the checkpoints are another check's matter
        return Check("cache size", "budget", "fail", str(error), {}, "output_dir=A_LARGER_DISK/RUN")
    return Check("cache size", "budget", "passed", text.removeprefix("cache: "), {"checkpoints": count})
