"""Problems as data: errors hold them, list them by kind, and word them in one place."""

from __future__ import annotations

import pickle

import pytest

from tutelage.errors import ConfigError, DataError, Kind, ModelError, Place, Problem, RowsError, UserError
from tutelage.recipe.load import load_recipe


def test_a_text_becomes_a_problem_of_the_errors_class():
    error = ModelError("no such model")
    assert (error.kind, error.problems[0].values, str(error)) == (
        Kind.MODEL,
        {"text": "no such model"},
        "no such model",
    )


def test_a_single_problem_is_a_line_with_its_place_and_kind():
    error = DataError(Problem(Kind.FILE_EMPTY, place=Place("a.csv")))
    assert str(error) == "a.csv: the file is empty: it has no rows  [file_empty]"
    assert str(DataError(Problem(Kind.FILE_EMPTY, place=Place("a.csv")), subject="the data")).splitlines() == [
        "the data has 1 problem:",
        "  - a.csv: the file is empty: it has no rows  [file_empty]",
    ]


def test_rows_of_one_kind_are_one_line_with_the_first_three():
    rows = [Problem(Kind.LABEL_OUTSIDE_SET, "test", row=f"r{n}", values={"label": "x"}) for n in range(5)]
    error = RowsError(*rows, Problem(Kind.PROMPT_WITHOUT_TOKENS, row="e"), labels=["a"])
    first, second = error.lines()
    assert [len(group) for group in error.groups()] == [5, 1] and error.labels == ["a"]
    assert "'x' in test row r2 (and 2 more)  [label_outside_set]" in first and "r3" not in first
    assert str(error).splitlines()[0] == "the data has 6 problems:"
    assert second == "prompts without tokens: row e  [prompt_without_tokens]"


def test_leaks_are_listed_by_pairs_of_splits():
    def leak(split, other):
        return Problem(Kind.ROW_IN_TWO_SPLITS, split, row="a", values={"other_split": other, "other_row": "b"})

    error = RowsError(leak("train", "test"), leak("validation", "test"), leak("train", "test"))
    assert [(group[0].split, len(group)) for group in error.groups()] == [("train", 2), ("validation", 1)]


@pytest.mark.parametrize("place", [Place("a.csv", 3), Place("owner/set/train", 2, "row"), Place("override")])
def test_places_are_written_as_editors_read_them(place):
    assert str(place) in ("a.csv:3", "owner/set/train:row 2", "override") and f"{place}" == str(place)


def test_errors_survive_the_way_between_processes():
    error = RowsError(Problem(Kind.ANSWER_EMPTY, "train", Place("a", 1), values={"column": "label"}), labels=["a"])
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, again.labels, str(again)) == (error.problems, ["a"], str(error))
    assert isinstance(again, UserError)


def test_problems_of_a_recipe_have_key_file_and_line(recipe_file):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file("distill:\n  temprature: 2\n  num_stages: x\n"), ["nonsense", "data.system=Hi"])
    found = {(p.kind, p.key, p.place.number if p.place else None) for p in caught.value.problems}
    assert found == {
        (Kind.KEY_UNKNOWN, "distill.temprature", 9),
        (Kind.VALUE_INVALID, "distill.num_stages", 10),
        (Kind.OVERRIDE_INVALID, None, None),
        (Kind.VALUES_CONFLICT, "data.system", None),
    }
