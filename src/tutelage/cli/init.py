"""`tutelage init DATA`: a first recipe from a look at a file: task, columns, language, labels, lengths, batch, all with
comments.

What the rows say is read from them with the readers of a run; columns that go by unknown names are guessed from what
they hold, and the recipe says so. No file is ever overwritten.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.data.columns import accepted_answers, map_columns
from tutelage.data.dataset import Rows, load_rows, normalised, passages_of
from tutelage.data.guess_columns import Guess, guess_rows
from tutelage.data.languages import language_shares, main_language
from tutelage.data.readers import ENDINGS, Row, find_files, read_rows
from tutelage.doctor.data_checks import FEW_JUDGING_ROWS, WORDS
from tutelage.errors import DataError, UserError
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Data, Recipe
from tutelage.recipe.yaml_source import Dumper
from tutelage.records import SPLITS, Example
from tutelage.run.live_reader import is_pruned, parameters
from tutelage.tasks import template_for

TEST_SHARE = 0.2
"""Share of the rows that become test rows where there are none."""
MOST_SHARE = 0.3
"""The most that is taken from training to judge by."""
FEW_ROWS = 800
"""Training rows below which a fifth of them is held out instead of a tenth."""
MANY_LABELS = 20
"""Labels above which neither recipe nor prompt lists them."""
LONGEST = 4096
"""Tokens above which long prompts are cut instead."""
BATCH_TOKENS = 2048
"""Tokens of a training batch that a small machine takes."""
BATCH = 16
"""Rows of an optimizer step."""
FEWEST_INPUTS = 10
"""Different inputs below which rows are not split."""
LARGE = 1e9
"""Weights of a teacher above which adapters are trained."""
RATE, PRUNED_RATE = "2.0e-4", "5.0e-4"
"""Learning rates of a student as it was pretrained, and of a small teacher with layers taken out
(benchmarks/RESULTS.md)."""
ENGLISH = ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")
MULTILINGUAL = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct")
FAMILIES = (
    ("HuggingFaceTB/SmolLM2-", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("Qwen/Qwen2.5-", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("meta-llama/Llama-3.1-", "meta-llama/Llama-3.2-1B-Instruct"),
    ("meta-llama/Llama-3.2-", "meta-llama/Llama-3.2-1B-Instruct"),
)
"""Beginnings of hub names, and the smallest model with the same tokenizer."""


@dataclass
class Sketch:
    """A recipe that was written, and what is to be said about it."""

    path: Path
    text: str
    found: list[str] = field(default_factory=list)
    """What was seen in the data, a line each."""
    missing: list[str] = field(default_factory=list)
    """What is still to be done before the run can start, a line each; empty if nothing is."""


def initialise(
    data: Path | str, teacher: str | None = None, student: str | None = None, output: Path | None = None
) -> Sketch:
    """Look at `data` (a file, or a folder with train, validation and test files) and write a recipe.

    output: the recipe, default NAME.yaml here. Rows without a test split are split into new files,
    NAME_data/train.jsonl and test.jsonl. Raises UserError for what is there already, DataError for data without
    readable rows or without a task.
    """
    data = Path(data)
    if not data.exists():
        raise DataError(f"there is no file or folder {str(data)!r}: give one, e.g. tutelage init reviews.csv")
    path = output or Path(re.sub(r"[^\w.-]+", "_", data.resolve().stem) + ".yaml")
    if path.exists():
        raise UserError(f"{path} is there already and would be lost: give another --output, or delete it first")
    files = _files(data)
    raw = {split: read_rows(names) for split, names in files.items()}
    guess = guess_rows([row for row, _ in raw["train"]])
    rows = ", ".join(f"{len(own):,}" + (f" {WORDS[split]}" if len(raw) > 1 else "") for split, own in raw.items())
    sketch = Sketch(path, "", [f"{guess.task}: {guess.why}; {rows} rows", *guess.notes])
    section, training = _data_section(data, files, guess), len(raw["train"])
    if "test" not in files and "validation" not in files:
        section, training = _split(raw["train"], guess, path, sketch)
    if not files.keys() >= {"validation", "test"}:  # one of them at most: it is the test
        section["validation_share"] = _share(0.2 if len(raw["train"]) < FEW_ROWS else 0.1, training)
    sketch.text = _Draft(section, guess, teacher, student, raw["train"], sketch).text()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:  # refuses a file that has come meanwhile
        file.write(sketch.text)
    load_recipe(path)
    return sketch


def _files(data: Path) -> dict[str, list[str]]:
    """Files by split; train is always among them."""
    if data.is_file():
        beside = find_files(data.parent)
        return (
            {s: beside[s] for s in SPLITS if s in beside}
            if str(data) in beside.get("train", [])
            else {"train": [str(data)]}
        )
    found = find_files(data)
    if "train" in found:
        return {split: found[split] for split in SPLITS if split in found}
    single = [path for path in sorted(data.iterdir()) if path.is_file() and path.suffix.lower() in ENDINGS]
    if len(single) == 1:
        return {"train": [str(single[0])]}
    if not single:
        raise DataError(f"{data} holds no file of rows ({', '.join(ENDINGS)})")
    names = ", ".join(path.name for path in single[:6])
    raise DataError(
        f"{data} has no train file, and which of {names} holds the rows is not to be told: name it (tutelage init {single[0]}), or"
        f" call it train{single[0].suffix}"
    )


def _data_section(data: Path, files: dict[str, list[str]], guess: Guess) -> dict[str, Any]:
    """The part of `data` that says where rows and columns are."""
    if data.is_dir() and files.keys() - {"train"}:
        section: dict[str, Any] = {"dataset": str(data)}
        if "test" not in files:
            section["test_split"] = re.split(r"-\d+-of-", Path(files["validation"][0]).stem)[0]
    else:
        section = {split: names[0] if len(names) == 1 else names for split, names in files.items()}
        if "test" not in section and "validation" in section:
            section["test"] = section.pop("validation")
    return section | ({"columns": guess.columns} if guess.columns else {})


def _share(usual: float, rows: int) -> float:
    """What of some rows is taken to judge by: the usual share, or as much more as makes enough rows."""
    return max(usual, min(MOST_SHARE, math.ceil(100 * FEW_JUDGING_ROWS / max(1, rows)) / 100))


def _split(rows: list[tuple[Row, str]], guess: Guess, recipe: Path, sketch: Sketch) -> tuple[dict[str, Any], int]:
    """Write train and test files of rows that came in one file; returns the part of `data`, and how many rows are for
    training.

    Equal inputs, and questions about one passage, stay on one side. Rows without an answer are left out.
    """
    folder = recipe.with_name(f"{recipe.stem}_data")
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "test")}
    if there := next((path for path in paths.values() if path.exists()), None):
        raise UserError(f"{there} is there already and would be lost: give another --output, or delete it first")
    answered = [row for row, _ in rows if not _unanswered(row, guess)]
    if answered and len(answered) < len(rows):
        sketch.found.append(
            f"{len(rows) - len(answered):,} of {len(rows):,} rows have no answer ({guess.gold}) and are left out"
        )
    passages = (
        passages_of([map_columns(row, Data(columns=guess.columns))[0] for row in answered])
        if guess.task == "qa"
        else []
    )
    groups: dict[str, list[Row]] = {}
    for place, row in enumerate(answered):
        groups.setdefault(normalised(passages[place] if passages else _input(row, guess)), []).append(row)
    if len(groups) < FEWEST_INPUTS:
        table = (
            " (a .txt has a token and a tag a line; a table of texts and labels is a .tsv)"
            if guess.task == "ner"
            else ""
        )
        raise DataError(
            f"{len(answered):,} rows with {len(groups)} different inputs are too few to learn from and judge by{table}"
        )
    keys = sorted(groups)
    random.Random(0).shuffle(keys)
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    wanted = _share(TEST_SHARE, len(answered)) * len(answered)
    for key in keys:
        parts["test" if len(parts["test"]) < wanted else "train"] += groups[key]
    folder.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        with path.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in parts[split])
    sketch.found.append(
        f"no test rows were given: {len(parts['test']):,} of the {len(answered):,} rows, drawn with a seed, became"
        f" {paths['test']}, the others {paths['train']}"
    )
    return {"dataset": str(folder)} | ({"columns": guess.columns} if guess.columns else {}), len(parts["train"])


def _unanswered(row: Row, guess: Guess) -> bool:
    """Whether there is nothing to learn from a row; that a text has no entities is something."""
    if guess.gold is None:
        return False
    value = row.get(guess.gold)
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (guess.task == "qa" and not accepted_answers(value))
    )


def _input(row: Row, guess: Guess) -> str:
    """All of a row that is neither answer nor id."""
    inputs = {key: value for key, value in row.items() if key not in guess.beside}
    return json.dumps(inputs, ensure_ascii=False, sort_keys=True, default=str)


class _Draft:
    """The recipe while it is being written: the rows read by it say what else belongs in it."""

    def __init__(
        self,
        section: dict[str, Any],
        guess: Guess,
        teacher: str | None,
        student: str | None,
        raw: list[tuple[Row, str]],
        sketch: Sketch,
    ) -> None:
        """Read the rows as the run would."""
        self.section, self.guess, self.sketch = section, guess, sketch
        if guess.chat:
            section["chat_template"] = True
        texts = ["\n".join(str(value) for key, value in row.items() if key not in guess.beside) for row, _ in raw[:500]]
        self.shares = language_shares(texts)
        self.language = main_language(texts)
        self.models = self._models(teacher, student)
        self.rows = self._read()
        if self.rows and guess.task == "classification" and guess.native and len(self._labels()) > MANY_LABELS:
            section["template"] = template_for("classification", self.language).split("\n", 1)[1]
            self.rows = self._read()
        examples = [] if self.rows is None else [e for split in SPLITS for e in self.rows.examples[split]]
        self.lengths, self.measured = _lengths(self._recipe(), examples) if examples else ([], False)
        if self.rows and guess.task == "classification" and len(self._labels()) == 1:
            sketch.missing.append(
                f"all rows have the one label {self._labels()[0]!r}, so there is nothing to learn: is another column the label?"
                " data.columns={label: ...} says which"
            )

    def _models(self, teacher: str | None, student: str | None) -> dict[str, str]:
        pair = ENGLISH if self.language == "en" or not self.shares else MULTILINGUAL
        self.pruned = False
        if teacher is None:
            return {"teacher": pair[0], "student": student or pair[1]}
        known = next((small for start, small in FAMILIES if teacher.startswith(start) and teacher != small), None)
        small = student or known or f"models/{Path(teacher).name}-small"
        self.pruned = is_pruned(Path(teacher), Path(small))
        if student is None and known is None and not Path(small).is_dir():
            self.sketch.missing.append(
                f"there is no student yet: make one with `tutelage shrink {teacher} {small} --layers N` (half of its layers is a"
                " good start), or name one in student.model_name_or_path"
            )
            self.pruned = True
        return {"teacher": teacher, "student": small}

    def _recipe(self) -> Recipe:
        models = {role: {"model_name_or_path": name} for role, name in self.models.items()}
        task = {"type": self.guess.task, "language": self.language}
        return Recipe(name="-", output_dir="-", task=task, data=self.section, **models)

    def _read(self) -> Rows | None:
        """All rows; on leaks once more without them. None, and what is wrong, where they cannot be read."""
        try:
            return load_rows(self._recipe())
        except DataError as error:
            first = str(error)
        if "data.overlap=drop" in first:
            self.section["overlap"] = "drop"
            try:
                return load_rows(self._recipe())
            except DataError as error:
                first = str(error)
        self.sketch.missing += [
            line.removeprefix("  - ") for line in first.splitlines() if line != "the rows cannot be used:"
        ]
        return None

    # --- text ---

    def text(self) -> str:
        """The recipe as YAML with comments."""
        recipe = self.sketch.path
        head = [
            "# Guessed by `tutelage init`. Next:",
            "#",
            f"#   tutelage doctor {recipe}       # what is wrong, before hours of work",
            f"#   tutelage run {recipe}",
            "",
        ]
        parts = [*self._task(), "", *self._data(), "", *self._model_sections(), "", *self._training()]
        return "\n".join([*head, *parts]) + "\n"

    def _task(self) -> list[str]:
        lines = ["task:", f"  type: {self.guess.task}{self._because(self.guess.why)}"]
        if self.language:
            lines.append(f"  language: {_value(self.language)}  # picks the prompt and how answers are compared")
        elif len(self.shares) > 1:
            mix = ", ".join(f"{code} {share:.0%}" for code, share in list(self.shares.items())[:4])
            lines.append(f"  # language: the texts look like {mix}; a column `language` says it row by row")
        labels = self._labels()
        if labels and len(labels) <= MANY_LABELS:
            lines.append(f"  labels: {_value(labels)}")
        elif labels:
            lines.append(
                f"  # labels: {len(labels)}, as in the training rows; a list here would be the set that is allowed"
            )
        return lines

    def _labels(self) -> list[str]:
        if self.rows is None or self.rows.choice:
            return []
        return sorted(self.rows.labels or [])

    def _data(self) -> list[str]:
        notes = {
            "columns": "our name: the file's",
            "overlap": "some rows are in two splits; they are left out of the earlier one",
            "test_split": "there are no test rows: these are, and validation rows are held out of training",
            "chat_template": "the rows are conversations",
            "validation_share": "no validation rows were given: this share of the training rows is held out",
            "template": f"the default prompt would list all {len(self._labels())} labels",
        }
        lines = ["data:"]
        lines += [f"  {key}: {_value(value)}{self._because(notes.get(key, ''))}" for key, value in self.section.items()]
        if not self.lengths:
            return lines
        longest, how = max(self.lengths), "" if self.measured else "about "
        wanted = max(64, -(-int(1.1 * longest) // 32) * 32)
        comment = f"the longest row has {how}{longest:,} tokens; shorter batches are not padded to this"
        if longest > LONGEST:
            lines.append("  too_long: truncate_prompt  # the start of longer prompts is cut, answers never")
        lines.append(f"  max_length: {min(wanted, LONGEST)}{self._because(comment)}")
        return lines

    def _model_sections(self) -> list[str]:
        lines = ["teacher:", f"  model_name_or_path: {_value(self.models['teacher'])}"]
        if _weights(self._recipe()) > LARGE:
            lines.append("  lora: {}  # adapters instead of all weights: this teacher is large")
        return [
            *lines,
            "",
            "student:  # has the teacher's tokenizer",
            f"  model_name_or_path: {_value(self.models['student'])}",
        ]

    def _training(self) -> list[str]:
        train = len(self.rows.examples["train"]) if self.rows else 0
        typical = sorted(self.lengths)[int(0.9 * (len(self.lengths) - 1))] if self.lengths else 256
        whole = 4 if 0 < train < 200 else BATCH  # few rows give few steps
        batch = next((size for size in (16, 8, 4, 2) if size <= whole and size * typical <= BATCH_TOKENS), 1)
        size = f"nine rows in ten have at most {typical:,} tokens" if self.lengths else ""
        epochs = 0.5 if train > 20_000 else 1.0 if train > 5_000 else 2.0
        more = [f"  gradient_accumulation_steps: {whole // batch}  # {whole} rows a step"] if batch < whole else []
        return [
            "trainer:",
            f"  per_device_train_batch_size: {batch}{self._because(size)}",
            *more,
            "",
            "teach:",
            "  num_checkpoints: 4  # the student follows these",
            "  trainer: {num_train_epochs: 3, learning_rate: 1.0e-4}",
            "",
            "distill:",
            "  methods: [scd-aw]  # `tutelage compare` tries others beside it",
            "  num_stages: 4",
            f"  epochs_per_stage: {epochs}  # passes over the training rows in each stage",
            self._rate(),
        ]

    def _rate(self) -> str:
        pruned = self.pruned and _weights(self._recipe()) <= LARGE
        rate, why = (PRUNED_RATE, "a pruned model has much to heal") if pruned else (RATE, "")
        return f"  trainer: {{learning_rate: {rate}}}{self._because(why)}"

    @staticmethod
    def _because(text: str) -> str:
        return f"  # {text}" if text else ""


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    style = '"' if "\n" in str(value) else None
    text = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, default_style=style, allow_unicode=True, width=1_000_000
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _lengths(recipe: Recipe, examples: Sequence[Example]) -> tuple[list[int], bool]:
    """Tokens of every row, and whether they were counted: without a tokenizer here, half of the UTF-8 bytes."""
    if Path(recipe.teacher.model_name_or_path).is_dir():
        from tutelage.data.encode import make_encoder
        from tutelage.models.load import load_tokenizer

        try:
            encoder = make_encoder(recipe.data, load_tokenizer(recipe.teacher))
            return [len(encoder.prompt(e)) + len(encoder.answer(e.answer)) for e in examples], True
        except (UserError, ValueError):
            pass  # doctor says what is wrong with the tokenizer
    texts = (
        e.prompt if isinstance(e.prompt, str) else "\n".join(turn["content"] for turn in e.prompt) for e in examples
    )
    return [-(-len(f"{text} {e.answer}".encode()) // 2) + 2 for text, e in zip(texts, examples, strict=True)], False


def _weights(recipe: Recipe) -> float:
    """Weights of a local teacher, or of one whose name says so; 0 where neither tells."""
    name = recipe.teacher.model_name_or_path
    if Path(name).is_dir():
        return parameters(Path(name))
    billions = re.search(r"(\d+(?:\.\d+)?)B\b", name)
    return float(billions[1]) * 1e9 if billions else 0.0
