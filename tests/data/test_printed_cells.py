"""Lists in text cells as JSON, Python, numpy and pandas print them: several entries are never glued to one."""

from __future__ import annotations

import pytest

from helpers.files import CLASSIFY, NER, QA, example, read
from tutelage.data.files.printed import opened
from tutelage.errors import DataError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["Ada", "Bo"]', ["Ada", "Bo"]),
        ("['Ada', 'Bo']", ["Ada", "Bo"]),
        ("['Ada' 'Bo']", ["Ada", "Bo"]),
        ("['Ada'\n 'Bo']", ["Ada", "Bo"]),
        ("array(['Ada', 'Bo'],\n      dtype=object)", ["Ada", "Bo"]),
        ("array(['Ada', 'Bo'], dtype='<U3')", ["Ada", "Bo"]),
        ("[\"O'Brien\" 'Bo\\'s' 'a, b']", ["O'Brien", "Bo's", "a, b"]),
        ("[np.str_('Ada'), np.int64(3)]", ["Ada", 3]),
        (
            "{'text': array(['Ada'], dtype=object), 'answer_start': array([16])}",
            {"text": ["Ada"], "answer_start": [16]},
        ),
        ("[{'text': 'Ada', 'at': 1}\n {'text': 'Bo', 'at': 2}]", [{"text": "Ada", "at": 1}, {"text": "Bo", "at": 2}]),
        ("array([[0, 2, 'PER'],\n       [5, 7, 'LOC']], dtype=object)", [[0, 2, "PER"], [5, 7, "LOC"]]),
        ("[list(['a', 'b']) list(['c'])]", [["a", "b"], ["c"]]),
        ("[b'Ada' b'Bo']", ["Ada", "Bo"]),
        ("{'Ada', 'Bo'}", ["Ada", "Bo"]),
        ("('Ada', 'Bo')", "('Ada', 'Bo')"),
        ("[1 2 3]", [1, 2, 3]),
        ("[1. 2.5]", [1.0, 2.5]),
        ("[ True False]", [True, False]),
        ("array([], dtype=object)", []),
        ("{'a': (1, 2), 'b': None, 'c': nan}", {"a": [1, 2], "b": None, "c": None}),
        ("[sic] he left", "[sic] he left"),
        ("[a, b]", "[a, b]"),
        ("['Ada' ... 'Bo']", "['Ada' ... 'Bo']"),
        ("[" * 100_000, "[" * 100_000),
        ("[['a'] * 2]", "[['a'] * 2]"),
    ],
)
def test_a_cell_is_opened_as_it_was_printed(text, value):
    assert opened(text) == value


@pytest.mark.parametrize(
    ("answers", "accepted"),
    [
        ("['Ada' 'Bo']", ["Ada", "Bo"]),
        ("{'text': array(['Ada'], dtype=object), 'answer_start': array([16])}", ["Ada"]),
        ("{'text': array(['Ada', 'Bo'], dtype=object), 'answer_start': array([16, 20], dtype=int32)}", ["Ada", "Bo"]),
        ("[3]", ["[3]"]),
        ("[sic]", ["[sic]"]),
    ],
)
def test_answers_of_a_table_that_pandas_wrote(tmp_path, answers, accepted):
    cell = answers.replace('"', '""')
    ((row, _),) = read(tmp_path / "a.csv", f'question,context,answers\nWho?,Ada or Bo [3] [sic],"{cell}"\n')
    assert example(row, QA).answers == accepted


@pytest.mark.parametrize(
    "answers",
    [
        *("['Ada' ... 'Bo']", "{'text': Series(['Ada'])}", [["Ada"]], {"text": [["Ada"]]}),
        "[array(['Ada'], dtype=object) array(['Bo'], dtype=object)]",
    ],
)
def test_a_printed_object_that_cannot_be_read_is_never_the_gold_answer(answers):
    with pytest.raises(DataError, match=r"cell_not_a_list|cell_invalid"):
        example({"question": "Who?", "context": "Ada", "answers": answers}, QA)


def test_choices_tokens_entities_and_labels_as_numpy_prints_them():
    found = example({"question": "2 + 2?", "choices": "['3' '4']", "answer": "B"}, QA)
    assert "A. 3\nB. 4" in found.prompt
    assert example({"tokens": "['Bo' 'left']", "tags": "['B-PER' 'O']"}, NER).answer == "PER: Bo"
    spans = "[{'start': 0, 'end': 2, 'label': 'PER'}\n {'start': 7, 'end': 10, 'label': 'PER'}]"
    assert example({"text": "Bo met Ada", "entities": spans}, NER).answer == "PER: Bo\nPER: Ada"
    with pytest.raises(DataError, match="multi-label"):
        example({"text": "a", "label": "['x' 'y']"}, CLASSIFY)


@pytest.mark.parametrize("text", [["a", "b"], {"a": 1}, b"a"])
def test_a_list_where_a_text_belongs_is_no_prompt(text):
    with pytest.raises(DataError, match="cell_invalid"):
        example({"text": text, "label": "x"}, CLASSIFY)
    with pytest.raises(DataError, match="cell_invalid"):
        example({"prompt": "a", "completion": {"a": text}}, CLASSIFY)
