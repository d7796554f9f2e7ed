"""The texts of all checks, for showing only: nothing reads them back. Here those of rows and models.

A text is made from the numbers and details of a check; that of a failed step from its problems (errors/wording.py).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tutelage.doctor.texts import wording_results
from tutelage.doctor.texts.wording_results import in_bytes
from tutelage.errors import Kind, Problem
from tutelage.errors.wording import SHOWN, SPLIT_WORDS, Text, Values, group_text
from tutelage.records import SPLITS
from tutelage.utils.format import counted

STATUS_WORDS = {"passed": "passed", "skipped": "skipped", "look": "look", "fail": "will fail"}


def text_of(name: str, kind: Kind, values: Values, problems: Sequence[Problem]) -> str:
    """What a check found. values: its numbers, details and `change`."""
    if problems:
        return group_text(problems)
    text: Text = PASSED[name] if kind == Kind.OK else TEXTS[kind]
    return text.format(**values) if isinstance(text, str) else text(values)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# --- data ---


def _few_rows(v: Values) -> str:
    points = v["uncertainty_points"]
    reasons = {
        "train": "a student overfits so few",
        "validation": f"models are selected by a score that is uncertain by {points['validation']:.0f} points at 0.8",
        "test": f"a score of 0.8 is uncertain by {points['test']:.0f} points, so methods cannot be compared",
    }
    listed = "; ".join(f"{v['rows'][split]:,} {SPLIT_WORDS[split]} rows: {reasons[split]}" for split in v["few"])
    return f"{listed}. {'Hold out' if v['hold_out_more'] else 'Get'} more rows"


def _near_duplicates(v: Values) -> str:
    lines = []
    for leak in v["leaks"]:
        later, earlier = leak["later"], SPLIT_WORDS[leak["earlier"]]
        (late, early), (late_text, early_text) = leak["ids"], leak["texts"]
        lines.append(
            f"{leak['pairs']:,} of {leak['rows']:,} {later} rows ({leak['fraction']:.0%}) nearly repeat {earlier} rows,"
            f" e.g. {late} = {early} (Jaccard {leak['jaccard']:.2f}): {_short(late_text)!r} and {_short(early_text)!r}"
        )
    return "\n".join([*lines, "A model that memorised them scores too well: split by source, or remove them"])


def _contradictions(v: Values) -> str:
    total = sum(v[split]["contradicting"] for split in SPLITS)
    examples = "; ".join(
        f"{_short(example['text'])!r}: "
        + ", ".join(f"{row} says {_short(answer)!r}" for row, answer in example["answers"])
        for example in v["examples"]
    )
    return (
        f"{total:,} rows have the same prompt as another row and a different answer ({examples}): no model can answer"
        " all of them correctly. Correct them, or leave them out"
    )


def _near_leaks(rows: int) -> str:
    if not rows:
        return "no rows of one split nearly repeat rows of another"
    return counted(rows, "row of one split nearly repeats", "rows of one split nearly repeat") + " rows of another"


def _no_contradictions(v: Values) -> str:
    repeated = sum(v[split]["repeated"] for split in SPLITS)
    more = f"; {counted(repeated, 'row repeats', 'rows repeat')} another one with the same answer" if repeated else ""
    return f"no prompt has two different answers{more}"


def _small_classes(v: Values) -> str:
    listed = ", ".join(f"{label!r} ({count})" for label, count in v["labels"])
    more = ", ..." if v["small"] > len(v["labels"]) else ""
    return (
        f"{v['small']} of {v['classes']} classes have few training rows: {listed}{more}. They will hardly be learned:"
        " get more rows, or merge classes"
    )


def _spans(v: Values) -> str:
    if v["not_found"]:
        return f"{v['total'] - v['not_found']:,} of {v['total']:,} answers are spans of their prompts"
    return f"all {v['total']:,} answers are in their prompts"


def _missing_surfaces(unit: str) -> Callable[[Values], str]:
    def text(v: Values) -> str:
        examples = "; ".join(f"{_short(surface)!r} in {row}" for row, surface in v["examples"])
        return (
            f"{v['not_found']:,} of {v['total']:,} {unit} are not in the prompt as written ({examples}): a model cannot"
            " copy them. Correct them, or leave them out"
        )

    return text


def _languages(v: Values) -> str:
    listed = ", ".join(f"{code} {fraction:.0%}" for code, fraction in v["train"].items() if fraction >= 0.05)
    mixed = "; a column `language` would give the language of each row" if v["mixed"] else ""
    return f"languages of the training texts: {listed or 'not recognised'}{mixed}"


# --- models ---


def _cut_rows(v: Values) -> str:
    fate = "lose the start of their prompt" if v["truncates"] else "are left out"
    return f"{v['cut']:,} of {v['rows']:,} rows are longer than {v['max_length']} tokens and {fate}; is that intended?"


def _vocabularies(v: Values) -> str:
    if not v["own"]:
        return f"both tokenizers have the same {v['vocabulary']:,} entries and end a sequence with {v['end']!r}"
    return (
        f"teacher and student have different tokenizers ({v['teacher']:,} and {v['student']:,} entries), so they are"
        " compared by the next byte of the answer (cache.form): 514 bytes of cache for each byte of an answer and"
        " checkpoint, and a slower step, which --timing-run measures"
    )


def _lengths(v: Values) -> str:
    if v["cut"]:
        return f"{v['cut']:,} of {v['rows']:,} rows do not fit ({v['max_length']} tokens)"
    return f"every row fits into {v['max_length']:,} tokens; the longest has {v['longest']:,}"


def _answer_lengths(v: Values) -> str:
    longer = f" ({v['cut_off']:,} answers are longer)" if v["cut_off"] else ""
    most = f"at most {v['longest']}; up to {v['allowed']} are generated{longer}"
    return f"answers have {v['median']} tokens (median), {most}"


def _few_steps(v: Values) -> str:
    part = "one stage" if v["part"] == "stage" else v["part"]
    return (
        f"{v['rows']:,} training rows in batches of {v['batch']} give {v['steps']} optimizer steps of {part}, too few"
        " to learn from; make the batch smaller, or train longer"
    )


def _no_chat_template(v: Values) -> str:
    text = "the student's tokenizer has no chat template, so chat prompts cannot be rendered"
    if v["plain"]:
        return f"{text}; plain prompts can"
    return f"{text}. Use a model tuned for chat, or put a chat_template.jinja into its folder"


def _learning_rate(v: Values) -> str:
    effect = "so large that the model diverges" if v["large"] else "so small that the model hardly changes"
    return f"the learning rate of {v['section']}, {v['rate']:g}, is {effect}; 1e-5 to 1e-3 are usual"


def _precision(v: Values) -> str:
    if v["given"]:
        return f"as the recipe says; {v['why']}"
    return f"{'bfloat16' if v['bf16_pays'] else 'float32'} will be used, since {v['why']}"


def _too_little_memory(v: Values) -> str:
    training = " while all its weights are trained" if v["full"] else ""
    adapters = ": adapters need little more than the weights" if v["full"] else ""
    needed, machine = in_bytes(v["bytes"]), in_bytes(v["machine"])
    return f"the {v['role']} takes {needed}{training}, and this machine has {machine}{adapters}"


def _inexact_head(v: Values) -> str:
    more = ", and a schedule that compares checkpoints needs all of them" if v["needs_all"] else ""
    return (
        f"head(hidden) differs from the model's own logits by {v['head_error_nats']:.2g} nats, so the cache would hold"
        f" the top {v['top_k']} log-probabilities only{more}"
    )


def _look_alikes(v: Values) -> str:
    labels = Counter(unicodedata.normalize("NFC", label) for group in v["groups"] for label in group)

    def shown(label: str) -> str:  # what looks quite the same is shown by its code points
        return ascii(label) if labels[unicodedata.normalize("NFC", label)] > 1 else repr(label)

    groups = "; ".join(
        " and ".join(f"{shown(label)} ({count:,})" for label, count in group.items()) for group in v["groups"]
    )
    mapping = ", ".join(f"{shown(label)}: {shown(into)}" for label, into in v["mapping"].items())
    return f"labels that look the same are learned as different ones: {groups}. Join them in the file: {{{mapping}}}"


def _long_labels(v: Values) -> str:
    listed = ", ".join(f"{_short(label)!r} {count}" for label, count in list(v["tokens"].items())[:SHOWN])
    more = ", ..." if v["long"] > SHOWN else ""
    return (
        f"{v['long']} of {v['labels']} labels take {v['least']} tokens and more ({listed}{more}), and every token is a"
        " step of writing an answer. The models can write short forms instead; all outputs have the labels again"
    )


def _cut_words(v: Values) -> str:
    examples = "; ".join(f"{_short(surface)!r} in {row}" for row, surface in v["examples"])
    return (
        f"{v['cut']:,} of {v['entities']:,} entities begin or end inside words ({examples}). Do their offsets count"
        " something else (data.offsets), or did the annotation slip?"
    )


PASSED: dict[str, Text] = {
    "rows": lambda v: "\n".join(
        [
            ", ".join(f"{count:,} {split}" for split, count in v["rows"].items()) + " rows; no prompt is in two splits",
            *v["notes"],
        ]
    ),
    "sizes": lambda v: (
        f"enough rows: a score of 0.8 is uncertain by {v['uncertainty_points']['validation']:.0f} points on validation"
        f" and {v['uncertainty_points']['test']:.0f} on test"
    ),
    "unlabelled": lambda v: "\n".join(
        [f"{counted(v['rows'], 'row')} without gold of {v['read']:,} in the files", *v["notes"]]
    ),
    "near_leaks": lambda v: _near_leaks(sum(count for key, count in v.items() if key != "change")),
    "contradictions": _no_contradictions,
    "small_classes": "each of {classes} classes has enough training rows (the smallest {smallest})",
    "label_distribution": "the most common answer is {commonest!r}, {share:.0%} of the training rows",
    "label_spellings": "no two labels look the same",
    "entity_boundaries": "{cut:,} of {entities:,} entities begin or end inside words",
    "entities": "all {total:,} entities are in their prompts",
    "spans": _spans,
    "languages": _languages,
    "lengths": _lengths,
    "positions": "both models have positions for the longest row, {longest:,} tokens",
    "answer_lengths": _answer_lengths,
    "label_tokens": lambda v: f"labels take at most {counted(v['longest'], 'token')}",
    "answers_as_tokens": "the tokenizer writes answers that read back unchanged",
    "steps": lambda v: ", ".join(f"{part} {count:,}" for part, count in v.items() if part != "change"),
    "cache_size": lambda v: str(v["size"] or "the size is known once the teacher's files are here"),
    "vocabularies": _vocabularies,
    "padded_sizes": (
        "embeddings for {teacher:,} (teacher) and {student:,} (student) entries; those beyond the tokenizer are cut off"
    ),
    "chat_template": lambda v: (
        "each model reads its own chat template" if v.get("own") else "both models have the same chat template"
    ),
    "prompt_tokens": "both tokenizers give a prompt the same tokens",
    "training_arguments": "transformers takes them",
    "learning_rate": lambda v: ", ".join(f"{section} {rate:g}" for section, rate in v["rates"].items()),
    "precision": _precision,
    "weight_memory": lambda v: (
        f"{in_bytes(v['teacher'])} for the teacher and {in_bytes(v['student'])} for the student, of"
        f" {in_bytes(v['machine'])} on this machine"
    ),
    "checkpoints": "{checkpoints} of your own",
    "head_of_teacher": "reproduces the model's own logits",
    "head_of_student": "reproduces the model's own logits",
    "model_sizes": lambda v: f"the student has {v['student'] / v['teacher']:.0%} of the teacher's weights",
    **wording_results.PASSED,
}
"""What to say about a check that passed, by its name."""

TEXTS: dict[Kind, Text] = {
    Kind.FEW_ROWS: _few_rows,
    Kind.NEAR_DUPLICATES: _near_duplicates,
    Kind.UNLABELLED_DIFFERS: lambda v: "\n".join(
        [*v["differences"], "rows of another kind teach the student less about the ones that it will get", *v["notes"]]
    ),
    Kind.ANSWERS_CONTRADICT: _contradictions,
    Kind.CLASSES_TOO_SMALL: _small_classes,
    Kind.SINGLE_LABEL: "all rows have the answer {commonest!r}: nothing to learn; is another column the label?",
    Kind.LABELS_UNBALANCED: (
        "{share:.0%} of the training rows are {commonest!r}: a model that always answers so has that accuracy, so"
        " accuracy says little, and so does selection by it"
    ),
    Kind.LABELS_SHIFTED: (
        "training and test rows have the labels in different fractions (e.g. {label!r}: {train:.0%} and {test:.0%};"
        " total variation distance {drift:.0%}, significant): they were not sampled alike, so training does not aim at"
        " the score on test"
    ),
    Kind.LABELS_ALIKE: _look_alikes,
    Kind.LABELS_LONG: _long_labels,
    Kind.ENTITIES_CUT_WORDS: _cut_words,
    Kind.ENTITY_NOT_IN_PROMPT: _missing_surfaces("entities"),
    Kind.ANSWER_NOT_IN_PROMPT: _missing_surfaces("answers"),
    Kind.LANGUAGE_NOT_SET: (
        "the texts look like {main!r}, and the recipe does not say so: prompts and comparison of answers are those of"
        " English"
    ),
    Kind.LANGUAGE_DIFFERS: "task.language is {given!r}, and the texts look like {main!r}",
    Kind.LANGUAGE_NOT_TRAINED: (
        "{test:.0%} of the test rows look like {language!r}, and {train:.0%} of the training rows do; get such rows"
    ),
    Kind.ROWS_CUT: _cut_rows,
    Kind.CONTEXT_TOO_SHORT: (
        "the longest row has {longest:,} tokens and the {role} has positions for {length:,}. Set data.too_long, too:"
        " truncate_prompt or drop"
    ),
    Kind.ANSWERS_CUT_OFF: (
        "{cut_off:,} of {answers:,} gold answers are longer than the {allowed} tokens that are generated, so they are"
        " never right"
    ),
    Kind.ANSWERS_NOT_WRITABLE: lambda v: (
        f"{v['changed']} of {v['answers']} answers change when they are tokenized and decoded"
        f" ({_short(v['example'][0])!r} becomes {_short(v['example'][1])!r}): no model with this tokenizer can write"
        " them"
    ),
    Kind.FEW_STEPS: _few_steps,
    Kind.TOKENIZER_UNREADABLE: "{role}: {reason}",
    Kind.CHAT_TEMPLATE_MISSING: _no_chat_template,
    Kind.CHAT_TEMPLATES_DIFFER: lambda v: (
        f"the teacher's chat template {'differs' if v['teacher_has_one'] else 'is missing'}: prompts of both models are"
        " rendered with the student's, which the teacher was not tuned for. Copy the teacher's chat_template.jinja into"
        " the student's folder"
    ),
    Kind.PROMPT_TOKENS_DIFFER: (
        "{unlike} of {prompts} prompts get other tokens from the teacher's own tokenizer (a token at the beginning, a"
        " space). Both models read the student's. If the teacher was fine-tuned with its own, copy its tokenizer files"
        " into the student's folder"
    ),
    Kind.TRAINING_ARGUMENTS_REFUSED: "{reason}",
    Kind.LEARNING_RATE_UNUSUAL: _learning_rate,
    Kind.WEIGHTS_IN_16_BIT: (
        "the {role} is trained in {dtype} weights: most updates of full fine-tuning are smaller than their rounding and"
        " are lost. Keep them in float32; trainer.bf16 still computes in bfloat16"
    ),
    Kind.FLOAT16_ON_CPU: "float16 on a CPU overflows or is refused",
    Kind.BFLOAT16_SLOW: "bfloat16 is slow here: {why}",
    Kind.MEMORY_TOO_SMALL: _too_little_memory,
    Kind.CHECKPOINTS_UNUSABLE: "{reason}",
    Kind.ONE_CHECKPOINT: (
        "one checkpoint: a schedule over checkpoints has nothing to choose from, and is plain distillation from it"
    ),
    Kind.STUDENT_IS_TEACHER: (
        "teacher and student are the same model, so nothing becomes smaller. Make one: tutelage shrink TEACHER OUT"
        " --layers N"
    ),
    Kind.STUDENT_NOT_SMALLER: (
        "the student has {student:,} weights and the teacher {teacher:,}, so nothing becomes smaller"
    ),
    Kind.MODELS_NOT_LOADED: lambda v: (
        f"the weights of the {' and the '.join(v['roles'])} are large or not here, so head and precision were not"
        " checked; --timing-run 200 does"
    ),
    Kind.MODEL_UNUSABLE: "the {role} cannot be used here: {reason}",
    Kind.HEAD_INEXACT: _inexact_head,
    Kind.GRADIENT_NOT_FINITE: "loss or gradient of the {role} is not finite on the first rows in {dtype}",
    **wording_results.TEXTS,
}
"""What to say about a finding, by its kind."""
