"""Strategies of the fuzzers, and what must hold of every case: it works or ends in a user error, in two seconds and
500 MB, with a message that can be printed.

    recipes    YAML and overrides, mutated in values and in text
    rows       every file format x row format, mutated in cells and in bytes; read, checked, scored
    methods    names of methods with settings, `scd+schedule.advance=true`
"""

from __future__ import annotations

import csv
import io
import json
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet as parquet
import scipy.stats  # noqa: F401 - the doctor imports it when it needs it; here its time is no case's
import yaml
from hypothesis import strategies as st

from tutelage.cli.guess_columns import guess_rows
from tutelage.data.dataset import load_rows
from tutelage.data.readers import read_rows
from tutelage.doctor.data_checks import check_data
from tutelage.errors import UserError
from tutelage.method.methods import METHODS
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.records import SPLITS
from tutelage.tasks import make_task
from tutelage.utils.console import visible

SECONDS, MEGABYTES = 2, 500


@contextmanager
def limits(seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Raises TimeoutError after so many seconds of this process's own time, MemoryError above so many more megabytes
    of address space. In the main thread only."""

    def too_slow(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + megabytes * 2**20
    before = signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(error: UserError) -> str:
    """The message of a user error, after checking that it can be shown."""
    text = visible(str(error), lines=True)
    text.encode()
    assert len(text) < 100_000, f"a message of {len(text):,} characters"
    assert all(problem.kind for problem in error.problems)
    return text


# --- values ---

ODD_TEXTS = (
    *("", " ", "\n", "\t", "0", "1", "-1", "1.0", "1e400", "nan", "None", "true", "[", "{", "]", "[]", "{}", '"', "'"),
    *("['Ada' 'Bo']", "array(['Ada'], dtype=object)", "{'text': array(['Ada'], dtype=object)}", "['a' ... 'b']"),
    *('["a", "b"]', "[1 2 3]", "[" * 200, "{'a': " * 200, "{{", "{text}", "{labels}", "{0}", "{text.upper}", "%s"),
    *(
        "A",
        "b",
        "none",
        "O",
        "B-PER",
        "I-",
        "PER: Bo",
        "：",
        "a: b: c",
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "\ufeff",
    ),
    *("한", "배송".encode().decode(), "\u1107\u1162", "髙", "💊", "👨‍👩‍👧", "ﬁ", "İ", "ß", "\u2028", "\x85", "\u3000"),
    *("!!python/object:os.system", "&a [*a]", "<<: *x", "a" * 5000, "sep=;", "9" * 5000, "-DOCSTART-"),
)
texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20))
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    *(st.sampled_from([10**400, -1, 0, 2**63, 1e308, float("nan"), float("inf")]),),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def cut_and_pasted(text: str | bytes) -> st.SearchStrategy[Any]:
    """A text or bytes with a few pieces cut out, doubled, or replaced."""
    odd: Any = st.sampled_from(ODD_TEXTS)
    if isinstance(text, bytes):
        odd = odd.map(lambda piece: piece.encode("utf-8", "surrogatepass")) | st.binary(max_size=4)

    def change(edits: list[tuple[int, int, Any]]) -> Any:
        changed = text
        for start, length, piece in edits:
            start %= len(changed) + 1
            changed = changed[:start] + piece + changed[start + length :]
        return changed

    edit = st.tuples(st.integers(0, 10_000), st.integers(0, 30), odd)
    return st.lists(edit, max_size=3).map(change)


_SELDOM = st.sampled_from((False,) * 7 + (True,))


# --- recipes ---

SOUND_RECIPE: dict[str, Any] = {
    "seed": 0,
    "task": {"type": "classification", "labels": ["a", "b"]},
    "data": {"dataset": "data", "template": "{text}:", "columns": {"text": "review"}, "max_train_rows": 10},
    "teacher": {"model_name_or_path": "t", "lora": {"r": 8}},
    "student": {"model_name_or_path": "s"},
    "trainer": {"learning_rate": 1e-4, "per_device_train_batch_size": 4},
    "teach": {"num_checkpoints": 2},
    "distill": {"methods": ["scd-aw", "sft"], "num_stages": 2, "kd_ratio": 0.5, "schedule": {"advance": True}},
    "cache": {"dtype": "float32"},
}
_KEYS = st.sampled_from([*SOUND_RECIPE, "name", "output_dir", "evaluate", "compare", "tracking", "anchor", "cross_fit"])
_INNER_KEYS = st.sampled_from(
    [key for section in SOUND_RECIPE.values() if isinstance(section, dict) for key in section]
)


@dataclass
class RecipeCase:
    """A recipe file and overrides of the command line."""

    text: str
    overrides: list[str]


@st.composite
def recipe_cases(draw: Callable[..., Any]) -> RecipeCase:
    recipe = json.loads(json.dumps(SOUND_RECIPE))
    for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
        section, key, value = draw(_KEYS), draw(_INNER_KEYS | texts), draw(values)
        if draw(st.booleans()) or not isinstance(recipe.get(section), dict):
            recipe[section] = value
        else:
            recipe[section][key] = value
    text = yaml.safe_dump(recipe, allow_unicode=True)
    text = draw(cut_and_pasted(text)) if draw(_SELDOM) else text
    override = st.tuples(_KEYS | texts, _INNER_KEYS | texts, values | texts)
    overrides = draw(st.lists(override, max_size=2)) if draw(_SELDOM) else []
    return RecipeCase(text, [f"{section}.{key}={value}" for section, key, value in overrides])


def check_recipe(case: RecipeCase) -> str:
    """The message, or `read`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(case.text.encode("utf-8", "surrogatepass"))
        with limits():
            try:
                load_recipe(path, case.overrides)
            except UserError as error:
                return refused(error)
    return "read"


# --- methods ---

_SETTINGS = st.sampled_from(
    [
        *(
            "schedule.advance",
            "schedule.reach",
            "schedule.student_kl",
            "kd_ratio",
            "temperature",
            "stage_reset",
            "start",
        ),
        *("num_stages", "epochs_per_stage", "probe_rows", "trainer.learning_rate", "methods", "seeds", "", ".", "x.y"),
    ]
)


@st.composite
def method_names(draw: Callable[..., Any]) -> str:
    sound = st.sampled_from(
        [("schedule.advance", "true"), ("kd_ratio", "0.3"), ("temperature", "2"), ("probe_rows", "9")]
    )
    odd = st.tuples(_SETTINGS | texts, scalars.map(str) | texts)
    settings = [draw(odd if draw(_SELDOM) else sound) for _ in range(draw(st.integers(0, 3)))]
    base = (
        draw(st.sampled_from(["SCD", "scd aw", ""]) | texts) if draw(_SELDOM) else draw(st.sampled_from(list(METHODS)))
    )
    plus = "++" if draw(_SELDOM) else " + " if draw(_SELDOM) else "+"
    return base + "".join(f"{plus}{key}={value}" for key, value in settings)


def check_method(name: str) -> str:
    """As `check_recipe`, for a recipe that asks for this method."""
    recipe = {**SOUND_RECIPE, "distill": {"methods": [name]}}
    return check_recipe(RecipeCase(yaml.safe_dump(recipe, allow_unicode=True), []))


# --- rows ---

TASKS = ("classification", "ner", "qa")
TASK_OF = dict.fromkeys(("entities", "tokens", "prodigy", "doccano"), "ner") | dict.fromkeys(
    ("span", "choice", "options"), "qa"
)
"""Task of the rows that belong to one; others are classified."""
_ENTITIES = [
    *([{"type": "PER", "start": 0, "end": 2}], [[0, 2, "PER"]], [{"type": "PER", "text": "Bo"}], ["PER: Bo"], []),
    *("[{'start': 0, 'end': 2, 'label': 'PER'}\n {'start': 7, 'end': 10, 'label': 'PER'}]", [[0, 1, "PER"]]),
]
_CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
SOUND_ROWS: dict[str, dict[str, Any]] = {
    "label": {"text": "Bo met Ada", "label": "a"},
    "entities": {"text": "Bo met Ada 💊 later", "entities": [[0, 2, "PER"]]},
    "tokens": {"tokens": ["Bo", "met", "Ada"], "tags": ["B-PER", "O", "B-PER"]},
    "span": {"question": "Who?", "context": "Bo met Ada", "answers": {"text": ["Ada"], "answer_start": [7]}},
    "choice": {"question": "2 + 2?", "choices": ["3", "4", "1"], "answer": "1"},
    "options": {"question": "2 + 2?", "A": "3", "B": "4", "C": "1", "answer": "1"},
    "prompt": {"prompt": "Hi", "completion": "a"},
    "messages": {"messages": _CHAT},
    "conversations": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}]},
    "alpaca": {"instruction": "Say.", "input": "Hi", "output": "a", "system": "Be brief.", "history": [["a", "b"]]},
    "prodigy": {"text": "Bo met Ada", "spans": [{"start": 0, "end": 2, "label": "PER"}], "answer": "accept"},
    "doccano": {"text": "Bo met Ada", "label": [[0, 2, "PER"]]},
}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".txt")
_COLUMNS = st.sampled_from(
    [name for row in SOUND_ROWS.values() for name in row]
    + ["id", "labels", "language", "subdomain", "sentence", "text"]
)


@dataclass
class RowsCase:
    """A task, options of the data section, and a file of training rows; test rows are a sound one of the format."""

    row_format: str
    task: dict[str, Any]
    data: dict[str, Any]
    ending: str
    content: bytes


_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "overlap": st.just("error"),
    "max_train_rows": st.integers(1, 5),
    "template": st.sampled_from(["{text}", "{question} {labels}", "{nothing}", "{text", "{0}"]),
    "chat_template": st.just(True),
    "columns": st.dictionaries(_COLUMNS, _COLUMNS, max_size=2),
    "encoding": st.sampled_from(("cp932", "cp949", "utf-16-le")),
    "offsets": st.sampled_from(("utf16", "bytes-inclusive")),
    "choice_answer": st.sampled_from(("index", "text")),
    "join_tokens": st.just("characters"),
}


@st.composite
def rows_cases(draw: Callable[..., Any]) -> RowsCase:
    name = draw(st.sampled_from(sorted(SOUND_ROWS)))
    rows = sound_rows(name, draw(st.integers(3, 8)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        row = draw(st.sampled_from(rows))
        column = draw(st.sampled_from(sorted(row, key=str)) | _COLUMNS)
        row[column] = draw(values)
    if draw(_SELDOM):
        draw(st.sampled_from(rows)).pop(draw(_COLUMNS), None)
    ending = draw(st.sampled_from(ENDINGS[: None if name == "tokens" else -2]))
    content = written(rows, ending, draw(st.sampled_from((",", ",", ";", "\t", "|"))))
    if draw(_SELDOM):
        content = draw(cut_and_pasted(content))
    if draw(_SELDOM):
        codec = draw(st.sampled_from(("utf-16", "cp932", "cp949", "gb18030", "utf-16-le", "utf-8-sig")))
        content = content.decode("utf-8", "replace").encode(codec, "replace")
    sound = sound_case(name)
    task = {"type": draw(st.sampled_from(TASKS))} if draw(_SELDOM) else sound.task
    options = {key: draw(value) for key, value in _OPTIONS.items() if draw(_SELDOM)}
    return RowsCase(name, task, {**sound.data, **options}, ending, content)


def sound_case(name: str) -> RowsCase:
    """Rows of a format that can be read, as JSON lines."""
    task = TASK_OF.get(name, "classification")
    data: dict[str, Any] = {"chat_template": True} if name in ("messages", "conversations") else {}
    data |= {"columns": {"entities": "label"}} if name == "doccano" else {}
    content = written(sound_rows(name, 4), ".jsonl", ",")
    return RowsCase(name, {"type": task}, {"overlap": "drop", **data}, ".jsonl", content)


def sound_rows(name: str, count: int) -> list[dict[str, Any]]:
    """Rows of a format that differ."""
    rows = []
    for number in range(count):
        row = json.loads(json.dumps(SOUND_ROWS[name]))
        first = next(iter(row))
        if name in ("messages", "conversations"):
            row[first][0][list(row[first][0])[1]] += f" {number}"
        else:
            row[first] = [*row[first][:-1], str(number)] if isinstance(row[first], list) else f"{row[first]} {number}"
        row |= {"entities": _ENTITIES[number % len(_ENTITIES)]} if name == "entities" else {}
        row |= {"answer": str(number % 3)} if name in ("choice", "options") else {}
        rows.append(row)
    return rows


def written(rows: list[dict[str, Any]], ending: str, separator: str) -> bytes:
    """Rows as a file of this kind, as far as it can hold them."""
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".json":
        return json.dumps(rows).encode()
    if ending == ".parquet":
        return _parquet(rows)
    if ending in (".csv", ".tsv"):
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        sink = io.StringIO()
        table = csv.DictWriter(sink, names, delimiter="\t" if ending == ".tsv" else separator, extrasaction="ignore")
        table.writeheader()
        table.writerows({str(name): value for name, value in row.items()} for row in rows)
        return sink.getvalue().encode("utf-8", "surrogatepass")
    lines = [
        "\n".join(f"{token}\t{tag}" for token, tag in zip(_listed(row, "tokens"), _listed(row, "tags"), strict=False))
        for row in rows
    ]
    return ("\n\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _listed(row: dict[str, Any], name: str) -> list[Any]:
    value = row.get(name, row.get("text"))
    return value if isinstance(value, list) else str(value).split(" ")


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError, UnicodeError):
            columns[name] = pyarrow.array([ascii(cell) for cell in cells])
    with suppress(pyarrow.ArrowException, UnicodeError):
        parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def check_rows(case: RowsCase) -> str:
    """The message, or `read`. What is read must be scored: gold answers get full marks."""
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / f"rows{case.ending}", Path(folder) / "test.jsonl"
        train.write_bytes(case.content)
        test.write_text(json.dumps(sound_rows(case.row_format, 10)[-1]), encoding="utf-8")
        data = case.data | {"train": [str(train)], "test": [str(test)], "encoding": case.data.get("encoding")}
        model = {"model_name_or_path": "m"}
        recipe = Recipe(name="r", output_dir="o", task=case.task, data=data, teacher=model, student=model)
        with limits():
            try:
                _examine(recipe, train)
            except UserError as error:
                return refused(error)
    return "read"


def _examine(recipe: Recipe, path: Path) -> None:
    with suppress(UserError):
        guess_rows([row for row, _ in read_rows([str(path)])])
    rows = load_rows(recipe)
    task = make_task(recipe.task, rows.labels, choice=rows.choice)
    for check in check_data(rows, recipe):
        check.text.encode("utf-8", "surrogatepass")
        json.dumps(check.numbers)
    for example in (example for split in SPLITS for example in rows.examples[split]):
        f"{example.id} {example.prompt} {example.answer}".encode()
        assert task.score(task.parse(example.answer, example), example) == 1.0, example
