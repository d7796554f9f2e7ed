"""What the report's browser for rows is given: rows as columns, packed under a budget of bytes, and the script that
shows them.

The page carries its rows as gzip in base64, so that 20,000 of them fit and that no text of a row can meet the parser of
HTML. What does not fit is cut in a fixed order, and said: texts get shorter, then rows are left out evenly. Reads
artefacts only.
"""

from __future__ import annotations

import base64
import bisect
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.analysis.run_results import Results, read_lines
from tutelage.report.page import TEMPLATES, words

if TYPE_CHECKING:
    from markupsafe import Markup

BUDGET = 3_500_000
"""Most characters of base64; with the rest of the page this stays under 5 MB."""
LONGEST, SHORTEST = 2_000, 120
"""Characters of a text: where cutting starts, and where rows are left out instead."""
TRAINING_ROWS = 10_000
MODELS = 12
"""Most models whose answers are carried; the first ones of the order in which the report speaks of them."""
DIGITS = 4
"""Significant digits of losses, scores, confidences and weights."""
TEST_SHARE = 0.8
"""Of the budget, for the test rows, where neither they nor the training rows would fit."""
TEXTS = ("prompt", "gold", "answer", "unread")
"""Columns that may be cut."""

Table = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Rows of one kind, and how a choice of them becomes columns."""

    rows: int
    table: Callable[[Sequence[int]], Table]
    """Places, ascending, to columns in that order."""


def browser_data(results: Results, folder: Path) -> dict[str, Any] | None:
    """What rows.jinja needs; None where no model has predictions.

    `models` (in the payload; teacher, anchor, main student, then the others), `left_out` (number of models that are
    not),
    `main` (the student compared first; None if there is none), `test` and `training` (`rows` there are, `shown` in the
    payload; training None where the main student has no weights), `length` (characters at which texts were cut; None if
    none was), and
    `payload`: base64 of gzip of JSON, at most BUDGET characters. page.js reads it; its form is theirs alone.

    Raises DataError for a file that is there and cannot be read.
    """
    ordered = _models(results)
    if not ordered:
        return None
    models = ordered[:MODELS]
    sources = {"test": _test_rows(results, models, _found(folder))}
    if training := _training_rows(results, folder):
        sources["training"] = training
    main = next((name for name in (results.main, "anchor", *models) if name in models and name != "teacher"), None)
    payload, length, shown = pack(sources, {"models": models, "main": main})
    counts = {name: {"rows": source.rows, "shown": shown[name]} for name, source in sources.items()}
    cut = {"payload": payload, "length": length, "left_out": len(ordered) - len(models)}
    return {"models": models, "main": main, "training": None, **counts, **cut}


def script_text() -> str:
    """The script of the page: sorting and filtering of tables, and the browser for rows."""
    return (TEMPLATES / "report" / "page.js").read_text(encoding="utf-8")


def page_script() -> Markup:
    """The script as an element, to stand last in the body."""
    from markupsafe import Markup

    return Markup("<script>" + script_text() + "</script>")  # our own file, in which no end tag stands


def script_hash() -> str:
    """Source for the page's Content-Security-Policy that lets this script run and no other: sha256-..., without
    quotes."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script_text().encode()).digest()).decode()


# --- rows as columns ---


def _models(results: Results) -> list[str]:
    order = ("teacher", "anchor", results.main, *results.distilled, *results.predictions)
    names = list(dict.fromkeys(name for name in order if name in results.predictions))
    return [name for name in names if name != "student"] + ["student"] * (
        "student" in names
    )  # the untrained one is read last


def _test_rows(results: Results, models: list[str], found: dict[str, dict[str, list[str]]]) -> Source:
    answered = dict.fromkeys(id for model in models for id in results.predictions[model])
    ids = [id for id in results.rows if id in answered] + [id for id in answered if id not in results.rows]

    def table(places: Sequence[int]) -> Table:
        chosen = [ids[place] for place in places]
        lines = {model: [results.predictions[model].get(id) for id in chosen] for model in models}
        gold = [next(line for line in row if line)["gold"] for row in zip(*lines.values(), strict=True)]
        answers = {model: _answers(mine, lines.get("teacher")) for model, mine in lines.items()}
        for model in models:
            answers[model]["found"] = _masks([found.get(id, {}).get(model, []) for id in chosen])
        return {**_about(results.rows, chosen), "gold": _coded([one_line(value) for value in gold]), "models": answers}

    return Source(len(ids), table)


def _answers(lines: list[dict[str, Any] | None], teacher: list[dict[str, Any] | None] | None) -> Table:
    """One model's columns; `outcome` and `side` are made from the exact values, which the rounded ones could not tell
    apart."""
    filled = [line or {} for line in lines]
    columns = {key: _column([line.get(key) for line in filled]) for key in ("score", "nll", "confidence")}
    unread = {n: str(line.get("raw") or "") for n, line in enumerate(filled) if line and line.get("prediction") is None}
    against = [line or {} for line in teacher or [None] * len(lines)]
    outcome = [_letter(_gap(a, b, "score"), "ltw") for a, b in zip(filled, against, strict=True)]
    side = [_letter(_gap(a, b, "nll"), "stt") for a, b in zip(filled, against, strict=True)]
    answer = _coded([one_line(line.get("prediction")) for line in filled])
    return {"answer": answer, "unread": unread, **columns, "outcome": "".join(outcome), "side": "".join(side)}


def _gap(mine: dict[str, Any], other: dict[str, Any], key: str) -> float | None:
    both = (mine.get(key), other.get(key))
    return both[0] - both[1] if all(isinstance(value, int | float) and math.isfinite(value) for value in both) else None


def _letter(gap: float | None, below_equal_above: str) -> str:
    """`-` where it is not known."""
    return "-" if gap is None else below_equal_above[1 + (gap > 0) - (gap < 0)]


def _training_rows(results: Results, folder: Path) -> Source | None:
    """Losses and weights of the training rows of the main student, stage by stage; None where it has none."""
    path = folder / "distill" / (results.main or "") / "weights.jsonl"
    by_stage: dict[int, dict[str, dict[str, Any]]] = {}
    for line in read_lines(path) if results.main else ():
        by_stage.setdefault(line["stage"], {})[line["id"]] = line
    if not by_stage:
        return None
    weighed = next(iter(by_stage.values()))
    about = {
        row["id"]: row
        for row in read_lines(folder / "prepare" / "rows.jsonl")
        if row["split"] == "train" and row["id"] in weighed
    }
    ids = [id for id in weighed if id in about]
    plain = {
        line["id"]: line["nll"] for line in read_lines(folder / "anchor" / "sample_loss.jsonl") if line["id"] in weighed
    }

    def table(places: Sequence[int]) -> Table:
        chosen = [ids[place] for place in places]
        gold = _coded([about[id]["answer"] for id in chosen])  # the text that is learned, with its lines
        return {**_about(about, chosen), "gold": gold, **_stages(by_stage, chosen, plain)}

    return Source(len(ids), table) if ids else None


def _stages(by_stage: dict[int, dict[str, dict[str, Any]]], ids: list[str], plain: dict[str, float]) -> Table:
    """`stages` name places in `columns`: stages that follow the same checkpoint share its losses.

    plain: the anchor's losses, for stages whose weights were not made from them.
    """
    columns: list[Any] = []

    def place(values: Sequence[float | None]) -> int:
        column = _column(values)
        if column not in columns:
            columns.append(column)
        return columns.index(column)

    stages = []
    for stage, lines in sorted(by_stage.items()):
        mine = [lines.get(id, {}) for id in ids]
        anchor = [
            plain.get(id) if line.get("anchor_nll") is None else line["anchor_nll"]
            for id, line in zip(ids, mine, strict=True)
        ]
        checkpoint = next(iter(lines.values()))["checkpoint"]
        losses = {"anchor": place(anchor), "teacher": place([line.get("teacher_nll") for line in mine])}
        stages.append(
            {"stage": stage, "checkpoint": checkpoint, **losses, "weight": place([line.get("weight") for line in mine])}
        )
    return {"columns": columns, "stages": stages}


def _about(rows: dict[str, dict[str, Any]], ids: list[str]) -> Table:
    mine = [rows.get(id, {}) for id in ids]
    named = {
        key: _coded([str(row[key]) if row.get(key) else None for row in mine]) for key in ("language", "subdomain")
    }
    return {"ids": ids, "prompt": [prompt_text(row.get("prompt") or "") for row in mine], **named}


def prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """A prompt as it is read: chat messages one under the other, each after its role."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def one_line(value: Any) -> str | None:
    """An answer as one line; None for one that could not be read, empty where nothing was answered."""
    return None if value is None else "" if value in ([], "") else words(value, most=10**9)


def _found(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Names of found slices by id and student, where `diagnose` has looked for them."""
    return {row["id"]: row.get("found") or {} for row in read_lines(folder / "diagnose" / "rows.jsonl")}


def _coded(values: Sequence[str | None]) -> Table | None:
    """Texts of which many are equal: the different ones, and each row's place among them, -1 for none. None: no row has
    one."""
    places = {value: place for place, value in enumerate(dict.fromkeys(value for value in values if value is not None))}
    return (
        {"values": list(places), "codes": [-1 if value is None else places[value] for value in values]}
        if places
        else None
    )


def _column(values: Sequence[float | None]) -> Any:
    """Numbers of DIGITS digits, null where not known; a single one where all are equal."""
    rounded = [_rounded(value) for value in values]
    return rounded[0] if len(set(rounded)) == 1 else rounded


def _rounded(value: float | None) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _masks(names: Sequence[Sequence[str]]) -> dict[str, str]:
    """For each name a character a row, 1 where the row has it."""
    every = dict.fromkeys(name for row in names for name in row)
    return {name: "".join("1" if name in row else "0" for row in names) for name in every}


# --- under the budget ---


def pack(sources: dict[str, Source], head: Table, budget: int = BUDGET) -> tuple[str, int | None, dict[str, int]]:
    """The payload, the length at which texts were cut (None if none was), and the number of rows taken of each source.

    sources: `test` and, where there are, `training`. head: goes in as it is. budget: most characters of the payload.
    Texts keep the greatest length between SHORTEST and LONGEST that fits; where none does, rows are left out evenly,
    training rows first.
    """
    shown = {name: source.rows for name, source in sources.items()}
    if "training" in shown:
        shown["training"] = min(shown["training"], TRAINING_ROWS)
    whole = head | _tables(sources, shown)
    while (fit := _fit(whole, budget)) is None:
        fewer = _fewer({name: len(_packed(whole[name], SHORTEST)) for name in shown}, shown, budget)
        if fewer == shown:  # a single row that is larger than the budget
            fit = _packed(whole, SHORTEST), SHORTEST
            break
        shown = fewer
        whole = head | _tables(sources, shown)
    payload, length = fit
    return payload, length if max(map(len, _texts(whole)), default=0) > length else None, shown


def _tables(sources: dict[str, Source], shown: dict[str, int]) -> dict[str, Table]:
    return {name: source.table(evenly(source.rows, shown[name])) for name, source in sources.items()}


def evenly(rows: int, keep: int) -> list[int]:
    """`keep` of `rows` places, ascending, drawn without regard to what is there; the same ones each time."""
    return sorted(np.random.default_rng(0).permutation(rows)[:keep].tolist())


def _fit(whole: Table, budget: int) -> tuple[str, int] | None:
    """The payload with texts as long as fits, and that length; None if not even SHORTEST does.

    Packing 20,000 rows takes a second, so the length is not searched: bytes are nearly in proportion to the characters
    kept.
    """
    longest = _packed(whole, LONGEST)
    if len(longest) <= budget:
        return longest, LONGEST
    shortest = _packed(whole, SHORTEST)
    if len(shortest) > budget:
        return None
    lengths = np.array([len(text) for text in _texts(whole)])

    def characters(length: int) -> int:
        return int(np.minimum(lengths, length).sum())

    least, most = characters(SHORTEST), characters(LONGEST)
    room = least + (most - least) * (budget - len(shortest)) / (len(longest) - len(shortest))
    length = SHORTEST + bisect.bisect_right(range(SHORTEST, LONGEST), room, key=characters) - 1
    while length > SHORTEST:
        if len(payload := _packed(whole, length)) <= budget:
            return payload, length
        length = int(0.95 * length)
    return shortest, SHORTEST


def _fewer(sizes: dict[str, int], shown: dict[str, int], budget: int) -> dict[str, int]:
    """Numbers of rows that should fit: the test rows are all kept as long as TEST_SHARE of the budget holds them.

    sizes: characters that the `shown` rows of each source take. Bytes are not quite in proportion to rows, hence the 3
    % to spare.
    """
    room = 0.97 * budget
    test = min(sizes["test"], max(TEST_SHARE * room, room - sizes.get("training", 0)))
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
    return base64.b64encode(
        gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)
    ).decode()  # "replace": half a surrogate


def _shortened(table: Table, length: int) -> Table:
    """A copy in which prompts, gold and answers have at most `length` characters."""
    return {
        key: _cut(value, length) if key in TEXTS else _shortened(value, length) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _cut(value: Any, length: int) -> Any:
    """Every text in a column cut in the middle: a prompt says at its start what it is and often asks at its end."""
    if isinstance(value, str):
        tail = length // 3
        return value if len(value) <= length else f"{value[: length - tail - 1]}…{value[-tail:]}"
    if isinstance(value, list):
        return [_cut(item, length) for item in value]
    return {key: _cut(item, length) for key, item in value.items()} if isinstance(value, dict) else value
