"""The formats that a student can be exported to, and writing it in one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tutelage import __version__
from tutelage.errors import ConfigError, Kind, ModelError, Problem, UserError
from tutelage.errors.extras import missing_package
from tutelage.export import ctranslate2_folder, gguf_file
from tutelage.export.measure import measure
from tutelage.export.modelfile import modelfile
from tutelage.export.prompts import asks_for, begins, probe
from tutelage.export.runtimes import Ask, Setting, grammar_of
from tutelage.models.evaluation import Evaluator
from tutelage.models.generation import end_ids
from tutelage.predict.find_model import FoundModel
from tutelage.predict.predictor import Predictor
from tutelage.utils.files import read_json, replacing, write_json, write_text


class Format(NamedTuple):
    """A format."""

    extra: str
    """`pip install 'tutelage[EXTRA]'`."""
    packages: tuple[str, ...]
    """Packages that it needs."""
    runtime: str
    """Key of `runtimes.RUNTIMES`."""
    precisions: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "gguf": Format("gguf", ("gguf", "xllamacpp"), "llama.cpp", gguf_file.PRECISIONS),
    "ctranslate2": Format("ctranslate2", ("ctranslate2",), "ctranslate2", ctranslate2_folder.PRECISIONS),
}


ABOUT = "export.json"
CHECKED_TEXTS = (
    "What's the 2nd of 1,234 items? I'll take 33333.",
    "  two spaces,\ttabs\n\nand new lines   \n",
    "Ünïcödé, straße; 발열이 심해요. 熱が38度あります。 我想在北京工作",
    "def f(x):\n    return x**2  # {'a': [1, 2]}\r\n",
    "emoji 🙂👩‍⚕️ and Ελληνικά, русский текст, हिन्दी, العربية",
)
"""Texts on which a tokenizer with another rule for words differs."""


@dataclass(frozen=True)
class Exported:
    """An export on disk."""

    folder: Path
    format: str
    """Key of FORMATS."""
    precision: str
    runtime: str
    ends: list[int]
    """Token ids that end an answer."""
    kept: tuple[int, int] | None = None
    """Matrices that are float16 though the precision is a quantised one, and how many there are in all; None: none."""


def own_precision(found: FoundModel, format: str) -> str:
    """The precision of an export for which none is asked."""
    if format == "gguf":
        model: Any = found.load()
        return gguf_file.own_precision(model.dtype)
    return ctranslate2_folder.PRECISIONS[0]


def earlier_export(found: FoundModel, folder: Path, format: str, precision: str | None) -> Exported | None:
    """What `write_export` has written into this folder for the same arguments; None if something else is there."""
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if about.get("student") != found.fingerprint or about["format"] != format:
        return None
    if about["precision"] != (precision or own_precision(found, format)):
        return None
    return Exported(folder, format, about["precision"], about["runtime"], about["end_token_ids"])


def check_possible(format: str, precision: str | None) -> None:
    """Raises ConfigError for a precision that the format does not have, UserError for a package that is missing."""
    chosen = FORMATS[format]
    if precision is not None and precision not in chosen.precisions:
        raise ConfigError(f"--quantize {precision} is none of {format}'s: {', '.join(chosen.precisions)}")
    for package in chosen.packages:
        if problem := missing_package(package, chosen.extra, f"--to {format}"):
            raise UserError(problem)


def write_export(found: FoundModel, folder: Path, format: str, precision: str | None) -> Exported:
    """Write a student in a format into a new folder, whole or not at all.

    precision: one of the format's; None for that of the student's weights. Raises ModelError for a student that the
    format cannot hold, or whose prompts its runtime would read in other tokens.
    """
    check_possible(format, precision)
    writer, predictor = _WRITERS[format], Predictor(found)
    with replacing(folder, new=True) as draft:
        draft.mkdir()
        written, ends, kept = writer(found, predictor, draft, precision)
        exported = Exported(draft, format, written, FORMATS[format].runtime, ends, kept)
        _check_tokens(exported, predictor.evaluator, predictor.data.chat_template)
        write_json(draft / ABOUT, _about(found, predictor, exported))
    return dataclasses.replace(exported, folder=folder)


_Files = tuple[str, list[int], tuple[int, int] | None]
"""`precision`, `ends` and `kept` of `Exported`."""


def _write_gguf(found: FoundModel, predictor: Predictor, draft: Path, precision: str | None) -> _Files:
    model, evaluator = found.load(), predictor.evaluator
    encoder, tokenizer = evaluator.encoder, evaluator.encoder.tokenizer
    ends = _ends(model, tokenizer)
    written = gguf_file.write_gguf(
        model,
        tokenizer,
        draft / "model.gguf",
        precision=precision,
        name=f"{found.usage['run']} {found.name}",
        begins=begins(tokenizer, encoder.prompt(probe("a", chat=predictor.data.chat_template))),
        ends=ends,
    )
    text = modelfile(predictor.data, encoder, longest=evaluator.max_new_tokens, ends=ends)
    write_text(draft / "Modelfile", text)
    if evaluator.decoding == "labels" and evaluator.task.labels:
        labels = list(map(encoder.verbalizers.written, evaluator.task.labels))
        write_text(draft / "labels.gbnf", grammar_of(labels, encoder.answer_prefix))
    return written.precision, ends, (written.kept, written.matrices) if written.kept else None


def _write_ctranslate2(found: FoundModel, predictor: Predictor, draft: Path, precision: str | None) -> _Files:
    tokenizer = predictor.evaluator.encoder.tokenizer
    written = ctranslate2_folder.write_ctranslate2(student_folder(found), tokenizer, draft, precision)
    return written, _ends(found.load(), tokenizer), None


_WRITERS = {"gguf": _write_gguf, "ctranslate2": _write_ctranslate2}
"""By key of FORMATS."""


def student_folder(found: FoundModel) -> Path:
    """The files of a student. Raises ConfigError for another model of a run."""
    if found.folder is None:
        raise ConfigError(f"{found.name} is no student: name the folder of one, or a run")
    return found.folder


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer, the tokenizer's own first."""
    return sorted(end_ids(model, tokenizer), key=lambda end: end != tokenizer.eos_token_id)


def _check_tokens(exported: Exported, evaluator: Evaluator, chat: bool) -> None:
    """Raises ModelError if the runtime reads texts, or the labels, in other tokens than the tokenizer."""
    texts = [*CHECKED_TEXTS, *map(evaluator.encoder.verbalizers.written, evaluator.task.labels or [])]
    asks = asks_for(evaluator, evaluator.eval_set([probe(text, chat=chat) for text in texts]))
    setting = setting_of(evaluator, asks, exported, threads=1)
    read = measure({"runtime": exported.runtime, "setting": setting, "asks": asks, "only_tokens": True})["tokens"]
    wrong = [text for text, ask, tokens in zip(texts, asks, read, strict=True) if ask["ids"] != tokens]
    if wrong:
        values = {"runtime": exported.runtime, "differing": len(wrong), "rows": len(texts), "first": repr(wrong[0])}
        raise ModelError(Problem(Kind.EXPORT_READS_OTHER_TOKENS, values=values))


def setting_of(evaluator: Evaluator, asks: Sequence[Ask], exported: Exported, threads: int) -> Setting:
    """What holds for all of these prompts."""
    longest = max(evaluator.max_new_tokens, *(len(answer) for ask in asks for answer in ask["candidates"]), 1)
    return {
        "folder": str(exported.folder),
        "threads": threads,
        "longest": longest,
        "context": max(len(ask["ids"]) for ask in asks) + longest + 8,
        "ends": exported.ends,
        "prefix": evaluator.encoder.answer_prefix,
    }


def _about(found: FoundModel, predictor: Predictor, exported: Exported) -> dict[str, Any]:
    """export.json: what the folder was made from, and how it wants to be asked."""
    evaluator = predictor.evaluator
    return {
        "tutelage": __version__,
        "student": found.fingerprint,
        "run": found.usage["run"],
        "name": found.name,
        "format": exported.format,
        "precision": exported.precision,
        "kept_in_f16": dict(zip(("matrices", "of"), exported.kept, strict=True)) if exported.kept else None,
        "runtime": exported.runtime,
        "task": predictor.task_section.type,
        "decoding": evaluator.decoding,
        "labels": evaluator.task.labels,
        "verbalizers": predictor.task_section.verbalizers,
        "chat_template": predictor.data.chat_template,
        "answer_prefix": evaluator.encoder.answer_prefix,
        "max_new_tokens": evaluator.max_new_tokens,
        "end_token_ids": exported.ends,
    }
