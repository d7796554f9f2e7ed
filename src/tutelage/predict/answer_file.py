"""Writes answers to a file: JSON lines, or the input's columns with the answers in CSV, TSV or Parquet.

A file appears when it is finished. Until then the answers are in OUTPUT.predicting, and the same command continues
after an interruption.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.readers import PlacedRow
from tutelage.errors import ConfigError, Kind, Problem, StaleArtifactError, UserError
from tutelage.predict.predictor import AnswerRecord, Answers
from tutelage.run.manifest import differences, locked
from tutelage.utils.checksums import STARTED, file_record
from tutelage.utils.console import Screen
from tutelage.utils.files import discard, is_remains, read_json, read_jsonl, replacing, write_json, write_jsonl
from tutelage.utils.progress import PROGRESS

CHUNK = 512
"""Rows between two saves: what an interrupted command answers again at most."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
LINES = ".jsonl"
WRITTEN = "written.json"
"""In the work folder: size and hash of the output, just before it gets its name."""
_COLUMNS = ("prediction", "raw", "confidence", "answered_by")
"""Columns that a table gets."""


def refuse_unsuitable(output: Path) -> None:
    """Raises ConfigError for a name that would promise another format than is written, and as `refuse_existing`."""
    if not is_table(output) and output.suffix.lower() != LINES:
        found = f"no {output.suffix} is" if output.suffix else "the ending says the format, and without one nothing is"
        raise ConfigError(
            f"--output {output}: {found} written. Type a name that ends in {LINES}, {', '.join(SEPARATORS)} or"
            f" {PARQUET}, such as {output.name.partition('.')[0]}{LINES}"
        )
    refuse_existing(output)


def refuse_existing(output: Path) -> None:
    """Raises UserError for a file that exists: it could be the input, or earlier answers. What this tool left half
    deleted beside it is deleted."""
    folder = _work_folder(output)
    for path in output.parent.glob(f".{folder.name}.deleting-*"):
        if is_remains(path):
            discard(path)
    if output.exists() and not (folder / WRITTEN).is_file():
        raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(output)}))


def is_table(output: Path) -> bool:
    """Whether the file's ending asks for a table with the input's columns, and not for JSON lines."""
    return output.suffix.lower() in (*SEPARATORS, PARQUET)


def _work_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.predicting")


@dataclass(frozen=True)
class AnswerFile:
    """One output file."""

    path: Path
    inputs: dict[str, Any]
    """What the answers depend on: model, rows, options."""

    @property
    def _folder(self) -> Path:
        return _work_folder(self.path)

    def write(self, rows: Sequence[PlacedRow], answers: Answers) -> list[AnswerRecord]:
        """Answer all rows and write the file; returns the answers.

        Raises UserError if the file exists, StaleArtifactError for unfinished answers of another model, other rows or
        other options, ConfigError for columns that the output would have twice.
        """
        refuse_existing(self.path)
        self._check_columns(rows)
        with locked(self._folder, "type another --output", lambda path: (path / STARTED).is_file()):
            self._begin()
            found = self._answered(rows, answers)
            if not self._is_written():
                self._finish(rows, found)
        discard(self._folder)
        return found

    def _is_written(self) -> bool:
        """Whether a process wrote the file and was killed before it deleted its folder. Raises UserError if the file is
        another one."""
        if not self.path.exists():
            return False
        if read_json(self._folder / WRITTEN) != file_record(self.path):
            raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(self.path)}))
        return True

    def _check_columns(self, rows: Sequence[PlacedRow]) -> None:
        if not is_table(self.path):
            return
        taken = [name for name in _COLUMNS if any(name in row for row, _ in rows)]
        if taken:
            raise ConfigError(
                f"the input has a column {taken[0]!r}, and {self.path} gets one of that name: rename it, or write JSON"
                " lines (--output FILE.jsonl)"
            )

    def _begin(self) -> None:
        started = self._folder / STARTED
        if started.is_file() and (changed := differences(read_json(started)["inputs"], self.inputs)):
            raise StaleArtifactError(
                f"{self._folder} holds unfinished answers of another command ({'; '.join(changed)}): type that command"
                f" to continue it, type another --output, or delete {self._folder}"
            )
        write_json(started, {"inputs": self.inputs})
        (self._folder / PROGRESS).touch()

    def _answered(self, rows: Sequence[PlacedRow], answers: Answers) -> list[AnswerRecord]:
        found: list[AnswerRecord] = []
        starts = range(0, len(rows), CHUNK)
        paths = [self._folder / f"answers-{number:05d}.jsonl" for number in range(len(starts))]
        chunks = {path: rows[start : start + CHUNK] for path, start in zip(paths, starts, strict=True)}
        done = sum(len(chunk) for path, chunk in chunks.items() if path.is_file())
        with Screen().progress("rows", len(rows), done) as advance:
            for path, chunk in chunks.items():
                if not path.is_file():
                    write_jsonl(path, answers(chunk))
                    advance(len(chunk))
                found += list(read_jsonl(path))
        return found

    def _finish(self, rows: Sequence[PlacedRow], answers: Sequence[AnswerRecord]) -> None:
        ending = self.path.suffix.lower()
        with replacing(self.path, new=True) as draft:
            if ending == PARQUET:
                _write_parquet(draft, _table(rows, answers))
            elif ending in SEPARATORS:
                _write_csv(draft, _table(rows, answers), SEPARATORS[ending])
            else:
                draft.write_text("".join(f"{_json(answer)}\n" for answer in answers), encoding="utf-8")
            write_json(self._folder / WRITTEN, file_record(draft))


def _table(rows: Sequence[PlacedRow], answers: Sequence[AnswerRecord]) -> list[dict[str, Any]]:
    """The input's columns with those of the answers."""
    return [
        {**row, **{name: value for name, value in answer.items() if name != "id"}}
        for (row, _), answer in zip(rows, answers, strict=True)
    ]


def _write_csv(path: Path, table: Sequence[dict[str, Any]], separator: str) -> None:
    columns = list(dict.fromkeys(name for row in table for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)


def _cell(value: Any) -> Any:
    """Lists and objects, such as entities, become JSON."""
    return _json(value) if isinstance(value, list | dict) else value


def _write_parquet(path: Path, table: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    columns = list(dict.fromkeys(name for row in table for name in row))
    parquet.write_table(pyarrow.table({name: _column([row.get(name) for row in table]) for name in columns}), path)


def _column(values: list[Any]) -> Any:
    """A column of one type; values of several types become JSON text."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except pyarrow.ArrowException:
        return pyarrow.array([value if value is None or isinstance(value, str) else _json(value) for value in values])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
