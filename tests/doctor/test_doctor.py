"""The doctor finds planted faults, each with the line to change, and is silent on a sound recipe; run folders stay as
they are."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import yaml

from helpers.doctor_checks import changed, found, line_of
from helpers.project import write_rows
from helpers.sound_project import SIZES, rows, sound
from helpers.tiny import byte_tokenizer, tiny_model
from helpers.tokenizers_made import bpe_tokenizer
from tutelage.data.near_duplicates import near_pairs
from tutelage.doctor import Check, examine_file, exit_code, to_json
from tutelage.doctor.headroom import histogram
from tutelage.errors import Kind


def test_a_sound_recipe_passes_and_nothing_is_written(tmp_path):
    checks = examine_file(sound(tmp_path))
    assert {check.name: check.status for check in checks if check.status not in ("passed", "skipped")} == {}
    assert exit_code(checks) == 0
    assert not (tmp_path / "run").exists()
    areas = {check.area for check in checks if check.status == "passed"}
    assert areas == {"data", "models", "payoff", "budget"}
    assert {check.name for check in checks if check.status == "skipped"} == {"trajectory", "payoff"}


# --- data ---


def test_rows_of_test_in_training_fail(tmp_path):
    shout = [{**row, "id": f"again-{row['id']}", "text": row["text"].upper() + "!"} for row in rows("test")[:2]]
    check = found(changed(tmp_path, "train", lambda own: own + shout), name="leaks")
    assert (check.status, check.change, check.numbers["places"]) == ("fail", "data.overlap=drop", 2)


def test_rows_that_are_almost_training_rows_are_shown(tmp_path):
    near = [{**row, "id": f"near-{row['id']}", "text": row["text"][:-1] + "x"} for row in rows("test")[:6]]
    check = found(changed(tmp_path, "train", lambda own: own + near), name="near_leaks")
    assert check.status == "look" and check.numbers["test_near_train"] == 6
    assert check.kind == Kind.NEAR_DUPLICATES and "6 of 60 test rows (10%)" in check.text
    assert check.change.startswith("data.dataset=") and check.line == line_of(tmp_path / "recipe.yaml", "  dataset:")


def test_one_prompt_with_two_answers_is_shown(tmp_path):
    again = {**rows("train")[0], "id": "again", "label": "green"}
    check = found(changed(tmp_path, "train", lambda own: [*own, again]), name="contradictions")
    assert check.status == "look" and check.numbers["train"] == {"repeated": 1, "contradicting": 2}
    assert "train-0 says 'red', again says 'green'" in check.text


def test_a_class_too_small_to_learn_is_shown(tmp_path):
    check = found(
        changed(tmp_path, "train", lambda own: [*own, {"text": "the one odd thing", "label": "mauve"}]),
        name="small_classes",
    )
    assert check.status == "look" and "'mauve' (1)" in check.text and check.change.startswith("data.dataset=")


def test_a_lopsided_label_set_asks_for_another_metric(tmp_path):
    def lopsided(own):
        return [{**row, "label": row["label"] if n % 10 == 0 else "red"} for n, row in enumerate(own)]

    check = found(changed(tmp_path, "train", lopsided), name="label_distribution")
    assert (check.status, check.change) == ("look", "task.metric=macro_f1")


def test_few_rows_are_shown(tmp_path):
    check = found(changed(tmp_path, "test", lambda own: own[:10]), name="sizes")
    assert check.status == "look" and "10 test rows" in check.text
    assert check.numbers["uncertainty_points"]["test"] == pytest.approx(24.8)  # 1.96 x sqrt(0.8 x 0.2 / 10)


def test_a_row_that_does_not_fit_fails_with_the_length_that_would(tmp_path):
    long = {"text": "x" * 300, "label": "red"}
    check = found(changed(tmp_path, "train", lambda own: [*own, long]), "data.max_length=100", name="lengths")
    assert check.status == "fail"
    assert check.change == "data.max_length=306"  # 300 bytes, a colon, a space, three letters and the end
    assert check.line is None  # an override, not a line of the file


def test_an_entity_that_is_not_in_its_text_fails(tmp_path):
    path = sound(tmp_path, task={"type": "ner"})
    for split in SIZES:
        own = [{"text": row["text"], "entities": [["thing", row["text"].split()[1]]]} for row in rows(split)]
        if split == "validation":
            own[3]["entities"] = [["thing", "dragon"]]
        write_rows(tmp_path / "data" / f"{split}.jsonl", own)
    check = found(path, name="entities")
    assert check.status == "fail" and "dragon" in check.text and check.change == "data.dataset=MENDED_FOLDER"


def test_an_entity_that_a_written_prompt_does_not_hold_is_shown(tmp_path):
    path = sound(tmp_path, task={"type": "ner"}, data={"template": None})
    for split in SIZES:
        own = [{"prompt": f"{row['text']} ->", "completion": f"thing: {row['text'].split()[1]}"} for row in rows(split)]
        own[0]["completion"] = "thing: dragon" if split == "test" else own[0]["completion"]
        write_rows(tmp_path / "data" / f"{split}.jsonl", own)
    check = found(path, name="entities")
    assert check.status == "look" and check.numbers == {"entities": 270, "not_found": 1}


def test_korean_rows_without_a_language_are_shown(tmp_path):
    def korean(own):
        return [
            {**row, "text": f"안녕하세요 오늘은 {row['text'][-3:]}번 손님입니다 {n * 7919}"}
            for n, row in enumerate(own)
        ]

    path = sound(tmp_path)
    for split in SIZES:
        write_rows(tmp_path / "data" / f"{split}.jsonl", korean(rows(split)))
    check = found(path, name="languages")
    assert (check.status, check.change) == ("look", "task.language=ko")
    assert found(path, "task.language=ko", name="languages").status == "passed"


def test_answers_longer_than_what_is_generated(tmp_path):
    check = found(sound(tmp_path), "task.max_new_tokens=3", name="answer_lengths")
    # With the space in front `red` has 4 tokens, `blue` 5, `green` 6.
    assert (check.status, check.change) == ("fail", "task.max_new_tokens=11")


# --- models ---

GREEN = {"pattern": {"String": "green"}, "content": "grün"}


def test_another_vocabulary_passes_and_says_what_it_costs(tmp_path):
    path = sound(tmp_path)
    tokenizer = bpe_tokenizer()
    tokenizer.save_pretrained(tmp_path / "models" / "student")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(1, vocab_size=len(tokenizer), **ids).save_pretrained(tmp_path / "models" / "student")
    checks = {check.name: check for check in examine_file(path)}
    assert {check.status for check in checks.values()} <= {"passed", "skipped", "look"}
    assert checks["vocabularies"].status == "passed" and "next byte" in checks["vocabularies"].text
    assert checks["head_of_teacher"].status == checks["head_of_student"].status == "passed"
    place = tmp_path / "models" / "student" / "tokenizer.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"normalizer": {"type": "Replace", **GREEN}}))
    check = found(path, name="spelling")
    assert check.status == "fail" and check.change.startswith("student.model_name_or_path=")


def test_another_vocabulary_fails_with_states(tmp_path):
    path, folder = sound(tmp_path), tmp_path / "models" / "student"
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    check = found(path, "cache.form=states", name="vocabularies")
    assert check.status == "fail" and "'extra'" in check.text and check.change == "cache.form=auto"


def test_another_end_of_sequence_fails(tmp_path):
    path, place = sound(tmp_path), tmp_path / "models" / "student" / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"eos_token": "<|pad|>"}))
    check = found(path, "cache.form=states", name="end_of_sequence")
    assert check.status == "fail" and check.change == "cache.form=auto"


def test_embeddings_smaller_than_the_tokenizer_fail(tmp_path):
    path = sound(tmp_path)
    tiny_model(1, vocab_size=250, eos_token_id=None, pad_token_id=None).save_pretrained(tmp_path / "models" / "student")
    check = found(path, name="padded_sizes")
    assert check.status == "fail" and check.numbers == {"vocabulary": 258, "teacher": 258, "student": 250}


def test_chat_prompts_without_a_chat_template_fail(tmp_path):
    path = sound(tmp_path)
    assert found(path, "data.chat_template=true", name="chat_template").change == "data.chat_template=false"


def test_too_few_positions_fail(tmp_path):
    path = sound(tmp_path)
    tiny_model(1, max_position_embeddings=20).save_pretrained(tmp_path / "models" / "student")
    check = found(path, name="positions")
    assert (check.status, check.change) == ("fail", "data.max_length=20")


def test_a_student_that_is_larger_than_its_teacher_is_shown(tmp_path):
    path = sound(tmp_path)
    models = [tmp_path / "models" / name for name in ("student", "teacher")]
    check = found(
        path,
        f"teacher.model_name_or_path={models[0]}",
        f"student.model_name_or_path={models[1]}",
        name="model_sizes",
    )
    assert check.status == "look" and check.change.startswith("student.model_name_or_path=")


def test_half_precision_weights_are_shown(tmp_path):
    check = found(sound(tmp_path), "student.dtype=bfloat16", name="precision")
    assert (check.status, check.change) == ("look", "student.dtype=float32")


def test_weights_that_give_no_finite_gradient_fail(tmp_path):
    path = sound(tmp_path)
    model = tiny_model(1, hidden=16, layers=2)
    model.model.norm.weight.data.fill_(3e38)  # logits overflow
    model.save_pretrained(tmp_path / "models" / "student")
    checks = {check.name: check for check in examine_file(path)}
    assert checks["gradient_of_student"].status == "fail"


def test_a_training_argument_that_transformers_refuses_names_its_line(tmp_path):
    check = found(sound(tmp_path), "trainer.optim_args=foo", name="training_arguments")
    assert (check.status, check.change) == ("fail", "trainer.optim_args=...")


def test_checkpoints_of_another_model_fail(tmp_path):
    path, folder = sound(tmp_path), tmp_path / "own" / "checkpoint-1"
    tiny_model(3, hidden=64, layers=4).save_pretrained(folder)
    write = yaml.safe_load(path.read_text())
    write["teach"] = {"checkpoints": str(tmp_path / "own")}
    path.write_text(yaml.safe_dump(write))
    check = found(path, name="checkpoints")
    assert check.status == "fail" and "hidden_size" in check.text and check.change == "teach.checkpoints=FOLDER"


def test_mistakes_in_the_recipe_are_checks_with_their_lines(tmp_path):
    path = tmp_path / "bank.yaml"
    path.write_text(
        "task: {type: clasification}\ndata: {train: t.jsonl}\nteacher: {model_name_or_path: a}\nstudent: {}\n"
    )
    checks = examine_file(path)
    assert [check.status for check in checks] == ["fail", "fail"] and exit_code(checks) == 2
    assert {check.change for check in checks} == {"task.type=...", "student.model_name_or_path=..."}
    assert checks[0].line.endswith("bank.yaml:1")


def test_a_timing_run_predicts_time_disk_and_memory_and_leaves_the_run_alone(tmp_path):
    checks = {check.name: check for check in examine_file(sound(tmp_path), timing_rows=24)}
    assert not (tmp_path / "run").exists()
    times = checks["time"].numbers["predicted"]
    assert all(times[stage] > 0 for stage in ("prepare", "teach", "anchor", "cache", "distill", "evaluate"))
    disk = checks["disk"].numbers
    # float32 states of 32 numbers: a space, 3, 4 or 5 letters, and the end; and a head of 258 x 32.
    positions = 50 * (5 + 6 + 7)
    assert disk["cache"] == 2 * (positions * 32 * 4 + 258 * 32 * 4)
    assert disk["teach while training"] > disk["teach"] > 0
    assert checks["memory"].numbers["teach"] > 0
    assert checks["verdict"].numbers["timing_run"]


# --- parts ---


def test_near_pairs_of_ten_thousand_texts_are_found_and_no_others():
    draw = random.Random(3)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    earlier = ["".join(draw.choices(alphabet, k=80)) for _ in range(8000)]
    later = ["".join(draw.choices(alphabet, k=80)) for _ in range(1990)] + [text[:-2] + "##" for text in earlier[:10]]
    pairs = near_pairs(earlier, later)
    assert [(late, early) for late, early, _ in pairs] == [(1990 + n, n) for n in range(10)]
    assert pairs[0][2] == pytest.approx(74 / 78)  # of 76 shingles each, 74 are in both


def test_near_pairs_of_equal_texts_stay_linear():
    assert len(near_pairs(["the same words again and again"] * 3000, ["the same words again and again"] * 3000)) == 3000


def test_the_entropy_of_weights():
    assert histogram(np.full(50, 0.55)) == ([0] * 5 + [50] + [0] * 4, 0.0)
    assert histogram(np.arange(10) / 10 + 0.05)[1] == pytest.approx(1.0)


def test_checks_as_json_and_exit_codes():
    passed = Check("small_classes", "data", "passed", numbers={"classes": 3, "smallest": 9})
    look = Check("sizes", "data", "look", Kind.STUDENT_IS_TEACHER, change="data.train=FILE", line="r.yaml:3")
    fail = replace(look, status="fail")
    assert [exit_code(checks) for checks in ([], [passed], [passed, look], [look, fail])] == [0, 0, 1, 2]
    assert json.loads(to_json([look]))[0] == {
        "name": "sizes",
        "area": "data",
        "kind": "student_is_teacher",
        "status": "look",
        "text": look.text,
        "numbers": {},
        "change": "data.train=FILE",
        "line": "r.yaml:3",
    }
