"""Kinds are stable identifiers: documented, worded, and all that decides; the wording of messages decides nothing."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.project import write_rows
from helpers.sound_project import SIZES, rows, sound
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.doctor import (
    Check,
    checkpoint_checks,
    data_checks,
    examine_file,
    headroom,
    model_checks,
    to_json,
)
from tutelage.doctor.texts import wording
from tutelage.errors import Kind
from tutelage.errors import wording as error_wording

PAGE = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8")


# --- docs/checks.md ---


def test_the_page_lists_every_kind_once():
    listed = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE.partition("## Kinds: recipe")[2], re.MULTILINE)
    general = set(re.findall(r"`(\w+)`", PAGE.rpartition("\n## ")[2]))
    assert len(listed) == len(set(listed))
    assert set(listed) | general == set(Kind) and not general & set(listed)


def names_in_source() -> set[str]:
    """Names of checks that the doctor can report, from its source."""
    names = set(data_checks._CHECKS)
    for path in Path(data_checks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("Check", "failed"):
                names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return names


def test_the_page_lists_every_check():
    table = PAGE.partition("## Checks\n")[2].partition("\n## ")[0]
    listed = {
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert names_in_source() | set(wording.PASSED) <= listed


def test_every_kind_has_a_text():
    assert (error_wording.TEXTS.keys() | wording.TEXTS.keys() | {Kind.OK}) == set(Kind)


# --- no check depends on the wording of a message ---


def rows_of(folder: Path, split: str, change) -> None:
    write_rows(folder / "data" / f"{split}.jsonl", change(rows(split)))


def unreadable_rows(folder: Path) -> None:
    def broken(own):
        leak = {**rows("test")[0], "id": "leak"}
        changes = [{"label": ""}, {"label": ["a", "b"]}, {"id": "train-0"}, {"labels": "red"}]
        return [leak, *({**row, **change} for row, change in zip(own, changes, strict=False)), *own[4:]]

    rows_of(folder, "train", broken)
    rows_of(folder, "test", lambda own: [{**own[0], "label": "mauve"}, *own[1:]])


def other_columns(folder: Path) -> None:
    rows_of(folder, "train", lambda own: [{"sentence": "a", "category": "red", "intent": "blue"}, {"a": 1}, *own])


def no_files(folder: Path) -> list[str]:
    return [f"data.train={folder / 'nothing.jsonl'}", f"data.test={folder / 'data'}"]


def empty_file(folder: Path) -> None:
    (folder / "data" / "test.jsonl").write_text("")


def broken_json(folder: Path) -> None:
    (folder / "data" / "test.jsonl").write_text('{"text": \n')


def template(folder: Path) -> list[str]:
    return ["data.template='{nowhere}:'"]


def entities(folder: Path) -> list[str]:
    for split in SIZES:
        own = [{"text": row["text"], "entities": [["thing", row["text"].split()[1]]]} for row in rows(split)]
        own[0]["entities"] = [["thing", "dragon"]] if split == "train" else own[0]["entities"]
        write_rows(folder / "data" / f"{split}.jsonl", own)
    return ["task.type=ner"]


def suspicious_rows(folder: Path) -> list[str]:
    near = [{**row, "id": f"near-{row['id']}", "text": row["text"][:-1] + "x"} for row in rows("test")[:6]]
    again = {**rows("train")[0], "id": "again", "label": "green"}
    rows_of(folder, "train", lambda own: [*own, *near, again])
    return ["data.max_length=30", "task.max_new_tokens=3", "task.language=de"]


def too_long(folder: Path) -> None:
    rows_of(folder, "train", lambda own: [*own, {"text": "x" * 2000, "label": "red"}])


def tokenizers(folder: Path) -> list[str]:
    place = folder / "models" / "student" / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"eos_token": "<|pad|>"}))
    return ["cache.form=states"]


def vocabularies(folder: Path) -> list[str]:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder / "models" / "student")
    return ["cache.form=states"]


def settings(folder: Path) -> list[str]:
    return ["trainer.lr_scheduler_type=cosin", "distill.trainer.learning_rate=3", "data.chat_template=true"]


def attention(folder: Path) -> list[str]:
    return ["student.attn_implementation=nonsense", f"teach.checkpoints={folder}"]


def no_gradient(folder: Path) -> None:
    model = tiny_model(1, hidden=16, layers=2)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(folder / "models" / "student")


def recipe(folder: Path) -> list[str]:
    return ["task.typ=ner", "distill.num_stages=x", "data.system=Hi", "nonsense", "teach.checkpoints=[]"]


def metric(folder: Path) -> list[str]:
    for split in SIZES:
        rows_of(folder, split, lambda own: [{"prompt": row["text"], "completion": row["text"][-9:]} for row in own])
    return ["task.type=qa", "task.metric=accuracy", "task.decoding=labels"]


FAULTS = [
    *(unreadable_rows, other_columns, no_files, empty_file, broken_json, template, entities, suspicious_rows, too_long),
    *(tokenizers, vocabularies, settings, attention, no_gradient, recipe, metric),
]


def verdicts(checks: list[Check]) -> list[tuple]:
    return [(c.name, c.area, c.kind, c.status, json.dumps(c.numbers), c.change, c.line) for c in checks]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_another_wording_of_every_message_changes_no_verdict(plant, tmp_path, monkeypatch):
    path = sound(tmp_path)
    overrides = plant(tmp_path) or []
    before = examine_file(path, overrides)
    assert [check for check in before if check.status in ("look", "fail")] and all(check.text for check in before)

    def gibberish(*_: object) -> str:
        return "Zwölf Boxkämpfer\n  - memory: data.overlap=drop, end a sequence, labels outside the set"

    monkeypatch.setattr(error_wording, "problem_text", gibberish)
    monkeypatch.setattr(error_wording, "group_text", gibberish)
    monkeypatch.setattr(wording, "text_of", gibberish)
    for module in (model_checks, checkpoint_checks, headroom):
        monkeypatch.setattr(module, "first_line", gibberish)
    after = examine_file(path, overrides)
    assert {check.text for check in after} == {gibberish()}
    assert verdicts(after) == verdicts(before)


def test_the_json_of_a_check_has_its_kind_and_place(tmp_path):
    path = sound(tmp_path)
    (check,) = (check for check in examine_file(path, ["data.template='{nowhere}:'"]) if check.status == "fail")
    assert (check.name, check.kind) == ("template", Kind.TEMPLATE_VALUE_MISSING)
    problem = check.problems[0]
    assert (problem.split, str(problem.place), problem.values["name"]) == (
        "train",
        f"{tmp_path / 'data' / 'train.jsonl'}:1",
        "nowhere",
    )
    assert yaml.safe_load(to_json([check]))[0]["kind"] == "template_value_missing"
