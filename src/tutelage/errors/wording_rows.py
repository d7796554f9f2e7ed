"""The texts of problems of data files and rows; see `wording.py`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.errors.kinds import Kind

SHOWN = 3
"""Rows shown of each kind of problem."""
SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test", "unlabelled": "unlabelled"}
_BRACES = "Write a literal brace twice: {{ }}"
_ENCODINGS = {
    "cp932": "Japanese Windows",
    "cp949": "Korean Windows",
    "gb18030": "Chinese",
    "big5": "traditional Chinese",
}
_ENCODINGS |= {"euc-jp": "Japanese Unix", "cp1252": "Western European Windows", "iso-8859-1": "Western European"}

Values = Mapping[str, Any]
Text = str | Callable[[Values], str]
"""A pattern of `str.format`, or a function, of the problem's fields and values."""


def _maybe(near: Any) -> str:
    """` (did you mean X?)`, or nothing."""
    return f" (did you mean {near}?)" if near else ""


# --- files ---


def _encoding(v: Values) -> str:
    found = f"not {(v['tried'] or 'UTF-8').upper()} text ({v['reason']})"
    if not v["guesses"]:
        return f"{found}; save it as UTF-8, or name its encoding: data.encoding=cp1252 (cp932, cp949, utf-16, ...)"
    first, *others = (f"{name.upper()} ({_ENCODINGS.get(name, 'Unicode')})" for name in v["guesses"])
    also = f", or {' or '.join(others)}" if others else ""
    name = v["guesses"][0]
    command = f"iconv -f {name.upper()} -t UTF-8 {v['path']} > OUT"
    return f"{found}. It seems to be {first}{also}: write data.encoding={name}, or convert it, {command}"


def _file_type(v: Values) -> str:
    way = f" ({v['way_out']})" if v["way_out"] else ""
    return f"unknown file type; files end in {', '.join(v['endings'])}; rename or convert it{way}"


def _rows_of_lines(file: str) -> str:
    """The command that makes a row of each line of a file."""
    script = "import json, sys; [print(json.dumps({'text': t.strip()})) for t in sys.stdin if t.strip()]"
    return f'python -c "{script}" < {shlex.quote(file)} > rows.jsonl'


def _emptied(v: Values) -> str:
    reasons = f" ({'; '.join(v['left_out'])})" if v["left_out"] else ""
    return f"no {SPLIT_WORDS[v['split']]} row is left of {v['read']:,}{reasons}; name a file with other rows"


def _unclear_train_file(v: Values) -> str:
    if not v["files"]:
        return f"{v['folder']} holds no file of rows ({', '.join(v['endings'])})"
    return (
        f"{v['folder']} has no train file, and it is unclear which of {', '.join(v['files'][:6])} holds the rows;"
        f" name it (tutelage init {v['folder']}/{v['files'][0]}), or call it train{v['ending']}"
    )


def _too_few_rows(v: Values) -> str:
    table = " (a .txt file has a token and a tag on each line; a table of texts and labels is a .tsv)"
    return (
        f"{v['rows']:,} rows with {v['inputs']} different inputs are too few to train and test on"
        f"{table if v['task'] == 'ner' else ''}"
    )


def _no_rows(v: Values) -> str:
    other = "" if v["split"] == "train" else ", or write data.test_split=validation to test on the validation rows"
    return f"no {v['split']} rows: name them with data.{v['split']}=FILE, or a {v['split']} file in data.dataset{other}"


FILES: dict[Kind, Text] = {
    Kind.DATA_MISSING: "there is no file or folder {path!r}; give one, e.g. tutelage init reviews.csv",
    Kind.DATASET_IS_FILE: "{name!r} is a file, and data.dataset is a folder or a Hub id; write data.train={name}",
    Kind.DATASET_MISSING: (
        "no folder {name!r}; data.dataset is a folder with train, validation and test files, or a Hub id"
    ),
    Kind.DATASET_UNREADABLE: lambda v: (
        f"there is no folder {v['name']!r} here{_maybe(v['near'])}, and it could not be read as a Hub data set"
        f" (split {v['hub_split']!r}): {v['reason']}. Check the name and the network; a local folder or file works too:"
        " data.dataset=FOLDER, data.train=FILE"
    ),
    Kind.SPLIT_FILES_MISSING: (
        "no train, validation or test file in {folder}; name the files with data.train and data.test"
    ),
    Kind.SPLIT_FILE_MISSING: "no file {name}.* in {folder}, which data.{split}_split asks for",
    Kind.TRAIN_FILE_UNCLEAR: _unclear_train_file,
    Kind.FILE_MISSING: lambda v: f"there is no file {v['path']}{_maybe(v['near'])}",
    Kind.FILE_IS_FOLDER: "{path} is a folder; name a file in it, or give the folder as data.dataset",
    Kind.FILE_PARTS_MISSING: (
        "{folder} holds {found} of {expected} parts {name}; add the missing ones, or name the files to use,"
        " data.{stem}=[FILE, FILE]"
    ),
    Kind.FILE_TYPE_UNKNOWN: _file_type,
    Kind.FILE_EXISTS: "{path} already exists and would be overwritten; give another --output, or delete it first",
    Kind.FOREIGN_FILES: (
        "{folder} {found}. Tutelage deletes and overwrites nothing but its own files: {remedy}, and try again"
    ),
    Kind.FILE_EMPTY: "the file is empty: it has no rows",
    Kind.ENCODING_NOT_UTF8: _encoding,
    Kind.HALF_CHARACTER: lambda v: (
        f"{'the column ' + repr(v['column']) if v['column'] else 'a text'} holds {v['character']}, half of a character"
        " that a program cut in two; write the whole character (an emoji is two such halves), or leave it out"
    ),
    Kind.CELL_TOO_LARGE: (
        "a cell with more than {most:,} characters, which no model reads: in a table, a quotation mark that is never"
        " closed joins all rows after it. Close it, or cut the text"
    ),
    Kind.JSON_INVALID: "invalid JSON ({reason}, column {column})",
    Kind.JSON_NOT_A_LIST: "must hold a list of rows, found {found}",
    Kind.JSON_NOT_AN_OBJECT: lambda v: (
        f"a row must be a JSON object, found {v['found']}{'. ' + v['way_out'] if v['way_out'] else ''}"
    ),
    Kind.JSON_SEVERAL_TABLES: "several lists of rows, {tables}; save each in a file of its own",
    Kind.TABLE_INVALID: (
        "cannot be read as {format} ({reason}); put a cell with a comma, a line break or a quotation mark in quotation"
        " marks, and double a quotation mark inside it"
    ),
    Kind.TABLE_ROW_UNEVEN: "{cells} cells, and the header has {columns} columns",
    Kind.PARQUET_INVALID: "cannot be read as Parquet ({reason})",
    Kind.NOT_CONLL: lambda v: (
        f"{v['text'][:60]!r} is a text, and this file is read as CoNLL: a token on each line (its tag behind it, if it"
        " has one), a blank line between sentences. To make each line a row with a text:"
        f" {_rows_of_lines(v['file'])}"
    ),
    Kind.CONLL_NUMBERS_UNCLEAR: lambda v: (
        f"the first column counts the tokens in {v['counting']:,} of {v['sentences']:,} sentences, and"
        f" {v['text'][:60]!r} does not go on counting: the column could be numbers or text. Let the numbers rise in"
        " every sentence, with a blank line between sentences, or delete the column in the whole file"
    ),
    Kind.LABEL_FILE_INVALID: "`labels` must be a list of the allowed answers, found {found!r}",
    Kind.HEADER_MISSING: (
        "the first line, {text!r} and {label!r}, looks like a row; add a line with the names of the columns in front of"
        " it, e.g. text,label, and try again"
    ),
    Kind.ROWS_TOO_FEW: _too_few_rows,
    Kind.ROWS_MISSING: _no_rows,
    Kind.SPLIT_EMPTIED: _emptied,
    Kind.SILVER_EMPTIED: (
        "none of the teacher's answers to the {rows:,} unlabelled rows can be used ({invalid:,} cannot be parsed,"
        " {unfinished:,} do not end within task.max_new_tokens, {unsure:,} are less sure than silver.min_confidence,"
        " {too_long:,} are too long). Lower silver.min_confidence, raise task.max_new_tokens, train the teacher for"
        " longer, or leave out data.unlabelled"
    ),
}


# --- columns and prompts ---


def _unrecognised(v: Values) -> str:
    if v["only_tokens"]:
        return (
            f"unrecognised columns {v['columns']}: they belong to task.type=ner, and this is a {v['task']} run."
            " Files in .txt, .conll and .bio are read as CoNLL, a token on each line; a table of texts and labels is a"
            f" .csv or .tsv. To make each line of a .txt a row with a text: {_rows_of_lines('FILE.txt')}"
        )
    hints = [f" {v['way_out']}"] if v["way_out"] else []
    if v["not_there"] and v.get("asker") != "request":
        where = "--column" if v.get("asker") else "data.columns"
        hints.append(f" {where} names {v['not_there']!r}, which is not there.")
    if v["only_labels"]:
        only = "`labels` are the answers allowed on a row; if they are the gold label, write"
        hints.append(f" {only} data.columns={{label: labels}}.")
    if v["other_task"]:
        wrong = f"a {v['other_task']} row, and this model is for {v['task']}" if v.get("asker") else None
        hints.append(f" They are those of {wrong or 'task.type=' + v['other_task']}.")
    if v["template_would_do"]:
        hints.append(' A prompt can be made of any columns: data.template="{ONE} {OTHER}".')
    *wanted, prompt = v["wanted"]
    if v.get("asker") == "request":
        advice = f"Send the missing field: {' and '.join(map(repr, v['sent_example'] or v['map_example']))}"
    else:
        advice = f"Map other names with {_mapping(v, v['map_example'])}"
    return (
        f"unrecognised columns {v['columns']}; a {v['task']} row has {' or '.join(wanted)} (or {prompt})."
        f"{''.join(hints)} {advice}"
    )


def _mapping(v: Values, names: Sequence[str], theirs: str = "THEIR_NAME") -> str:
    """How the user says what our columns are called: in the recipe, or with an option where there is none to write."""
    if v.get("asker"):
        return " ".join(f"--column {name}={theirs}" for name in names)
    return f"data.columns={{{', '.join(f'{name}: {theirs}' for name in names)}}}"


def _no_template_value(v: Values) -> str:
    own = [
        name for name in v["columns"] or () if not (v.get("asker") and name == "labels")
    ]  # the label set is no column
    reason = f"is not a column of this row (it has {own})" if v["columns"] else "is empty in this row"
    if v.get("asker") == "request":
        return f"the prompt needs the field {v['name']!r}, which {reason}; send it"
    if v.get("asker"):
        return f"the prompt needs {{{v['name']}}}, which {reason}; name its column: {_mapping(v, [v['name']])}"
    return (
        f"the prompt's template needs {{{v['name']}}}, which {reason}; map it with data.columns, or change"
        f" data.template. {_BRACES}"
    )


COLUMNS: dict[Kind, Text] = {
    Kind.COLUMN_REPEATED: "two columns are called {column!r}; rename one",
    Kind.COLUMN_NOT_MAPPED: lambda v: (
        f"{v['key']}: {v['column']!r}; "
        + (f"did you mean {v['near']!r}?" if v["near"] else f"there are {v['columns']}")
    ),
    Kind.COLUMNS_AMBIGUOUS: lambda v: (
        f"the columns {' and '.join(map(repr, v['candidates']))} could each be the column {v['column']!r};"
        + (
            f" send only one, as {v['column']!r}"
            if v.get("asker") == "request"
            else f" say which, {_mapping(v, [v['column']], v['candidates'][0])}"
        )
    ),
    Kind.COLUMNS_UNRECOGNISED: _unrecognised,
    Kind.TASK_UNCLEAR: lambda v: (
        f"the columns {v['columns']} do not show what is asked and what the answer is; rename two of them to text and"
        " label (classification), text and entities (ner), or prompt and completion, and try again"
        f"{'. ' + v['way_out'] if v['way_out'] else ''}"
    ),
    Kind.CELL_INVALID: "the columns of a {row_format} row do not hold what they should ({reason})",
    Kind.CELL_NOT_A_LIST: (
        'the column {column!r} holds {found!r}, which is no whole list; write a JSON list in a text cell: ["a", "b"]'
        " (pandas: df[column] = df[column].map(lambda value: json.dumps(list(value))) before to_csv)"
    ),
    Kind.ID_REPEATED: "the id {row!r} is already used",
    Kind.VERDICT_UNKNOWN: lambda v: (
        f"the column 'answer' holds {str(v['value'])[:40]!r} here, and accept, reject or ignore in {v['verdicts']:,}"
        " rows, as Prodigy writes them: it is unclear which rows an annotator accepted. Write one of the three; if the"
        " column is no verdict, give it another name: data.columns={note: answer}"
    ),
    Kind.PROMPT_EMPTY: "the prompt is empty (column {column!r})",
    Kind.TEMPLATE_INVALID: lambda v: f"data.template cannot be filled in: {v['reason']}. {_BRACES}",
    Kind.TEMPLATE_SHOWS_NOTHING: lambda v: (
        f"the prompt's template {v['template']!r} shows nothing of the row, such as {{text}}. {_BRACES}"
    ),
    Kind.TEMPLATE_SHOWS_ANSWER: "data.template shows the gold answer to the model in {{{name}}}; take it out",
    Kind.TEMPLATE_VALUE_MISSING: _no_template_value,
    Kind.CHAT_TEMPLATE_NEEDED: (
        "the prompt is a list of messages; write data.chat_template=true to render it with the tokenizer"
    ),
    Kind.MESSAGES_NOT_A_LIST: "messages must be a list of {{role, content}}, found {found!r}",
    Kind.MESSAGE_WITHOUT_TEXT: (
        "the message {found!r} holds no text; role and content (or from and value) must be text"
    ),
    Kind.MESSAGES_WITHOUT_PROMPT: "there is no message in front of the answer",
}


# --- answers ---


_CHOICE_READINGS = {
    "label": "the label of a choice",
    "letter": "a letter",
    "text": "the text of a choice",
    "index": "an index from 0",
    "index-from-1": "an index from 1",
}


def _unknown_choice(v: Values) -> str:
    if v["reading"]:
        return f"the answer {v['answer']!r} is not {_CHOICE_READINGS[v['reading']]}; the choices are {v['choices']}"
    if v["is_number"]:
        return f"the answer {v['answer']} is none of the {len(v['choices'])} choices, which are counted from 0"
    return (
        f"the answer {v['answer']!r} is none of the choices {v['choices']}; give a letter, an index from 0, or the text"
        " of a choice"
    )


def _unclear_choice(v: Values) -> str:
    readings = [f"{_CHOICE_READINGS[name]} (data.choice_answer={name})" for name in v["readings"]]
    why = "in all rows" if v["fits"] else "but no reading fits all rows"
    return (
        f"the answer {v['answer']!r} to the choices {v['choices']} may be {' or '.join(readings)}, {why}; write the"
        " line that is meant"
    )


def _unclear_offsets(v: Values) -> str:
    if len(v["readings"]) == 1:
        return (
            f"{v['cut']:,} of {v['entities']:,} entities begin or end inside words, such as {v['surfaces'][0]!r} at"
            f" {v['offsets']}; offsets count characters from 0, end excluded. Correct them, or write"
            " data.offsets=characters if that is meant"
        )
    readings = " or ".join(
        f"{surface!r} (data.offsets={name})" for name, surface in zip(v["readings"], v["surfaces"], strict=True)
    )
    return (
        f"the offsets {v['offsets']} may stand for {readings}, and the rows do not show which; write the line that is"
        " meant"
    )


def _too_long(v: Values) -> str:
    rows, count = v["rows"], v["count"]
    first = ", ".join(f"{row} ({prompt} + {answer} tokens)" for row, prompt, answer in rows[:SHOWN])
    return (
        f"{count:,} row{'s do' if count > 1 else ' does'} not fit into data.max_length = {v['max_length']} tokens:"
        f" {first}{', ...' if count > SHOWN else ''} (prompt + answer). An answer is never cut. Write"
        f" data.max_length={v['longest']} to keep every row whole, data.too_long=truncate_prompt to cut the start of"
        " long prompts, or data.too_long=drop to leave these rows out"
    )


ANSWERS: dict[Kind, Text] = {
    Kind.ANSWER_EMPTY: lambda v: (
        f"the answer is empty (column {v['column']!r}); every training and test row needs a gold answer"
        + (f"; a text without entities has [] or {v['no_entities']}" if v["column"] == "entities" else "")
        + (
            "; give a question that the text does not answer (is_impossible in SQuAD 2) an answer to learn, such as"
            " unanswerable, or leave it out"
            if v["column"] == "answers"
            else ""
        )
    ),
    Kind.CHAT_ANSWER_MISSING: (
        "the answer is missing or empty: the last message of {column!r} is the answer to learn, so it must be the"
        " assistant's (role assistant, or from gpt) and hold text. Add it, or leave the row out"
    ),
    Kind.LABEL_NOT_SINGLE: (
        "the label {label!r} is more than one, and a classification row has one (multi-label is not supported);"
        " keep one of them, or teach the list as text in prompt + completion rows"
    ),
    Kind.LABEL_OUTSIDE_SET: "{label!r} in {split} row {row}",
    Kind.LABELS_NOT_LISTED: (
        "`labels` holds {found!r}, and must be a list of the answers allowed on the row. If it is the gold label, write"
        " data.columns={{label: labels}}; to ignore it, map it to an unused name, data.columns={{unused: labels}}"
    ),
    Kind.VERBALIZERS_UNSUITABLE: (
        "{key}: short forms are for a closed set of answers, and these rows have free answers; leave {key} out"
    ),
    Kind.VERBALIZER_LABEL_UNKNOWN: lambda v: (
        f"{v['key']}: {v['label']!r} is no label of these rows{_maybe(v['near'] and repr(v['near']))}; write a label as"
        f" it stands in the rows: {', '.join(map(repr, v['labels'][:SHOWN]))}{', ...' * (len(v['labels']) > SHOWN)}"
    ),
    Kind.VERBALIZER_IS_LABEL: (
        "{key}: the short form {form!r} of {label!r} reads as the label {other!r}; choose a form that is no other label"
    ),
    Kind.CHOICES_NOT_A_LIST: 'choices must be a list, ["one", "two"], found {found!r}',
    Kind.CHOICES_COUNT: (
        "the question has {count} choices, and choices are answered by one letter, A to Z. Give 1 to 26 choices, or use"
        " task.type=classification with the choices as labels"
    ),
    Kind.CHOICE_EMPTY: "choice {number} of {count} is empty; give it a text, or leave it out",
    Kind.CHOICE_UNKNOWN: _unknown_choice,
    Kind.CHOICE_UNCLEAR: _unclear_choice,
    Kind.ENTITY_INCOMPLETE: (
        "the entity {entity!r} has no type or no text; write {{type, text}}, {{type, start, end}} or [start, end, type]"
    ),
    Kind.ENTITY_NOT_WRITABLE: (
        "the entity {surface!r} of type {type!r} cannot be written as `TYPE: surface` and read back; both need text,"
        " and a type must not hold a colon followed by a space, or a full-width colon: rename the type"
    ),
    Kind.ENTITY_NOT_IN_TEXT: "the entity {surface!r} ({type}) is not in the text {text!r}; correct it, or leave it out",
    Kind.ENTITY_OFFSETS_OUTSIDE: (
        "the entity {entity!r} has offsets outside its text of {length} characters; correct start and end"
    ),
    Kind.ENTITY_OFFSETS_WRONG: (
        "the offsets {start}:{end} of the entity {surface!r} hold {found!r}; offsets count characters from 0, end"
        " excluded (other counts: data.offsets)"
    ),
    Kind.OFFSETS_UNCLEAR: _unclear_offsets,
    Kind.ENTITIES_UNREADABLE: (
        "row {row}: the answer {answer!r} is not a list of entities; write one entity a line as `TYPE: surface`, or the"
        " single word `none`"
    ),
    Kind.TAG_MISSING: "the token {token!r} has no tag; a line holds a token and a tag such as B-PER or O",
    Kind.TAG_UNKNOWN: (
        "unknown tag {tag!r}; write BIO, IOB1 or BIOES tags: O, or B, I ... with a type (B-PER). Numbers need their"
        " names, which a data set of the Hub provides"
    ),
    Kind.TAGS_UNEVEN: "{tokens} tokens and {tags} tags; each token needs one tag",
    Kind.ROW_IN_TWO_SPLITS: "{row} = {other_row}",
    Kind.PROMPT_WITHOUT_TOKENS: "row {row}",
    Kind.CHAT_TEMPLATE_FAILED: (
        "row {row}: the tokenizer's chat template cannot render its messages ({reason}). Leave out what it refuses (a"
        " system message: data.system), correct the template, or write data.chat_template=false"
    ),
    Kind.ROW_TOO_LONG: _too_long,
}
