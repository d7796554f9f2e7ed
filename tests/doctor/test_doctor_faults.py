"""Faults as they happen to people, planted in a sound project: the doctor says each with its number and the line that
mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from helpers.doctor_checks import changed, found
from helpers.project import LABELS, Command, write_rows
from helpers.sound_project import SIZES, rows, sound, texts
from helpers.tiny import PAD, byte_tokenizer, tiny_model
from tutelage.doctor import examine_file, exit_code
from tutelage.errors import Kind


def chats(path: Path) -> Path:
    """The project's rows as conversations."""
    for split in SIZES:
        own = [
            {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
            for row in rows(split)
        ]
        write_rows(path.parent / "data" / f"{split}.jsonl", own)
    recipe = yaml.safe_load(path.read_text())
    recipe["data"] = {"dataset": recipe["data"]["dataset"], "chat_template": True}
    path.write_text(yaml.safe_dump(recipe))
    return path


def templated(folder: Path, name: str, template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "models" / name)


# --- rows ---


@pytest.mark.parametrize(
    "twist",
    [
        str.upper,
        lambda text: text.replace(" ", "  "),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in text),
    ],
    ids=["case", "spaces", "width"],
)
def test_a_leak_in_other_letters_fails(tmp_path, twist):
    again = [{**row, "id": f"again-{row['id']}", "text": twist(row["text"])} for row in rows("test")[:4]]
    check = found(changed(tmp_path, "train", lambda own: own + again), name="leaks")
    assert (check.status, check.change, check.numbers["places"]) == ("fail", "data.overlap=drop", 4)
    assert "training rows that are also test rows" in check.text


def test_places_are_counted_where_reasons_hold_semicolons(tmp_path):
    def emptied(own):
        return [{**row, "label": "" if n < 5 else row["label"]} for n, row in enumerate(own)]

    check = found(changed(tmp_path, "train", emptied), name="answers")
    assert (check.status, check.numbers["places"]) == ("fail", 5)


def test_a_label_that_training_lacks_fails_with_the_whole_list(tmp_path):
    check = found(changed(tmp_path, "test", lambda own: [{**own[0], "label": "mauve"}, *own[1:]]), name="labels")
    assert check.status == "fail" and "'mauve'" in check.text
    assert check.change == "task.labels=[blue, green, red, mauve]"


def test_rows_of_a_single_label_fail(tmp_path):
    path = sound(tmp_path)
    for split in SIZES:
        write_rows(tmp_path / "data" / f"{split}.jsonl", [{**row, "label": "red"} for row in rows(split)])
    check = found(path, name="label_distribution")
    assert (check.status, check.change) == ("fail", "data.columns={label: ANOTHER_COLUMN}") and "'red'" in check.text


def test_labels_that_look_the_same_are_shown_with_the_mapping_that_joins_them(tmp_path):
    decomposed = "\u1107\u1162\u1109\u1169\u11bc"
    twins = {"red": ["배송", decomposed], "green": ["Pos", "pos", "ｐｏｓ", "pos\u200b"], "blue": ["blue"]}
    path = sound(tmp_path)
    for split in SIZES:
        own = rows(split)
        for number, row in enumerate(own):
            row["label"] = twins[row["label"]][number // 3 % len(twins[row["label"]])]
        write_rows(tmp_path / "data" / f"{split}.jsonl", own)
    check = found(path, name="label_spellings")
    assert (check.status, check.kind) == ("look", Kind.LABELS_ALIKE)
    assert check.numbers["mapping"][decomposed] == "배송"
    assert sorted(map(len, check.numbers["groups"])) == [2, 4]
    assert sum(sum(group.values()) for group in check.numbers["groups"]) == 180
    assert r"'\ubc30\uc1a1' (45)" in check.text and r"'\u1107\u1162\u1109\u1169\u11bc': '\ubc30\uc1a1'" in check.text
    assert found(sound(tmp_path / "other"), name="label_spellings").status == "passed"


def test_entities_that_begin_or_end_inside_words_are_worth_a_look(tmp_path):
    path = sound(tmp_path, task={"type": "ner"})
    for surface, status in (("ibuprofen", "passed"), ("buprofen", "look"), ("ibuprofe", "look")):
        for split in SIZES:
            own = [{"text": f"{row['text']} ibuprofen.", "entities": [["x", surface]]} for row in rows(split)]
            write_rows(tmp_path / "data" / f"{split}.jsonl", own)
        check = found(path, name="entity_boundaries")
        assert (check.status, check.numbers["cut"]) == (status, 270 if status == "look" else 0)
    assert check.kind == Kind.ENTITIES_CUT_WORDS and "'ibuprofe'" in check.text and "data.offsets" in check.text


def test_contradictions_show_the_prompt(tmp_path):
    again = {**rows("train")[0], "id": "again", "label": "green"}
    check = found(changed(tmp_path, "train", lambda own: [*own, again]), name="contradictions")
    assert rows("train")[0]["text"].removeprefix("the ") in check.text


def test_more_than_is_held_out_already_is_asked_for(tmp_path):
    path = sound(tmp_path, data={"validation_fraction": 0.2})
    (tmp_path / "data" / "validation.jsonl").unlink()
    own = [{"text": text, "label": LABELS[n % 3]} for n, text in enumerate(texts(200, 9))]
    write_rows(tmp_path / "data" / "train.jsonl", own)  # a fifth of 200 rows is 40
    check = found(path, name="sizes")
    assert (check.status, check.change) == ("look", "data.validation_fraction=0.25")
    assert found(path, check.change, name="sizes").status == "passed"
    write_rows(tmp_path / "data" / "train.jsonl", own[:120])  # then fewer than 100 would stay
    assert found(path, name="sizes").change == "data.dataset=LARGER_FOLDER"


def test_one_near_twin_is_not_worth_a_look(tmp_path):
    near = {**rows("test")[0], "id": "near", "text": rows("test")[0]["text"][:-1] + "x"}
    path = changed(tmp_path, "train", lambda own: [*own, near])
    assert found(path, name="near_leaks").status == "passed"


def test_one_long_answer_among_many_is_mentioned_and_no_more(tmp_path):
    path = changed(tmp_path, "train", lambda own: [*own, {"text": "the odd one of them all", "label": "chartreuse"}])
    check = found(path, "task.max_new_tokens=8", name="answer_lengths")
    assert check.status == "passed" and "(1 answers are longer)" in check.text


def test_rows_in_two_languages_are_not_called_one(tmp_path):
    path = sound(tmp_path)
    for split in SIZES:
        own = [
            {**row, "text": f"안녕하세요 {n * 7919}번 {row['text'][-3:]} 손님입니다"} if n % 2 else row
            for n, row in enumerate(rows(split))
        ]
        write_rows(tmp_path / "data" / f"{split}.jsonl", own)
    check = found(path, name="languages")
    assert check.status == "passed" and "ko 50%" in check.text and "en 50%" in check.text


# --- models ---


def test_tokenizers_that_differ_in_one_entry_fail(tmp_path):
    path = sound(tmp_path)
    place = tmp_path / "models" / "student" / "tokenizer.json"
    inner = json.loads(place.read_text())
    vocabulary = inner["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    place.write_text(json.dumps(inner))
    check = found(path, "cache.form=states", name="vocabularies")
    assert check.status == "fail" and "'a'" in check.text


def test_padded_vocabularies_pass(tmp_path):
    path = sound(tmp_path)
    for name, padded in (("teacher", 320), ("student", 272)):
        tiny_model(1, hidden=32 if name == "teacher" else 16, vocab_size=padded).save_pretrained(
            tmp_path / "models" / name
        )
    checks = {check.name: check for check in examine_file(path)}
    assert checks["padded_sizes"].numbers == {"vocabulary": 258, "teacher": 320, "student": 272}
    assert exit_code(list(checks.values())) == 0


def test_a_tokenizer_without_an_end_of_sequence_fails(tmp_path):
    path = sound(tmp_path)
    for name in ("teacher", "student"):
        place = tmp_path / "models" / name / "tokenizer_config.json"
        place.write_text(json.dumps({k: v for k, v in json.loads(place.read_text()).items() if k != "eos_token"}))
    checks = [check for check in examine_file(path) if check.status == "fail"]
    assert (
        checks and "end-of-sequence" in checks[0].text and checks[0].change.split("=")[0].endswith("model_name_or_path")
    )


def test_conversations_without_a_chat_template_ask_for_other_models(tmp_path):
    check = found(chats(sound(tmp_path)), name="chat_template")
    assert check.status == "fail" and check.change == "teacher.model_name_or_path=ONE_WITH_A_CHAT_TEMPLATE"


def test_chat_templates_that_disagree_are_shown(tmp_path):
    path = chats(sound(tmp_path))
    turns = "{% for m in messages %}<%s>{{ m['content'] }}{% endfor %}"
    templated(tmp_path, "teacher", turns.replace("%s", "a"))
    templated(tmp_path, "student", turns.replace("%s", "b"))
    check = found(path, name="chat_template")
    assert (check.status, check.kind) == ("look", Kind.CHAT_TEMPLATES_DIFFER)
    templated(tmp_path, "teacher", turns.replace("%s", "b"))
    assert found(path, name="chat_template").status == "passed"


def test_a_token_that_only_the_teacher_begins_with_is_shown(tmp_path, monkeypatch, capsys):
    path = sound(tmp_path)
    assert found(path, name="prompt_tokens").status == "passed"
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{PAD} $A", special_tokens=[(PAD, 257)])
    tokenizer.save_pretrained(tmp_path / "models/teacher")
    check = found(path, name="prompt_tokens")
    assert (check.status, check.kind) == ("look", Kind.PROMPT_TOKENS_DIFFER)
    assert check.numbers["unlike"] == check.numbers["prompts"] > 0
    command = Command(monkeypatch, capsys)
    assert command("prepare", path) == 0
    assert "150 of the first 150 prompts get other tokens from the teacher's own tokenizer" in command.err


def test_float16_on_a_cpu_fails(tmp_path):
    path = sound(tmp_path)
    checks = [c for c in examine_file(path, ["trainer.bf16=false", "trainer.fp16=true"]) if c.status == "fail"]
    assert checks and {check.change for check in checks} == {"trainer.fp16=false"}


# --- training ---


@pytest.mark.parametrize(("rate", "words"), [("3", "large"), ("1e-9", "small")])
def test_a_learning_rate_that_cannot_be_meant_is_shown(tmp_path, rate, words):
    path = sound(tmp_path)
    check = found(path, f"distill.trainer.learning_rate={rate}", name="learning_rate")
    assert check.status == "look" and words in check.text and check.change == "distill.trainer.learning_rate=1e-4"
    assert found(path, name="learning_rate").status == "passed"


def test_a_batch_that_leaves_no_steps_is_shown(tmp_path):
    path = sound(tmp_path)
    check = found(path, "trainer.per_device_train_batch_size=128", name="steps")
    assert check.status == "look" and check.numbers["stage"] == 2
    assert check.change.startswith("trainer.per_device_train_batch_size=")
    assert found(path, check.change, name="steps").status == "passed"
    assert found(path, "distill.trainer.gradient_accumulation_steps=64", name="steps").status == "look"


# --- the command ---


def test_the_command_ends_with_0_1_and_2(tmp_path, monkeypatch, capsys):
    command, path = Command(monkeypatch, capsys), sound(tmp_path)
    assert command("doctor", path) == 0 and "passed" in command.out.splitlines()[-1]
    assert command("doctor", path, "--json", "data.max_test_rows=10") == 1
    looks = [check for check in json.loads(command.out) if check["status"] == "look"]
    assert [check["change"] for check in looks] == ["data.max_test_rows=null"]
    assert command("doctor", path, "task.typ=ner", "--json") == 2
    assert [check["status"] for check in json.loads(command.out)] == ["fail"]
    assert command("doctor", tmp_path / "none.yaml", "--json") == 2
    assert "none.yaml" in json.loads(command.out)[0]["text"]


def test_weights_that_training_cannot_hold_here_fail(tmp_path, monkeypatch):
    path = sound(tmp_path)
    weights = tiny_model(0, hidden=32, layers=4).num_parameters()
    monkeypatch.setattr("tutelage.doctor.model_checks.machine_memory", lambda: 16 * weights - 1)
    check = found(path, name="weight_memory")
    assert (check.status, check.change) == ("fail", "teacher.lora={}") and check.numbers["teacher"] == 16 * weights
    assert found(path, "teacher.lora={}", name="weight_memory").status == "passed"
    assert "head_of_teacher" not in {one.name for one in examine_file(path)}  # what does not fit is not loaded
