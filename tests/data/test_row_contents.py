"""Offsets, choices and tokens: what rows leave open is decided once for all rows and splits, or refused with the line
that settles it."""

from __future__ import annotations

import pytest

from helpers.files import CLASSIFY, NER, QA, example, labelled, read, recipe, write
from helpers.project import Command, make_project
from tutelage.data.contents.offsets import cuts_words
from tutelage.data.dataset import load_rows
from tutelage.errors import DataError, Kind
from tutelage.predict.usage import usage_of
from tutelage.recipe.load import load_recipe
from tutelage.run.run_folder import RunFolder

COUNTS = {
    "characters": lambda text: len(text),
    "utf16": lambda text: len(text.encode("utf-16-le")) // 2,
    "bytes": lambda text: len(text.encode()),
}


def offset_row(text: str, named: str, counted: str, **more) -> dict:
    """A row whose only entity is at offsets that count so."""
    unit, _, inclusive = counted.partition("-")
    start = COUNTS[unit](text[: text.index(named)])
    end = start + COUNTS[unit](named) - bool(inclusive)
    return {"text": text, "entities": [{"start": start, "end": end, "type": "DRUG"} | more]}


def offset_project(folder, counted: str, texts, surfaces, **data):
    rows = [offset_row(text, surface, counted) for text, surface in zip(texts, surfaces, strict=True)]
    return recipe(write(folder / "d", train=rows[:-3], test=rows[-3:]), NER, **data)


def emoji_rows(count: int = 12) -> tuple[list[str], list[str]]:
    return [f"💊 Case {n} é got ibuprofen and left" for n in range(count)], ["ibuprofen"] * count


@pytest.mark.parametrize(
    "counted", ["characters", "utf16", "bytes", "characters-inclusive", "utf16-inclusive", "bytes-inclusive"]
)
def test_the_count_of_offsets_shows_in_where_entities_begin_and_end(tmp_path, counted):
    rows = load_rows(offset_project(tmp_path, counted, *emoji_rows()))
    assert {e.answer for split in rows.examples.values() for e in split} == {"DRUG: ibuprofen"}
    assert rows.decided == ({} if counted == "characters" else {"offsets": counted})
    assert any("data.offsets" in note for note in rows.notes) == (counted != "characters")


def test_one_wrong_row_does_not_hide_the_count(tmp_path):
    texts, surfaces = emoji_rows(120)
    rows = [offset_row(text, surface, "utf16") for text, surface in zip(texts, surfaces, strict=True)]
    rows[50]["entities"][0]["start"] = 1  # in the middle of the emoji
    with pytest.raises(DataError) as caught:
        load_rows(recipe(write(tmp_path / "d", train=rows[3:], test=rows[:3]), NER))
    assert [(p.kind, p.place.number) for p in caught.value.problems] == [(Kind.ENTITY_OFFSETS_OUTSIDE, 48)]


def test_a_given_surface_shows_the_count_where_words_do_not(tmp_path):
    texts = [f"💊{n}北京市和上海市" for n in range(8)]
    rows = [offset_row(text, "北京市", "utf16", surface="北京市") for text in texts]
    found = load_rows(recipe(write(tmp_path / "d", train=rows[2:], test=rows[:2]), NER))
    assert found.decided == {"offsets": "utf16"}
    assert found.examples["test"][0].answer == "DRUG: 北京市"


def test_offsets_that_nothing_settles_are_refused_with_the_lines(tmp_path):
    project = offset_project(tmp_path, "characters", [f"💊{n}北京市和上海市" for n in range(8)], ["北京市"] * 8)
    with pytest.raises(DataError) as caught:
        load_rows(project)
    (problem,) = caught.value.problems
    assert problem.kind == Kind.OFFSETS_UNCLEAR and problem.key == "data.offsets"
    assert "'北京市' (data.offsets=characters)" in str(caught.value)
    settled = project.model_copy(update={"data": project.data.model_copy(update={"offsets": "characters"})})
    assert load_rows(settled).examples["test"][0].answer == "DRUG: 北京市"


@pytest.mark.parametrize(
    ("texts", "surfaces"),
    [
        ([f"{n}. 서울에서 만났다" for n in range(9)], ["서울"] * 9),
        ([f"{n} 北京市和上海市" for n in range(9)], ["北京市"] * 9),
        ([f"Fall {n}: Ibuprofentablette" for n in range(9)], ["Ibuprofen"] * 9),
        ([f"💊 Fall {n}: Ibuprofen" for n in range(9)], ["Ibuprofen"] * 9),
        ([f"a {n} b" for n in range(9)], ["b"] * 9),
    ],
)
def test_character_offsets_stay_character_offsets(tmp_path, texts, surfaces):
    rows = load_rows(offset_project(tmp_path, "characters", texts, surfaces))
    assert rows.decided == {}
    assert rows.examples["test"][0].answer == f"DRUG: {surfaces[0]}"


def test_korean_offsets_in_utf_16_units_are_read(tmp_path):
    found = load_rows(offset_project(tmp_path, "utf16", [f"😀 {n} 서울에서 만났다" for n in range(9)], ["서울"] * 9))
    assert found.decided == {"offsets": "utf16"} and found.examples["test"][0].answer == "DRUG: 서울"


def test_offsets_that_cut_most_words_are_refused_whatever_they_count(tmp_path):
    rows = [{"text": f"Case {n}: ibuprofen.", "entities": [[9, 18, "DRUG"]]} for n in range(9)]  # counted from 1
    project = recipe(write(tmp_path / "d", train=rows[2:], test=rows[:2]), NER)
    with pytest.raises(DataError, match=r"9 of 9 entities begin or end inside words, such as 'buprofen.' at \[9, 18\]"):
        load_rows(project)
    meant = project.model_copy(update={"data": project.data.model_copy(update={"offsets": "characters"})})
    assert load_rows(meant).examples["test"][0].answer == "DRUG: buprofen."


def test_where_words_are_cut():
    assert cuts_words("ibuprofen left", 1, 9) and cuts_words("ibuprofen left", 0, 10) and not cuts_words("a b-c", 2, 3)
    assert not cuts_words("서울에서", 0, 2) and cuts_words("서울에서", 1, 2) and not cuts_words("北京市", 1, 2)


# --- choices ---


def choice_rows(answers, choices=("2", "1", "0", "3"), start=0) -> list[dict]:
    return [
        {"question": f"What is {n}?", "choices": list(choices), "answer": answer}
        for n, answer in enumerate(answers, start)
    ]


def answers_of(tmp_path, train, test, choices=("2", "1", "0", "3"), **data) -> tuple[list[str], dict]:
    """Letters of the training rows, and what was decided."""
    folder = write(tmp_path / "d", train=choice_rows(train, choices), test=choice_rows(test, choices, 100))
    dev = write(tmp_path / "v", dev=choice_rows(test, choices, 200)) / "dev.jsonl"
    rows = load_rows(recipe(folder, QA, validation=[str(dev)], **data))
    return [e.answer for e in rows.examples["train"]], rows.decided


@pytest.mark.parametrize(
    ("train", "test", "choices", "letters", "decided"),
    [
        (["1", "0", "3"], ["2"], ("7", "8", "9", "6"), "BAD", "index"),
        (["1", "2"], ["0"], ("7", "1", "9", "6"), "BC", "index"),  # the test rows have the 0
        (["1", "2"], ["4"], ("7", "8", "9", "6"), "AB", "index-from-1"),
        ([1, 2, 4], [3], ("7", "8", "9", "6"), "ABD", "index-from-1"),
        (["1.0", "0.0"], ["3.0"], ("7", "8", "9", "6"), "BA", "index"),
        (["8", "1"], ["9"], ("8", "1", "9", "3"), "AB", "text"),
        ([8, 9], [9], (8, 1, 9, 3), "AC", "text"),
        (["B", "A"], ["D"], ("C", "A", "B", "none"), "BA", "letter"),
        (["B", "C"], ["none"], ("C", "A", "B", "none"), "CA", "text"),
        (["Rome", "B"], ["Bonn"], ("Rome", "Bonn", "Kiel", "Ulm"), "AB", None),
    ],
)
def test_what_names_a_choice_is_one_thing_for_all_splits(tmp_path, train, test, choices, letters, decided):
    found = answers_of(tmp_path, train, test, choices)
    assert found == (list(letters), {"choice_answer": decided} if decided else {})


@pytest.mark.parametrize(
    ("train", "choices", "line"),
    [
        (["1", "1"], ("2", "1", "0", "3"), "data.choice_answer=index-from-1"),
        (["1", "0"], ("2", "1", "0", "3"), "data.choice_answer=text"),
    ],
)
def test_an_index_that_may_be_another_is_refused_with_the_lines(tmp_path, train, choices, line):
    with pytest.raises(DataError) as caught:
        answers_of(tmp_path, train, ["1"], choices)
    assert caught.value.kind == Kind.CHOICE_UNCLEAR
    assert line in str(caught.value) and "data.choice_answer=index)" in str(caught.value)


@pytest.mark.parametrize(("reading", "letter"), [("index", "B"), ("index-from-1", "A"), ("text", "B")])
def test_the_recipe_settles_what_names_a_choice(tmp_path, reading, letter):
    letters, decided = answers_of(tmp_path, ["1"], ["1"], ("2", "1", "0", "3"), choice_answer=reading)
    assert (letters, decided) == ([letter], {})
    with pytest.raises(DataError, match=r"choice_unknown"):
        answers_of(tmp_path, ["Z"], ["1"], choice_answer=reading)


def test_labels_of_the_choices_come_first(tmp_path):
    choices = [{"label": "2", "text": "a"}, {"label": "1", "text": "b"}, {"label": "3", "text": "c"}]
    assert answers_of(tmp_path, ["1", "2"], ["3"], choices)[0] == ["B", "A"]


# --- tokens ---


def token_row(text: str, entity: str, pieces=list) -> dict:
    tokens, start = list(pieces(text)), text.index(entity)
    ends = [sum(map(len, tokens[: n + 1])) for n in range(len(tokens))]
    inside = [start < end <= start + len(entity) for end in ends]
    tags = ["O" if not here else "I-LOC" if n and inside[n - 1] else "B-LOC" for n, here in enumerate(inside)]
    return {"tokens": tokens, "tags": tags}


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("{}월에 한강대교 북쪽 도로가 막혔다", "한강대교"),
        ("{} Rue de la Paix is closed", "Rue de la Paix"),
        ("昨日{}時に新宿駅で会った", "新宿駅"),
        ("我{}点去北京市", "北京市"),
    ],
)
def test_tokens_that_are_characters_make_the_text_as_it_was(tmp_path, text, entity):
    rows = [token_row(text.format(n), entity) for n in range(8)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows[2:], test=rows[:2]), NER))
    assert f"Text: {text.format(0)}\n" in found.examples["test"][0].prompt
    assert found.examples["test"][0].answer == f"LOC: {entity}"
    assert found.decided == {"join_tokens": "characters"}


def test_tokens_with_blanks_between_words_and_noise_among_words(tmp_path):
    pieces = [
        {"tokens": ["Bo", " ", "met", " ", f"Ada{n}"], "tags": ["B-PER", "O", "O", "O", "B-PER"]} for n in range(6)
    ]
    found = load_rows(recipe(write(tmp_path / "a", train=pieces[1:], test=pieces[:1]), NER))
    assert "Text: Bo met Ada0\n" in found.examples["test"][0].prompt
    noise = [{"tokens": ["Bo", "met", f"Ada{n}", "\xa0"], "tags": ["B-PER", "O", "B-PER", "O"]} for n in range(6)]
    found = load_rows(recipe(write(tmp_path / "b", train=noise[1:], test=noise[:1]), NER))
    assert found.decided == {} and "Text: Bo met Ada0" in found.examples["test"][0].prompt


def test_the_characters_of_a_conll_file(tmp_path):
    lines = ["1\tO", "월\tO", " \tO", "한\tB-LOC", "강\tI-LOC", " \tO", "길\tO"]
    ((row, _),) = read(tmp_path / "a.conll", "\n".join(lines))
    assert row == {
        "tokens": ["1", "월", " ", "한", "강", " ", "길"],
        "tags": ["O", "O", "O", "B-LOC", "I-LOC", "O", "O"],
    }
    ((row, _),) = read(tmp_path / "b.conll", "한 B-LOC\n강 I-LOC\n  O\n길 O\n")
    assert row["tokens"] == ["한", "강", " ", "길"]
    with pytest.raises(DataError, match=r"b.conll:2.*tag_missing"):
        read(tmp_path / "b.conll", "한\tB-LOC\n\tO\n")


def test_words_of_chinese_without_a_language_have_no_spaces_and_korean_words_do():
    assert "Text: 我去北京 iPhone\n" not in (
        prompt := example({"tokens": ["我", "去", "北京"], "tags": ["O"] * 3}, NER).prompt
    )
    assert "我去北京" in prompt
    assert "서울 에서" in example({"tokens": ["서울", "에서"], "tags": ["O", "O"]}, NER).prompt


# --- rows of Prodigy ---


def test_what_an_annotator_rejected_is_left_out_and_counted(tmp_path):
    verdicts = ["accept", "reject", "ignore", "accept", "reject", "accept", "accept"]
    spans = [{"start": 0, "end": 2, "label": "PER"}]
    rows = [{"text": f"Bo {n} left", "spans": spans, "answer": verdict} for n, verdict in enumerate(verdicts)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows, test=[{**rows[0], "text": "Bo came"}]), NER))
    assert sum(len(split) for split in found.examples.values()) == 5
    assert "3 rows that an annotator did not accept are left out (answer: 1 ignore, 2 reject)" in found.notes
    with pytest.raises(DataError, match=r"no test row is left of 1 \(4 rows that an annotator") as caught:
        load_rows(recipe(write(tmp_path / "e", train=rows, test=rows[1:2]), NER))
    assert caught.value.kind == Kind.SPLIT_EMPTIED


def test_test_rows_without_a_verdict_are_all_used(tmp_path):
    rows = [{"text": f"row {n}", "label": "a", "answer": ("accept", "reject")[n % 2]} for n in range(8)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows, test=labelled("one", "two")), CLASSIFY))
    assert (len(found.examples["train"]) + len(found.examples["validation"]), len(found.examples["test"])) == (4, 2)


def test_an_answer_that_is_the_gold_one_is_no_verdict(tmp_path):
    rows = [{"text": f"row {n}", "answer": verdict} for n, verdict in enumerate(["accept", "reject"] * 4)]
    data = {"columns": {"label": "answer"}}
    found = load_rows(recipe(write(tmp_path / "d", train=rows[2:], test=rows[:2]), CLASSIFY, **data))
    assert found.labels == ["accept", "reject"]


def test_a_verdict_is_read_in_any_case_and_rows_without_one_are_left_out(tmp_path):
    """One cell without a verdict made every rejected row gold."""
    verdicts = ["Accept", "accept ", "REJECT", None, "", "ignore", "accept", "accept"]
    rows = [{"text": f"row {n}", "label": "a", "answer": verdict} for n, verdict in enumerate(verdicts)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows, test=labelled("one")), CLASSIFY))
    assert sum(len(found.examples[split]) for split in ("train", "validation")) == 4
    note = "4 rows that an annotator did not accept are left out (answer: 2 empty, 1 ignore, 1 reject)"
    assert note in found.notes


def test_accepted_rows_and_empty_cells_are_no_reason_to_leave_rows_out(tmp_path):
    rows = [{"text": f"row {n}", "label": "a", "answer": ("accept", None)[n % 2]} for n in range(8)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows, test=labelled("one")), CLASSIFY))
    assert sum(map(len, found.examples.values())) == 9 and "annotator" not in str(found.notes)


def test_rejected_prompts_of_questions_are_left_out_and_answers_of_questions_stay(tmp_path):
    verdicts = ["accept", "reject"] * 4
    rows = [{"prompt": f"say {n}", "completion": "yes", "answer": verdict} for n, verdict in enumerate(verdicts)]
    found = load_rows(recipe(write(tmp_path / "d", train=rows[2:], test=rows[:2]), QA))
    assert sum(map(len, found.examples.values())) == 4 and "left out (answer: 4 reject)" in str(found.notes)
    rows = [{"question": f"say {n}", "context": "it", "answer": verdict} for n, verdict in enumerate(verdicts)]
    assert (
        sum(map(len, load_rows(recipe(write(tmp_path / "e", train=rows[2:], test=rows[:2]), QA)).examples.values()))
        == 8
    )


def test_verdicts_beside_other_values_are_refused_unless_the_column_is_named(tmp_path):
    verdicts = ["accept", "reject", "accept", "skip", "accept", "accept"]
    rows = [{"text": f"row {n}", "label": "a", "answer": verdict} for n, verdict in enumerate(verdicts)]
    folder = write(tmp_path / "d", train=rows, test=labelled("one"))
    with pytest.raises(DataError, match=r"train.jsonl:4: .*'skip'.*verdict_unknown") as caught:
        load_rows(recipe(folder, CLASSIFY))
    named = recipe(folder, CLASSIFY, columns={"note": "answer"})
    assert caught.value.problems[0].change == "data.columns={note: answer}"
    assert sum(map(len, load_rows(named).examples.values())) == 7
    shown = recipe(folder.with_name("e"), CLASSIFY, template="{text} {answer}:")
    write(tmp_path / "e", train=rows, test=[{"text": "one", "label": "a", "answer": "no"}])
    assert sum(map(len, load_rows(shown).examples.values())) == 7
    # a column of texts, one of which happens to be such a word
    rows = [row | {"answer": f"text {n}" if n else "ignore"} for n, row in enumerate(rows)]
    assert (
        sum(map(len, load_rows(recipe(write(tmp_path / "f", train=rows, test=labelled("one")))).examples.values())) == 7
    )


# --- samples ---


def test_a_sample_has_the_rows_that_are_left(tmp_path):
    repeated = labelled(*(f"both {n}" for n in range(30)))
    folder = write(
        tmp_path / "d",
        train=repeated + labelled(*(f"train {n}" for n in range(30))),
        dev=labelled(*(f"dev {n}" for n in range(20))) + labelled("test 0", "test 1"),
        test=labelled(*(f"test {n}" for n in range(10))) + repeated,
    )
    most = {"max_train_rows": 25, "max_validation_rows": 20, "max_test_rows": 40}
    rows = load_rows(recipe(folder, overlap="drop", **most))
    assert {split: len(examples) for split, examples in rows.examples.items()} == {
        "train": 25, "validation": 20, "test": 40,
    }  # fmt: skip
    assert not {e.prompt for e in rows.examples["train"]} & {e.prompt for e in rows.examples["test"]}
    short = load_rows(recipe(folder, overlap="drop", **most), lambda example: example.prompt[-8] in "13579")
    assert len(short.examples["train"]) < 25 and all(e.prompt[-8] in "13579" for e in short.examples["train"])


def test_a_split_that_ends_empty_is_refused(tmp_path):
    same = labelled("one", "two")
    with pytest.raises(DataError) as caught:
        load_rows(recipe(write(tmp_path / "d", train=same, dev=same, test=same), overlap="drop"))
    assert [(p.kind, p.split) for p in caught.value.problems] == [
        (Kind.SPLIT_EMPTIED, "train"),
        (Kind.SPLIT_EMPTIED, "validation"),
    ]
    assert "2 training rows have a prompt of a later split" in str(caught.value)


# --- what prediction is told ---


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def test_what_the_rows_decided_is_told_to_prediction(command, tmp_path):
    project = make_project(tmp_path, task={"type": "ner", "max_new_tokens": None}, data={"template": None})
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        rows = [token_row(f"{split} {n}월에 한강대교 북쪽", "한강대교") for n in range(count)]
        write(tmp_path / "data", **{split: rows})
    assert command("prepare", project) == 0
    run = RunFolder(load_recipe(project).recipe)
    usage = usage_of(run)
    assert usage["data"]["join_tokens"] == "characters"
    asked = example({"tokens": list("새 길")}, NER, need_answer=False, join_tokens=usage["data"]["join_tokens"])
    assert "Text: 새 길\n" in asked.prompt
