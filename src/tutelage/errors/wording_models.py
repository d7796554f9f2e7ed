"""The texts of problems of models, tokenizers, checkpoints and exports."""

from __future__ import annotations

from tutelage.errors.kinds import Kind
from tutelage.errors.wording_rows import Text, Values


def _different_vocabularies(v: Values) -> str:
    teacher, student = ("absent" if number is None else number for number in v["ids"])
    return (
        "the tokenizers of teacher and student differ, so their distributions cannot be compared: entry"
        f" {v['token']!r} is {teacher} for the teacher and {student} for the student (sizes {v['sizes'][0]:,} and"
        f" {v['sizes'][1]:,}). Compare them byte by byte (cache.form: auto, or cache_form of SCDConfig), take a student"
        " of the teacher's family, or make one: tutelage shrink TEACHER OUT --layers N"
    )


def _incomplete(v: Values) -> str:
    counts, parts = v["counts"], []
    for field in ("missing", "unexpected", "errors"):
        if counts[field]:
            parts.append(f"{counts[field]:,} {field} ({_first(v[field], counts[field])})")
    if counts["misshapen"]:
        shapes = [f"{key}: {list(file)} instead of {list(model)}" for key, file, model in v["misshapen"]]
        parts.append(f"{counts['misshapen']:,} of another shape ({_first(shapes, counts['misshapen'])})")
    return (
        f"the weights in {v['name']} are not all those of the model: {'; '.join(parts)}. Random numbers would take the"
        f" place of what is missing. {v['cause']}"
    )


def _first(names: list[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")


def _not_finite(v: Values) -> str:
    return (
        f"{v['count']:,} weights of {v['name']} are NaN or infinite ({_first(v['first'], v['count'])}): its training"
        " diverged, or its dtype is too narrow for them. Take another checkpoint, train it with a lower learning_rate,"
        " or load it in float32"
    )


_NOT_SPELLED = {
    "unknown": "it has no tokens for some of its characters, or reads some as special tokens",
    "normal_form": "it brings text into a Unicode normal form",
    "lower_case": "it changes upper and lower case",
    "spaces": "it drops, adds or changes spaces",
    "spaces_differ": "it adds a space in front of some answers and not of others, so set data.answer_prefix",
    "other": "its decoder does not undo what it does to text",
}


def _reads_padding(v: Values) -> str:
    measured = "" if v["nats"] is None else f" (KL {v['nats']:.3f} nats between a row with padding and without)"
    return (
        f"{v['name']} ({v['type']}) reads the padding of a batch{measured}, so a row's loss and answer would depend on"
        " the rows beside it: take a model of another architecture"
    )


def _multimodal(v: Values) -> str:
    parts = f" ({', '.join(v['parts'])} in its config)" if v["parts"] else ""
    remedy = (
        f"Its text part ({v['text']}) is a language model of its own: save that part to a folder and give the folder;"
        " docs/models.md has the lines"
        if v["text"]
        else "Take a model of text alone"
    )
    return (
        f"{v['name']} ({v['type']}) reads images or sound{parts}, and rows here are text: training and answers would be"
        f" those of a part of the model, and the rest would be carried along. {remedy}"
    )


def _not_spelled(v: Values) -> str:
    return (
        f"the {v['role']}'s tokens for {v['text']!r} spell {v['spelled']!r}: {_NOT_SPELLED[v['reason']]}. Models with"
        " different tokenizers are compared byte by byte, so both have to spell every answer as it is. Take a"
        f" {v['role']} whose tokenizer leaves text as it is"
    )


TEXTS: dict[Kind, Text] = {
    Kind.TOKENS_WITHOUT_BYTES: (
        "the tokens of {name} cannot be read as bytes (decoder: {decoder}), so it cannot be compared with a model of"
        " another tokenizer. Byte-level BPE and SentencePiece can: take a model with such a tokenizer"
        " (tokenizer.json), or a teacher and a student with the same one"
    ),
    Kind.TEXT_NOT_SPELLED: _not_spelled,
    Kind.VOCABULARIES_DIFFER: _different_vocabularies,
    Kind.END_OF_SEQUENCE_DIFFERS: (
        "teacher and student end a sequence with different tokens: {teacher!r} and {student!r}. Set `eos_token` in the"
        " student's tokenizer_config.json to {teacher!r}"
    ),
    Kind.EMBEDDINGS_TOO_SMALL: (
        "the tokenizer has {vocabulary:,} ids and the {role} has embeddings for {rows:,}: it cannot read all of them."
        " Take a model with its own tokenizer, or add the missing rows (resize_token_embeddings)"
    ),
    Kind.WEIGHTS_INCOMPLETE: _incomplete,
    Kind.WEIGHTS_NOT_FINITE: _not_finite,
    Kind.WEIGHTS_NOT_FLOATS: lambda v: (
        f"{v['count']:,} weights in {v['name']} are stored as {v['dtype']} ({_first(v['first'], v['count'])}), and"
        " config.json has no quantization_config that says what these numbers stand for. Write the model again with its"
        " weights in float32 or bfloat16 (model.save_pretrained), or take the original"
    ),
    Kind.END_IDS_INVALID: lambda v: (
        f"{v['file']} of {v['name']} says that answers end with the token {', '.join(map(repr, v['wrong']))}, and"
        f" ids of this model's tokens are whole numbers from 0 to {v['rows'] - 1:,}: correct eos_token_id in that file"
    ),
    Kind.WEIGHTS_NOT_SAFETENSORS: (
        "{name} has no {file}, and only safetensors are read, since other formats can run code: load it where you trust"
        " it and write it again, model.save_pretrained(FOLDER)"
    ),
    Kind.FLOAT16_TRAINED: (
        "the weights of {name} are float16, in which full fine-tuning ends in NaN: write dtype: float32 or bfloat16, or"
        " train adapters with lora: {{}}"
    ),
    Kind.ENCODER_DECODER: (
        "{name} ({type}) has an encoder beside its decoder, and models here read prompt and answer as one sequence:"
        " take a decoder-only model"
    ),
    Kind.MULTIMODAL: _multimodal,
    Kind.ADAPTERS_WITHOUT_BASE: (
        "{name} holds adapters, not the model that they are on, and a teacher or student is a whole model: give that"
        " model, or save both as one,"
        " AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(ANOTHER_FOLDER)"
    ),
    Kind.PADDING_READ: _reads_padding,
    Kind.ADAPTERS_ON_TIED_HEAD: (
        "{name}: there are adapters on the output head or the input embedding, and in this model both are one weight:"
        " merged into it, they would change both. Leave them out of the target modules"
    ),
    Kind.SAVED_MODEL_DIFFERS: (
        "the model saved in {folder} is not the one that was trained: on {rows:,} validation rows its loss is"
        " {saved:.4f} nats, and was {trained:.4f}. Merging adapters into 16-bit weights can do this: write"
        " student.dtype=float32. Otherwise a file of it was damaged: run the stage again"
    ),
    Kind.EXTRA_MISSING: "{purpose} needs {package}, which is not installed: pip install 'tutelage[{extra}]'",
    Kind.EXPORT_NOT_POSSIBLE: (
        "the student cannot be written as {format}: it has {found}. Take another format (`tutelage export --help`), or"
        " serve the folder as it is"
    ),
    Kind.EXPORT_NOT_QUANTISED: lambda v: (
        f"--quantize {v['precision']}: it writes blocks of {v['block']} numbers, and the rows of the student's matrices"
        f" have {' or '.join(map(str, v['lengths']))}, no multiple of that: nothing would be quantised, and the file"
        " would be float16 under another name. Type --quantize f16"
    ),
    Kind.EXPORT_READS_OTHER_TOKENS: (
        "{runtime} reads {differing:,} of {rows:,} texts in other tokens than the student's tokenizer, the first one"
        " {first}: its answers would be worse. The export was not kept. Take another format (`tutelage export --help`)"
    ),
    Kind.EXPORT_SCORE_DROPPED: (
        "{export} scores less than the student: {metric} {exported:.3f} instead of {original:.3f} on {rows:,} test rows"
        " (difference {difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}]). Export it with more bits"
        " (--quantize), or accept the loss: add --accept-drop"
    ),
}
