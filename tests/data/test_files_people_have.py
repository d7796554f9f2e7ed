"""Encodings, separators, CoNLL-U, broken and huge files: read as they are meant, or refused with the way out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import pytest

from helpers.files import CLASSIFY, NER, QA, example, labelled, read, recipe, write
from tutelage.data.dataset import load_rows
from tutelage.data.files.text import likely_encodings
from tutelage.data.readers import read_rows
from tutelage.errors import DataError, Kind

SAMPLES = {
    "cp932": "文章,ラベル\n①㈱髙田 ～ 昨日の会議,はい\n新宿駅で会いました,いいえ\n",
    "euc-jp": "文章,ラベル\n昨日の会議は長かった,はい\n新宿駅で会いました,いいえ\n",
    "cp949": "글,레이블\n어제 회의가 길었다,예\n서울에서 만났습니다,아니요\n",
    "gb18030": "文本,标签\n昨天的会议很长,是\n我们在北京见面了,否\n",
    "big5": "文本,標籤\n昨天的會議很長,是\n我們在台北見面了,否\n",
    "cp1252": "Größe,Etikett\nEs war schön – „sehr“,ja\nÇa a été déjà vu,nein\n",
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_the_message_names_the_encoding_and_a_line_that_works(tmp_path, encoding):
    path = tmp_path / "a.csv"
    with pytest.raises(DataError) as caught:
        read(path, SAMPLES[encoding].encode(encoding))
    (problem,) = caught.value.problems
    assert (problem.kind, problem.change) == (Kind.ENCODING_NOT_UTF8, f"data.encoding={encoding}")
    assert f"iconv -f {encoding.upper()} -t UTF-8 {path}" in str(caught.value)
    rows = [row for row, _ in read_rows([str(path)], encoding)]
    assert [list(row.values()) for row in rows] == [line.split(",") for line in SAMPLES[encoding].splitlines()[1:]]


def test_the_guess_does_not_depend_on_where_the_sample_ends():
    text = SAMPLES["cp949"] * 50
    assert likely_encodings(text.encode("cp949")[:2001])[0] == "cp949"
    assert likely_encodings(b"caf\xe9 \xe0 la cr\xe8me\n") == ["cp1252"]
    assert likely_encodings(b"\x81\n") == ["iso-8859-1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_believed(tmp_path, encoding, ending):
    text = "text,label\n배송 💊,a\n" if ending == ".csv" else '{"text": "배송 💊", "label": "a"}'
    assert read(tmp_path / f"a{ending}", text.encode(encoding))[0][0] == {"text": "배송 💊", "label": "a"}


def test_utf_16_without_a_mark_is_told_and_read_with_the_line(tmp_path):
    text = "text,label\n배송,a\n".encode("utf-16-le")
    with pytest.raises(DataError, match=r"data.encoding=utf-16-le"):
        read(tmp_path / "a.csv", text)
    assert read_rows([str(tmp_path / "a.csv")], "utf-16-le")[0][0] == {"text": "배송", "label": "a"}


def test_a_stray_null_character_makes_no_utf_16(tmp_path):
    assert read(tmp_path / "a.csv", b"text,label\nrow\0 one,a\n")[0][0] == {"text": "row\0 one", "label": "a"}


def test_the_encoding_of_the_recipe_is_for_files_that_are_not_utf_8(tmp_path):
    folder = write(tmp_path / "d", test=labelled("배송 하나"))
    (tmp_path / "train.csv").write_bytes("text,label\n배송 둘,a\n배송 셋,a\n".encode("cp949"))
    rows = load_rows(recipe(folder, train=[str(tmp_path / "train.csv")], encoding="cp949"))
    assert {e.prompt.split("Text: ")[1][:4] for split in rows.examples.values() for e in split} == {
        "배송 하", "배송 둘", "배송 셋",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"not ASCII text.*data.encoding=cp949"):
        load_rows(recipe(folder, train=[str(tmp_path / "train.csv")], encoding="ascii"))
    with pytest.raises(ValueError, match="no encoding of text"):
        recipe(folder, encoding="klingon")


# --- tables ---


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("told", ["", "sep={}\n", '"sep={}"\n', "sep={}\r\n"])
def test_separators_and_the_line_of_excel(tmp_path, separator, told):
    rows = [["a", "b"], ['say "no", then; or | \t', "x"]]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(told.format(separator))
        csv.writer(file, delimiter=separator).writerows([["text", "label"], *rows])
    found = read_rows([str(path)])
    assert [list(row.values()) for row, _ in found] == rows
    assert found[0][1].number == (3 if told else 2)


def test_a_header_with_a_comma_inside_and_semicolons_between(tmp_path):
    ((row, _), _) = read(tmp_path / "a.csv", "text, whole;label\none;a\ntwo;b\n")
    assert row == {"text, whole": "one", "label": "a"}


def test_what_is_too_large_or_too_deep_ends_in_a_message_in_seconds(tmp_path):
    began, huge = time.process_time(), "x" * 50_000_000
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    inside = '{"text": ' + "[" * 500 + "]" * 500 + "}"
    for name, content, kind in [
        ("a.csv", f"text,label\n{huge},a\n", Kind.CELL_TOO_LARGE),
        ("b.csv", 'text,label\n"one,a\n' + "two,b\n" * 3_000_000, Kind.CELL_TOO_LARGE),
        ("a.jsonl", deep, Kind.JSON_INVALID),
        ("a.json", f"[{deep}]", Kind.JSON_INVALID),
        ("b.jsonl", inside, Kind.JSON_INVALID),
        ("b.json", f"[{inside}]", Kind.JSON_INVALID),
        ("c.jsonl", '{"text": ' + "9" * 5000 + "}", Kind.JSON_INVALID),
    ]:
        with pytest.raises(DataError) as caught:
            read(tmp_path / name, content)
        assert caught.value.kind == kind and len(str(caught.value)) < 1000
    for row in ({"text": huge, "label": "a"}, {"prompt": "a", "completion": huge}):
        with pytest.raises(DataError) as caught:
            example(row, CLASSIFY)
        assert caught.value.kind == Kind.CELL_TOO_LARGE
    chat = [{"role": "user", "content": huge}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="cell_too_large"):
        example({"messages": chat}, CLASSIFY, chat_template=True)
    assert time.process_time() - began < 10


def test_a_message_shows_no_more_than_can_be_read():
    with pytest.raises(DataError) as caught:
        example({"text": "a", "entities": "[" + "x" * 1_000_000}, NER)
    assert "[xxx" in str(caught.value) and len(str(caught.value)) < 5000


@pytest.mark.parametrize("place", ["text", "id", "label"])
def test_half_a_character_is_told_with_its_line(tmp_path, place):
    good = {"id": "1", "text": "whole \U0001f48a", "label": "a"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {place: "hi \ud83d"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a.jsonl:2: .*\\ud83d, half of a character") as caught:
        read_rows([str(path)])
    assert caught.value.kind == Kind.HALF_CHARACTER


def test_half_a_character_in_a_list_in_a_cell_or_a_json_table(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": "\udc00"}]}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"a.json:row 1: the column 'messages' holds \\udc00"):
        read_rows([str(path)])
    with pytest.raises(DataError, match=r"f:1: .*\\ud83d"):
        example({"question": "?", "context": "c", "answers": '["a \\ud83d"]'}, QA)


LISTED = {
    "token": (NER, {"tokens": ["x" * 200, "Bo"], "tags": ["O", "B-PER"]}),
    "many tokens": (NER, {"tokens": ["x" * 9] * 20, "tags": ["O"] * 20}),
    "printed tokens": (NER, {"tokens": str(["x" * 200, "Bo"]), "tags": ["O", "B-PER"]}),
    "history": (CLASSIFY, {"instruction": "a", "output": "b", "history": [["x" * 200, "b"]]}),
    "choices": (QA, {"question": "a", "choices": ["x" * 200, "b"], "answer": "b"}),
    "answers": (QA, {"question": "a", "context": "b", "answers": {"text": ["x" * 200]}}),
    "allowed": (CLASSIFY, {"text": "a", "label": "b", "labels": ["x" * 200, "b"]}),
    "entities": (NER, {"text": "a", "entities": [{"type": "x" * 200, "text": "a"}]}),
}


@pytest.mark.parametrize(("task", "row"), LISTED.values(), ids=LISTED)
def test_texts_in_lists_are_as_limited_as_others(tmp_path, monkeypatch, task, row):
    monkeypatch.setattr("tutelage.data.files.problems.LARGEST_CELL", 150)
    with pytest.raises(DataError) as caught:
        example(row, task)
    assert caught.value.kind == Kind.CELL_TOO_LARGE
    with pytest.raises(DataError, match=r"a.jsonl:2: .*cell_too_large"):
        read(tmp_path / "a.jsonl", "{}\n" + json.dumps(row))


def test_what_several_cells_make_is_limited_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.data.files.problems.LARGEST_CELL", 150)
    for template in ("{text} {text}", "{text} {title}"):
        with pytest.raises(DataError, match="cell_too_large"):
            example({"text": "x" * 90, "title": "y" * 90, "label": "b"}, CLASSIFY, template=template)
    with pytest.raises(DataError, match=r"a.conll:1: .*cell_too_large"):
        read(tmp_path / "a.conll", f"{'x' * 100} O\n{'y' * 100} O\n")


# --- CoNLL ---


def rows_of(tmp_path, text: str, name: str = "a.conll") -> list[tuple[list[str], list[str]]]:
    return [(row["tokens"], row["tags"]) for row, _ in read(tmp_path / name, text)]


def test_a_first_column_that_counts_tokens_is_no_token(tmp_path):
    text = "1\tBo\tB-PER\n2\tmet\tO\n3\t0\tO\n\n# text = Hi\n1\tHi\tO\n"
    assert rows_of(tmp_path, text) == [(["Bo", "met", "0"], ["B-PER", "O", "O"]), (["Hi"], ["O"])]
    assert rows_of(tmp_path, "0 Bo NN B-PER\n1 met VB O\n") == [(["Bo", "met"], ["B-PER", "O"])]


def test_numbers_that_do_not_count_are_tokens(tmp_path):
    assert rows_of(tmp_path, "1\tCD\tB-QTY\n2\tCD\tI-QTY\n\nBo\tNN\tB-PER\n")[0][0] == ["1", "2"]
    assert rows_of(tmp_path, "1\tB-QTY\n2\tI-QTY\n")[0][0] == ["1", "2"]


COUNTS = {
    "from 2": "2\tBo\tB-PER\n3\tmet\tO\n4\t0\tO\n\n2\tHi\tO\n3\tBo\tB-PER\n",
    "a gap": "1\tBo\tB-PER\n2\tmet\tO\n4\t0\tO\n\n1\tHi\tO\n2\tBo\tB-PER\n",
    "across sentences": "1\tBo\tB-PER\n2\tmet\tO\n3\t0\tO\n\n4\tHi\tO\n5\tBo\tB-PER\n\n6\tNo\tO\n",
}


@pytest.mark.parametrize("text", COUNTS.values(), ids=COUNTS)
def test_numbers_count_tokens_if_they_rise_in_every_sentence(tmp_path, text):
    assert rows_of(tmp_path, text)[:2] == [(["Bo", "met", "0"], ["B-PER", "O", "O"]), (["Hi", "Bo"], ["O", "B-PER"])]


@pytest.mark.parametrize(
    ("odd", "line"),
    [("1\tBo\tB-PER\n3\tmet\tO\n2\tAda\tO\n", 9), ("1\tBo\tB-PER\nmet\tVB\tO\n", 8), ("Bo\tNN\tB-PER\n", 7)],
    ids=["falls", "one without", "none"],
)
def test_a_file_that_counts_tokens_in_some_sentences_only_is_refused(tmp_path, odd, line):
    counted = "1\tBo\tB-PER\n2\tmet\tO\n\n"
    with pytest.raises(DataError, match="counts the tokens in 3 of 4 sentences") as caught:
        read(tmp_path / "a.conll", counted * 2 + odd + "\n" + counted)
    (problem,) = caught.value.problems
    assert problem.kind == Kind.CONLL_NUMBERS_UNCLEAR and problem.place.number == line
    # as in a corpus with a few tables
    assert len(rows_of(tmp_path, counted * 2 + "Bo\tNN\tB-PER\n\n" * 18)) == 20


def test_conll_u_has_words_for_several_words_that_are_not_there_and_notes(tmp_path):
    lines = [
        *("# newdoc id = d", "# text = vais au lac", "1\tvais\taller\tVERB\t_\t_\t0\troot\t_\tNER=O"),
        "2-3\tau\t_\t_\t_\t_\t_\t_\t_\t_",
        *("2\tà\tà\tADP\t_\t_\t4\tcase\t_\tNER=B-LOC|x=1", "3\tle\tle\tDET\t_\t_\t4\tdet\t_\tNER=I-LOC"),
        *("3.1\tvu\t_\t_\t_\t_\t_\t_\t_\tNER=O", "4\tlac\tlac\tNOUN\t_\t_\t1\tobl\t_\tNER=I-LOC|SpaceAfter=No"),
    ]
    assert rows_of(tmp_path, "\n".join(lines), "a.conllu") == [(["vais", "au", "lac"], ["O", "B-LOC", "I-LOC"])]


def test_outer_entities_are_those_of_germeval_and_chunks_are_none(tmp_path):
    nested = "#\tde.wikipedia.org [2010]\n1\tUni\tB-ORG\tO\n2\tBonn\tI-ORG\tB-LOC\n3\tin\tO\tO\n4\tKiel\tB-LOC\tO\n"
    ((row, _),) = read(tmp_path / "a.conll", nested)
    assert row["tags"] == ["B-ORG", "I-ORG", "O", "B-LOC"] and row["inner_tags"] == ["O", "B-LOC", "O", "O"]
    chunks = "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nIt PRP B-NP O\n"
    assert [tags for _, tags in rows_of(tmp_path, chunks)] == [["B-ORG", "O"], ["O"]]
    assert rows_of(tmp_path, "It PRP B-NP O\n")[0][1] == ["O"]


# --- chats ---


def test_system_and_history_are_part_of_the_prompt():
    row = {"instruction": "And 2?", "input": "", "output": "red", "system": "Sort.", "history": [["First is 1", "ok"]]}
    assert example(row, CLASSIFY).prompt == "Sort.\nFirst is 1\nok\nAnd 2?"
    turns = [("system", "Sort."), ("user", "First is 1"), ("assistant", "ok"), ("user", "And 2?")]
    for history in (row["history"], json.dumps(row["history"]), "[['First is 1' 'ok']]"):
        found = example(row | {"history": history}, CLASSIFY, chat_template=True)
        assert found.prompt == [{"role": role, "content": text} for role, text in turns]
    chat = [{"from": "human", "value": "And 2?"}, {"from": "gpt", "value": "red"}]
    found = example({"conversations": chat, "system": "Sort."}, CLASSIFY, chat_template=True, system="Other.")
    assert [turn["content"] for turn in found.prompt] == ["Sort.", "And 2?"]
    assert example(row | {"system": None, "history": []}, CLASSIFY).prompt == "And 2?"
    assert example(row | {"history": "before"}, CLASSIFY, template="{system} {instruction}").prompt == "Sort. And 2?"
    with pytest.raises(DataError, match="history"):
        example(row | {"history": "before"}, CLASSIFY)


# --- exports ---


@pytest.mark.parametrize(
    ("row", "task", "change"),
    [
        ({"text": "Bo met Ada", "label": [[0, 2, "PER"]]}, NER, {"entities": "label"}),
        ({"data": "Bo met Ada", "labels": "[[0, 2, 'PER']]"}, NER, {"text": "data", "entities": "labels"}),
        ({"text": "a", "options": [{"id": "x"}], "accept": ["x"], "answer": "accept"}, CLASSIFY, {"label": "accept"}),
    ],
)
def test_an_export_that_a_mapping_reads_is_told_the_mapping(row, task, change):
    with pytest.raises(DataError) as caught:
        example(row, task)
    listed = ", ".join(f"{ours}: {theirs}" for ours, theirs in change.items())
    assert caught.value.problems[0].change == f"data.columns={{{listed}}}"
    assert example(row, task, columns=change).answer in ("PER: Bo", "x")


def test_entities_of_doccano_and_label_studio(tmp_path):
    doccano = [{"id": 1, "label": "PER", "start_offset": 0, "end_offset": 2}]
    assert example({"text": "Bo met Ada", "entities": doccano, "relations": []}, NER).answer == "PER: Bo"
    minimal = [{"start": 0, "end": 2, "text": "Bo", "labels": ["PER"]}]
    assert example({"text": "Bo met Ada", "label": minimal}, NER, columns={"entities": "label"}).answer == "PER: Bo"
    with pytest.raises(DataError, match=r"Label Studio.*JSON-MIN.*data.columns=\{entities: label\}"):
        example({"id": 1, "data": {"text": "Bo"}, "annotations": [{"result": []}]}, NER)


def test_questions_without_an_answer_are_told_what_to_do():
    row = {"question": "Who?", "context": "No one.", "answers": {"text": [], "answer_start": []}, "is_impossible": True}
    with pytest.raises(DataError, match=r"is_impossible.*unanswerable"):
        example(row, QA)


@pytest.mark.parametrize("name", ["train.json", "a.ann"])
def test_the_conversion_in_the_message_works(tmp_path, name):
    """spaCy's pairs, and BRAT's texts with annotations beside them."""
    if name == "train.json":
        content = json.dumps([["Bo met Ada", {"entities": [[0, 2, "PER"]]}]])
    else:
        content = "T1\tPER 0 2\tBo\nT2\tPER 0 2;7 10\tBo Ada\nR1\tx Arg1:T1\n"
        (tmp_path / "a.txt").write_text("Bo met Ada")
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, content)
    command = str(caught.value).partition("python -c ")[2].partition("> train.jsonl")[0]
    script = command.strip().strip('"')
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "train.jsonl").write_text(done.stdout)
    ((row, _),) = read_rows([str(tmp_path / "train.jsonl")])
    assert example(row, NER).answer == "PER: Bo"


def test_definitions_of_tools_are_not_read_and_that_is_said(tmp_path):
    for split in ("train", "test"):
        chats = [
            [{"role": "user", "content": f"{split} {n}"}, {"role": "assistant", "content": "yes"}] for n in range(12)
        ]
        lines = (json.dumps({"messages": chat, "tools": [{"name": "search"}]}) for chat in chats)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = load_rows(recipe("qa", dataset=str(tmp_path), chat_template=True))
    assert "the column tools of 12 training rows is not read: prompts show no tools" in rows.notes


TURNS = {"system": "Be brief.", "history": [["a", "b"]]}


def unread(folder, task, rows, **data):
    """Notes on columns that are not read. rows: makes a row of a number."""
    write(folder, train=[rows(n) | TURNS for n in range(4)], validation=[rows(4)], test=[rows(5)])
    return [note for note in load_rows(recipe(folder, task, **data)).notes if "not read" in note]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (CLASSIFY, lambda n: {"text": f"say {n}", "label": "a"}),
        (QA, lambda n: {"question": f"say {n}", "choices": ["a", "b"], "answer": "a"}),
        (NER, lambda n: {"tokens": ["say", str(n)], "tags": ["O", "O"]}),
    ],
)
def test_turns_that_a_default_prompt_does_not_show_are_told(tmp_path, task, rows):
    start, why = "the column {} of 4 training rows is not read: ", "the default prompt does not show it"
    assert unread(tmp_path, task, rows) == [start.format(name) + why for name in ("system", "history")]
    assert unread(tmp_path, task, rows, columns={"note": "system", "remark": "history"}) == []


def test_turns_that_a_template_does_not_show_are_told(tmp_path):
    def rows(n):
        return {"instruction": f"say {n}", "output": "a"}

    assert unread(tmp_path, CLASSIFY, rows) == []
    template = "{instruction}"
    assert len(unread(tmp_path, CLASSIFY, rows, template=template)) == 2
    (told,) = unread(tmp_path, CLASSIFY, lambda n: rows(n) | TURNS, template="{system} {instruction}")
    assert told == "the column history of 4 training rows is not read: data.template does not show it"
    (told,) = unread(
        tmp_path,
        CLASSIFY,
        lambda n: rows(n) | {"sys": "a"},
        template=template,
        columns={"system": "sys", "x": "history"},
    )
    assert told == "the column sys of 4 training rows is not read: data.template does not show it"
