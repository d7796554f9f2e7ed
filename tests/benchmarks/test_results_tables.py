"""The tables of docs/results.md and README.md are those of results.json, and every number is one of RESULTS.md."""

import re

import pytest

from benchmarks.results_tables import PAGES, ROOT, cell_text, load_tables, table_text, with_tables

RECORD = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
TABLES = load_tables()


def numbers_in(text: str) -> list[float]:
    """The numbers of a text without their signs: a minus may be a dash between two names."""
    return [float(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


def section_of_record(heading: str) -> str:
    """A section of RESULTS.md up to the next heading of any level."""
    return re.split(r"^#+ ", RECORD[RECORD.index(f"# {heading}\n") + 2 :], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_holds_the_tables_that_the_command_writes(path):
    page = path.read_text(encoding="utf-8")
    assert page == with_tables(page, TABLES), "run python -m benchmarks.results_tables"


def test_every_table_is_shown_on_one_page():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert sorted(re.findall(r"<!-- table: ([\w-]+) -->", text)) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table_is_in_its_section_of_the_record(name):
    table = TABLES[name]
    recorded = set(numbers_in("".join(section_of_record(section) for section in table["sections"])))
    cells = [
        cell_text(value, column)
        for row in table["rows"]
        for value, column in zip(row, table["columns"], strict=True)
        if column["name"] != "seeds"
    ]
    assert [number for cell in cells for number in numbers_in(cell) if number not in recorded] == []


@pytest.mark.parametrize("name", ["README.md", "README.ko.md", "docs/results.md"])
def test_every_measured_number_of_the_prose_is_in_the_record(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    measured = re.findall(r"(?<![\w.,])\d+\.\d{1,4}(?![\w]|\.\d)", text)
    recorded = set(numbers_in(RECORD))
    assert len(measured) > 50
    assert [number for number in measured if float(number) not in recorded] == []


def test_the_korean_readme_has_the_numbers_of_the_english_tables():
    rows = [re.findall(r"^\| .*\d\.\d.* \|$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            for name in ("README.md", "README.ko.md")]  # fmt: skip
    cells = [[re.sub(r"^\|[^|]*", "", row) for row in table] for table in rows]
    assert len(cells[0]) == 7
    assert [numbers_in(row) for row in cells[0]] == [numbers_in(row) for row in cells[1]]


def test_a_table_shows_cells_by_what_they_are():
    table = {
        "columns": [
            {"name": "method"},
            {"name": "seeds", "digits": 0},
            {"name": "score"},
            {"name": "gap", "sign": True},
        ],
        "rows": [["`td`", 10, [0.7, 0.65, 0.75], 0.1], ["`sft`", None, [0.5, "best"], "not run"]],
        "sections": ["A run, short (2026-01-02)"],
        "date": "2026-01-02",
        "command": ["make demo"],
    }
    lines = table_text(table).splitlines()
    assert lines[1] == "| method | seeds | score | gap |"
    assert lines[3] == "| `td` | 10 | 0.700 [0.650, 0.750] | +0.100 |"
    assert lines[4] == "| `sft` |  | 0.500 / best | not run |"
    assert "RESULTS.md#a-run-short-2026-01-02" in lines[6] and lines[8] == "    make demo"
