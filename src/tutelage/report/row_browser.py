"""Data and script of the report's row browser: rows as columns, packed under a budget of bytes.

The page carries its rows as gzip in base64, so that 20,000 of them fit and that no text of a row can be parsed as HTML.
What does not fit is cut in a fixed order, and the page says so: first texts get shorter, then a random sample of the
rows is taken. Reads files of the run only.
"""

from __future__ import annotations

import base64
import bisect
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tutelage.analysis.run_results import Results, each_line
from tutelage.report.page import TEMPLATES, words
from tutelage.utils.digests import DigestSet, digest

if TYPE_CHECKING:
    from markupsafe import Markup

BUDGET = 3_500_000
"""Most characters of base64; with the rest of the page this stays under 5 MB."""
LONGEST, SHORTEST = 2_000, 120
"""Characters of a text: where cutting starts, and where rows are left out instead."""
TEST_ROWS, TRAINING_ROWS = 20_000, 10_000
"""Most rows of each kind; more are a random sample."""
MODELS = 12
"""Most models whose answers are carried: the first ones in the order of the report."""
DIGITS = 4
"""Significant digits of losses, scores, confidences and weights."""
TEST_FRACTION = 0.8
"""Of the budget, for the test rows, if neither they nor the training rows would fit."""
TEXTS = ("prompt", "gold", "answer", "unread")
"""Columns that may be cut."""

Table = dict[str, Any]
"""Columns by name, JSON-able. Its form is private to this module and page.js."""


@dataclass(frozen=True)
class RowSource:
    """Rows of one kind, and how some of them become columns."""

    rows: int
    table: Callable[[Sequence[int]], Table]
    """From ascending indices of rows to columns in that order."""


class RowCount(TypedDict):
    """Rows of one kind."""

    rows: int
    shown: int
    """In the payload."""


class BrowserData(TypedDict):
    """What rows.jinja needs."""

    models: list[str]
    """In the payload: teacher, anchor, main student, then the others."""
    left_out: int
    """Number of models that are not in the payload."""
    main: str | None
    """The student compared with the teacher first; None if there is none."""
    test: RowCount
    training: RowCount | None
    """None if the main student has no weights."""
    length: int | None
    """Characters at which texts were cut; None if none was."""
    payload: str
    """Base64 of gzip of JSON, at most BUDGET characters."""


def browser_data(results: Results, folder: Path) -> BrowserData | None:
    """The rows of a run folder; None if no model has predictions. Raises DataError for a file that cannot be read."""
    ordered = _models(results)
    if not ordered:
        return None
    models = ordered[:MODELS]
    sources = {"test": _test_rows(results, models, folder)}
    if training := _training_rows(results, folder):
        sources["training"] = training
    main = next((name for name in (results.main, "anchor", *models) if name in models and name != "teacher"), None)
    payload, length, shown = pack(sources, {"models": models, "main": main})
    counts = {name: RowCount(rows=source.rows, shown=shown[name]) for name, source in sources.items()}
    return BrowserData(
        models=models,
        left_out=len(ordered) - len(models),
        main=main,
        test=counts["test"],
        training=counts.get("training"),
        length=length,
        payload=payload,
    )


def script_text() -> str:
    """The script of the page: sorting and filtering of tables, and the row browser."""
    return (TEMPLATES / "report" / "page.js").read_text(encoding="utf-8")


def page_script() -> Markup:
    """The script as the last element of the body."""
    from markupsafe import Markup

    return Markup("<script>" + script_text() + "</script>")  # our own file, which has no end tag in it


def script_hash() -> str:
    """The source, sha256-..., by which the page's Content-Security-Policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script_text().encode()).digest()).decode()


# --- rows as columns ---


def _models(results: Results) -> list[str]:
    """Models with predictions: teacher, anchor, main student, the others, the untrained student last."""
    order = ("teacher", "anchor", results.main, *results.distilled, *results.predictions)
    names = list(dict.fromkeys(name for name in order if name in results.predictions))
    return sorted(names, key=lambda name: name == "student")


def _test_rows(results: Results, models: list[str], folder: Path) -> RowSource:
    answered = dict.fromkeys(id for model in models for id in results.predictions[model])
    ids = [id for id in results.rows if id in answered] + [id for id in answered if id not in results.rows]
    found = _found_slices(folder, {ids[index] for index in sample(len(ids), TEST_ROWS)})

    def table(indices: Sequence[int]) -> Table:
        chosen = [ids[index] for index in indices]
        lines = {model: [results.predictions[model].get(id) for id in chosen] for model in models}
        gold = [next(line for line in row if line)["gold"] for row in zip(*lines.values(), strict=True)]
        answers = {model: _answers(own, lines.get("teacher")) for model, own in lines.items()}
        for model in models:
            answers[model]["found"] = _masks([found.get(id, {}).get(model, []) for id in chosen])
        return {**_about(results.rows, chosen), "gold": _coded([one_line(value) for value in gold]), "models": answers}

    return RowSource(len(ids), table)


def _answers(lines: list[dict[str, Any] | None], teacher: list[dict[str, Any] | None] | None) -> Table:
    """One model's columns; `outcome` and `side` come from the exact values, since rounded ones may be equal."""
    known = [line or {} for line in lines]
    columns = {key: _column([line.get(key) for line in known]) for key in ("score", "nll", "confidence")}
    unread = {n: str(line.get("raw") or "") for n, line in enumerate(known) if line and line.get("prediction") is None}
    others = [line or {} for line in teacher or [None] * len(lines)]
    outcome = [outcome_of(a.get("score"), b.get("score")) for a, b in zip(known, others, strict=True)]
    side = [_letter(_difference(a.get("nll"), b.get("nll")), "stt") for a, b in zip(known, others, strict=True)]
    answer = _coded([one_line(line.get("prediction")) for line in known])
    return {"answer": answer, "unread": unread, **columns, "outcome": "".join(outcome), "side": "".join(side)}


def outcome_of(score: float | None, teacher: float | None) -> str:
    """A model's score against the teacher's on a row: `w` higher, `l` lower, `r` both 1, `n` both 0, `t` equal in
    between, `-` not known."""
    difference = _difference(score, teacher)
    return {1.0: "r", 0.0: "n"}.get(score, "t") if difference == 0 else _letter(difference, "ltw")


def _difference(value: float | None, other: float | None) -> float | None:
    """None unless both are finite numbers."""
    finite = all(isinstance(number, int | float) and math.isfinite(number) for number in (value, other))
    return value - other if finite else None


def _letter(difference: float | None, below_equal_above: str) -> str:
    """One of three letters by the sign; `-` if the difference is not known."""
    return "-" if difference is None else below_equal_above[1 + (difference > 0) - (difference < 0)]


def _training_rows(results: Results, folder: Path) -> RowSource | None:
    """Losses and weights of the main student's training rows by stage; None if it has none.

    Only the rows that are shown at most are held.
    """
    if results.main is None:
        return None
    path, known = folder / "distill" / results.main / "weights.jsonl", DigestSet(results.training_ids)
    expected = max((len(weights) for student in results.students for weights in student.weights.values()), default=0)
    weighted = _weighted_rows(path, known, expected)
    if weighted.rows != expected:  # some have no weights, or rows of another kind have some
        weighted = _weighted_rows(path, known, weighted.rows)
    if not weighted.rows:
        return None
    ids, shown = weighted.ids, set(weighted.ids.values())
    about = results.training_rows(shown)
    losses = each_line(folder / "anchor" / "sample_loss.jsonl")
    anchor = {line["id"]: line["nll"] for line in losses if line["id"] in shown}

    def table(indices: Sequence[int]) -> Table:
        chosen = [ids[index] for index in indices]
        gold = _coded([about[id]["answer"] for id in chosen])  # the text that is learned, with its line breaks
        return {**_about(about, chosen), "gold": gold, **_stages(weighted, chosen, anchor)}

    return RowSource(weighted.rows, table)


@dataclass(frozen=True)
class _Weighted:
    """Lines of weights.jsonl, of the rows that are shown at most."""

    rows: int
    """Training rows with a weight in the first stage of the file."""
    ids: dict[int, str]
    """Of rows that are shown, by their index among these."""
    lines: dict[int, dict[str, dict[str, Any]]]
    """By stage and id."""
    checkpoints: dict[int, str | None]
    """By stage."""


def _weighted_rows(path: Path, known: DigestSet, expected: int) -> _Weighted:
    """What a weights.jsonl says of a sample of its rows.

    known: digests of the ids of training rows. expected: number of rows that the sample is drawn from; where the file
    has other ones, the lines are to be read again with that number.
    """
    taken = set(sample(expected, min(expected, TRAINING_ROWS)))
    rows, ids, shown = 0, {}, set()
    by_stage: dict[int, dict[str, dict[str, Any]]] = {}
    checkpoints: dict[int, str | None] = {}
    for line in each_line(path):
        checkpoints.setdefault(line["stage"], line["checkpoint"])
        lines = by_stage.setdefault(line["stage"], {})
        if len(by_stage) == 1 and line["id"] not in shown and digest(line["id"]) in known:
            if rows in taken:
                ids[rows] = line["id"]
                shown.add(line["id"])
            rows += 1
        if line["id"] in shown:
            lines[line["id"]] = line
    return _Weighted(rows, ids, by_stage, checkpoints)


def _stages(weighted: _Weighted, ids: list[str], plain: Mapping[str, float]) -> Table:
    """`stages` hold indices of `columns`: stages that follow the same checkpoint share its losses.

    plain: the anchor's losses, for stages whose weights were not computed from them.
    """
    columns: list[Any] = []

    def index_of(values: Sequence[float | None]) -> int:
        column = _column(values)
        if column not in columns:
            columns.append(column)
        return columns.index(column)

    stages = []
    for stage, lines in sorted(weighted.lines.items()):
        chosen = [(id, lines.get(id, {})) for id in ids]
        anchor = [plain.get(id) if line.get("anchor_nll") is None else line["anchor_nll"] for id, line in chosen]
        stages.append({
            "stage": stage,
            "checkpoint": weighted.checkpoints[stage],
            "anchor": index_of(anchor),
            "teacher": index_of([line.get("teacher_nll") for _, line in chosen]),
            "weight": index_of([line.get("weight") for _, line in chosen]),
        })  # fmt: skip
    return {"columns": columns, "stages": stages}


def _about(rows: Mapping[str, Mapping[str, Any]], ids: list[str]) -> Table:
    chosen = [rows.get(id, {}) for id in ids]
    named = {
        key: _coded([str(row[key]) if row.get(key) else None for row in chosen]) for key in ("language", "subdomain")
    }
    return {"ids": ids, "prompt": [prompt_with_roles(row.get("prompt") or "") for row in chosen], **named}


def prompt_with_roles(prompt: str | list[dict[str, str]]) -> str:
    """A prompt as one text; chat messages below each other, each after its role."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def one_line(value: Any) -> str | None:
    """An answer on one line; None for one that could not be parsed, empty for an empty one."""
    return None if value is None else "" if value in ([], "") else words(value, most=10**9)


def _found_slices(folder: Path, ids: set[str]) -> dict[str, dict[str, list[str]]]:
    """Names of discovered slices by row id and student, if `diagnose` has searched for them."""
    rows = each_line(folder / "diagnose" / "rows.jsonl")
    return {row["id"]: row.get("found") or {} for row in rows if row["id"] in ids}


def _coded(values: Sequence[str | None]) -> Table | None:
    """Texts of which many are equal: the distinct ones and each row's index, -1 for none; None if no row has a text."""
    distinct = dict.fromkeys(value for value in values if value is not None)
    codes = {value: code for code, value in enumerate(distinct)}
    if not codes:
        return None
    return {"values": list(codes), "codes": [-1 if value is None else codes[value] for value in values]}


def _column(values: Sequence[float | None]) -> Any:
    """Numbers of DIGITS digits, null where not known; a single one if all are equal."""
    rounded = [_rounded(value) for value in values]
    return rounded[0] if len(set(rounded)) == 1 else rounded


def _rounded(value: float | None) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _masks(names: Sequence[Sequence[str]]) -> dict[str, str]:
    """For each name a character per row, 1 if the row has the name. names: [rows] lists of names."""
    every = dict.fromkeys(name for row in names for name in row)
    return {name: "".join("1" if name in row else "0" for row in names) for name in every}


# --- under the budget ---


def pack(sources: Mapping[str, RowSource], head: Table, budget: int = BUDGET) -> tuple[str, int | None, dict[str, int]]:
    """The payload, the length at which texts were cut (None if none was), and the number of rows taken of each source.

    sources: `test` and, if there are any, `training` rows. head: further entries of the payload, never cut. budget:
    most characters of the payload. Texts keep the largest length between SHORTEST and LONGEST that fits; if none does,
    a random sample of the rows is taken, of the training rows first.
    """
    most = {"test": TEST_ROWS, "training": TRAINING_ROWS}
    shown = {name: min(source.rows, most[name]) for name, source in sources.items()}
    table = head | _tables(sources, shown)
    while (fit := _fit(table, budget)) is None:
        fewer = _fewer({name: len(_packed(table[name], SHORTEST)) for name in shown}, shown, budget)
        if fewer == shown:  # a single row that is larger than the budget
            fit = _packed(table, SHORTEST), SHORTEST
            break
        shown = fewer
        table = head | _tables(sources, shown)
    payload, length = fit
    return payload, length if max(map(len, _texts(table)), default=0) > length else None, shown


def _tables(sources: Mapping[str, RowSource], shown: Mapping[str, int]) -> dict[str, Table]:
    return {name: source.table(sample(source.rows, shown[name])) for name, source in sources.items()}


def sample(rows: int, size: int) -> list[int]:
    """`size` of `rows` indices, ascending, drawn at random with a fixed seed."""
    return sorted(np.random.default_rng(0).permutation(rows)[:size].tolist())


def _fit(table: Table, budget: int) -> tuple[str, int] | None:
    """The payload with texts as long as fits, and that length; None if not even SHORTEST does.

    Packing 20,000 rows takes a second, so the length is computed instead of searched for: bytes are nearly proportional
    to the characters kept.
    """
    longest = _packed(table, LONGEST)
    if len(longest) <= budget:
        return longest, LONGEST
    shortest = _packed(table, SHORTEST)
    if len(shortest) > budget:
        return None
    lengths = np.array([len(text) for text in _texts(table)])

    def characters(length: int) -> int:
        return int(np.minimum(lengths, length).sum())

    least, most = characters(SHORTEST), characters(LONGEST)
    target = least + (most - least) * (budget - len(shortest)) / (len(longest) - len(shortest))
    length = SHORTEST + bisect.bisect_right(range(SHORTEST, LONGEST), target, key=characters) - 1
    while length > SHORTEST:
        if len(payload := _packed(table, length)) <= budget:
            return payload, length
        length = int(0.95 * length)
    return shortest, SHORTEST


def _fewer(sizes: Mapping[str, int], shown: Mapping[str, int], budget: int) -> dict[str, int]:
    """Numbers of rows that should fit: all test rows, as long as they fit into TEST_FRACTION of the budget.

    sizes: characters that the `shown` rows of each source take. Bytes are not quite proportional to rows, hence 3 % to
    spare.
    """
    room = 0.97 * budget
    test = min(sizes["test"], max(TEST_FRACTION * room, room - sizes.get("training", 0)))
    rooms = {"test": test, "training": room - test}
    return {name: max(1, min(count, int(count * rooms[name] / sizes[name]))) for name, count in shown.items()}


def _texts(value: Any, *, inside: bool = False) -> Iterator[str]:
    """Every text that may be cut."""
    if isinstance(value, str) and inside:
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, inside=inside or key in TEXTS)
    elif isinstance(value, list) and inside:
        for item in value:
            yield from _texts(item, inside=True)


def _packed(table: Table, length: int) -> str:
    text = json.dumps(_shortened(table, length), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = text.encode("utf-8", "replace")  # "replace": half a surrogate pair cannot be encoded
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _shortened(table: Table, length: int) -> Table:
    """A copy in which prompts, gold and answers have at most `length` characters."""
    return {
        key: _cut(value, length) if key in TEXTS else _shortened(value, length) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _cut(value: Any, length: int) -> Any:
    """Every text in a column cut in the middle: prompts often have the instruction first and the question last."""
    if isinstance(value, str):
        tail = length // 3
        return value if len(value) <= length else f"{value[: length - tail - 1]}…{value[-tail:]}"
    if isinstance(value, list):
        return [_cut(item, length) for item in value]
    return {key: _cut(item, length) for key, item in value.items()} if isinstance(value, dict) else value
