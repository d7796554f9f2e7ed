"""The planted worlds hold what they say, and every claim about them fails where its mechanism is broken. Nothing is
trained."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer

from benchmarks import planted
from benchmarks.planted_data import (
    CORPUS,
    FEW_THINGS,
    GROUPS,
    MEMBERS,
    NOISE,
    ROWS,
    Run,
    World,
    read_run,
    vocabulary,
    words_tokenizer,
)
from tutelage.method.risk_split import split_risk
from tutelage.utils.files import write_jsonl

WORLD = World.drawn(0)


# --- the world ---


def of_kind(rows, kind):
    return [row for row in rows if row["subdomain"] == kind]


def label(row):
    return int(row["label"].removeprefix("L"))


def thing(row):
    return int(row["text"].split()[2].removeprefix("t"))


def test_rows_are_as_many_as_told_and_no_text_comes_twice():
    splits = WORLD.splits()
    assert {name: {kind: len(of_kind(rows, kind)) for kind in ROWS[name]} for name, rows in splits.items()} == ROWS
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_no_thing_of_a_training_row_is_met_again():
    things = {name: [thing(row) for row in of_kind(rows, "knowledge")] for name, rows in WORLD.splits().items()}
    assert len(set(things["train"])) == len(things["train"])
    assert set(things["train"]).isdisjoint(things["test"]) and set(things["validation"]).isdisjoint(things["test"])


def test_within_reach_things_are_few_and_the_same_everywhere():
    things = {
        name: {thing(row) for row in of_kind(rows, "knowledge")}
        for name, rows in WORLD.splits(within_reach=True).items()
    }
    assert all(found == set(range(FEW_THINGS)) for found in things.values())


def test_the_teachers_corpus_names_every_thing_and_holds_no_row_of_the_students():
    corpus = WORLD.corpus(outdated=True)
    assert {kind: len(of_kind(corpus, kind)) for kind in CORPUS} == CORPUS
    students = {
        row["text"] for near in (False, True) for rows in WORLD.splits(within_reach=near).values() for row in rows
    }
    assert students.isdisjoint(row["text"] for row in corpus)
    named = [thing(row) for row in of_kind(corpus, "knowledge")]
    assert min(named.count(number) for number in set(named)) >= 7
    assert {thing(row) for row in of_kind(WORLD.splits()["test"], "knowledge")} <= set(named)


def test_outdated_laws_are_all_wrong_today_and_nothing_else_is():
    law = {row["text"].split()[2]: row["label"] for rows in WORLD.splits().values() for row in of_kind(rows, "changed")}
    old, new = WORLD.corpus(outdated=True), WORLD.corpus(outdated=False)
    assert [row["text"] for row in old] == [row["text"] for row in new]
    for before, today in zip(old, new, strict=True):
        changed = before["subdomain"] == "changed"
        assert (before["label"] != today["label"]) == changed
        assert not changed or today["label"] == law[today["text"].split()[2]]


def test_groups_are_never_wrong_and_members_seldom():
    rows = of_kind(WORLD.corpus(outdated=False), "knowledge")
    cues = [int(row["text"].split()[1].removeprefix("c")) for row in rows]
    assert all(label(row) // MEMBERS == WORLD.group[cue] for row, cue in zip(rows, cues, strict=True))
    wrong = np.mean([label(row) % MEMBERS != WORLD.member[thing(row)] for row in rows])
    # A member that is drawn at random is the right one once in MEMBERS. Three standard errors of 3,200 draws: 0.014.
    assert wrong == pytest.approx(NOISE * (1 - 1 / MEMBERS), abs=0.014)


def test_worlds_are_those_of_their_seed():
    again, other = World.drawn(0), World.drawn(1)
    assert (
        again == WORLD
        and again.splits() == WORLD.splits()
        and again.corpus(outdated=True) == WORLD.corpus(outdated=True)
    )
    assert other.member != WORLD.member and other.splits() != WORLD.splits()


def test_every_word_is_a_token():
    tokenizer, words = words_tokenizer(), vocabulary()
    assert len(set(words)) == len(words) == len(tokenizer)
    rows = [row for split in WORLD.splits().values() for row in split] + WORLD.corpus(outdated=True)
    place = {word: number for number, word in enumerate(words)}
    expected = [[place[word] for word in row["text"].split()] for row in rows]
    assert tokenizer([row["text"] for row in rows])["input_ids"] == expected
    assert min(map(label, rows)) >= 0 and max(map(label, rows)) < GROUPS * MEMBERS
    assert tokenizer.decode(tokenizer(" L7", add_special_tokens=False)["input_ids"]) == "L7"


# --- what a run folder says ---


def test_a_run_folder_in_numbers(tmp_path):
    ids = ["test-knowledge-0", "test-changed-0", "test-changed-1"]
    nll = {"teacher": [0.1, 4.0, 5.0], "td-aw/seed-3": [2.0, 0.25, 0.75]}
    for model, losses in nll.items():
        rows = ({"id": name, "nll": loss} for name, loss in zip(ids, losses, strict=True))
        write_jsonl(tmp_path / "evaluate" / model / "predictions.jsonl", rows)
    models = {model: {"nll": {"value": float(np.mean(losses))}} for model, losses in nll.items()}
    (tmp_path / "evaluate/scores.json").write_text(json.dumps({"models": models}))
    (tmp_path / "teach").mkdir()
    names = [{"name": "checkpoint-9"}, {"name": "checkpoint-10"}]
    (tmp_path / "teach/checkpoints.json").write_text(json.dumps({"checkpoints": names}))
    weights = [
        ("train-knowledge-0", 0.75),
        ("train-changed-0", 0.25),
        ("train-changed-1", 0.0),
        ("train-changed-0", 0.5),
    ]
    student = tmp_path / "distill/td-aw/seed-3"
    write_jsonl(student / "weights.jsonl", ({"id": name, "weight": weight} for name, weight in weights))
    (student / "stages.json").write_text(json.dumps([{"chosen": "checkpoint-10"}, {"chosen": "checkpoint-9"}]))
    run = read_run(tmp_path)
    assert run.loss("td-aw", "changed") == 0.5 and run.loss("teacher", "knowledge") == 0.1
    assert run.risk == {"teacher": pytest.approx(9.1 / 3), "td-aw": 1.0}
    assert run.weights == {"td-aw": {"knowledge": 0.75, "changed": 0.25, "all": 0.375}}
    assert run.followed == {"td-aw": [1, 0]}


# --- the claims ---


def make_run(losses, weights=None, followed=None):
    """A run with constant losses in each subdomain: 4 rows of knowledge, 2 changed, 2 easy."""
    rows = {"knowledge": 4, "changed": 2, "easy": 2}
    spread = {m: {k: np.full(rows[k], v) for k, v in zip(rows, values, strict=True)} for m, values in losses.items()}
    risk = {model: float(np.mean(np.concatenate(list(parts.values())))) for model, parts in spread.items()}
    return Run(spread, risk, weights or {}, followed or {})


def as_the_theory_says():
    """Runs in which every mechanism works. Losses: knowledge, changed, easy."""
    anchor, teacher = (2.0, 0.1, 0.1), (0.05, 4.0, 0.01)
    right = {"knowledge": 0.9, "changed": 0.02, "easy": 0.9, "all": 0.7}
    planted_run = make_run(
        {
            "anchor": anchor,
            "teacher": teacher,
            "td": (2.0, 0.5, 0.1),
            "td-aw": (2.0, 0.1, 0.1),
            "scd": (1.0, 0.5, 0.1),
            "cd": anchor,
        },
        {"td-aw": right},
        {"scd": [0, 0, 0, 0]},
    )
    memorised = make_run(
        {"anchor": anchor, "teacher": teacher, "td-aw": (3.0, 0.1, 0.1), "td-aw-cf": (2.0, 0.1, 0.1)},
        {"td-aw": right | {"knowledge": 0.1}, "td-aw-cf": right},
    )
    today = {"anchor": anchor, "teacher": (0.05, 0.01, 0.01), "td": (2.0, 0.12, 0.1)}
    absent = make_run(today | {"td-aw": (1.9, 0.1, 0.1)}, {"td-aw": right | {"changed": 0.9}})
    reachable = make_run(today | {"scd": (1.9, 0.12, 0.1)}, followed={"scd": [0, 0, 0, 1]})
    return {"planted": planted_run, "memorised": memorised, "absent": absent, "reachable": reachable}


def failing(runs):
    found = planted.claims([as_the_theory_says(), runs])
    return [number for number, claim in enumerate(found, start=1) if not all(check.holds for check in claim.checks)]


def with_losses(run, **changed):
    """The run with other losses for some models, and risks that follow from them."""
    own = {model: tuple(float(part.mean()) for part in parts.values()) for model, parts in run.losses.items()}
    return make_run(
        own | {name.replace("_", "-"): values for name, values in changed.items()}, run.weights, run.followed
    )


def constant(run):
    """The run with the same weight on every row."""
    return replace(run, weights={name: dict.fromkeys(weights, 0.5) for name, weights in run.weights.items()})


def test_every_claim_holds_where_every_mechanism_works():
    assert failing(as_the_theory_says()) == []


BROKEN = {
    "anchor and teacher swapped": (
        "planted",
        lambda r: with_losses(r, anchor=(0.05, 4.0, 0.01), teacher=(2.0, 0.1, 0.1)),
        [1],
    ),
    "constant weights": ("planted", constant, [2]),
    "constant weights, cross-fitted": ("memorised", constant, [7]),
    "no protection": ("planted", lambda r: with_losses(r, td_aw=(2.0, 0.5, 0.1)), [3]),
    "always T*": ("planted", lambda r: replace(with_losses(r, scd=(2.0, 0.5, 0.1)), followed={"scd": [3] * 4}), [4]),
    "staying does not pay": ("planted", lambda r: with_losses(r, scd=(1.9, 0.5, 0.1)), [4]),
    "other models' risks": ("planted", lambda r: replace(r, risk={m: -value for m, value in r.risk.items()}), [5]),
    "a gain without a plant": ("absent", lambda r: with_losses(r, td=(2.0, 0.3, 0.1)), [6]),
    "weights turned round": (
        "absent",
        lambda r: replace(r, weights={"td-aw": dict.fromkeys(r.weights["td-aw"], 0.1)}),
        [6],
    ),
    "memory in cross-fitted losses": (
        "memorised",
        lambda r: replace(r, weights={**r.weights, "td-aw-cf": r.weights["td-aw"]}),
        [7],
    ),
    "losses out of sample that change nothing": ("memorised", lambda r: with_losses(r, td_aw_cf=(3.0, 0.1, 0.1)), [7]),
    "never moving on": ("reachable", lambda r: replace(r, followed={"scd": [0] * 4}), [8]),
    "moving on too late": ("reachable", lambda r: with_losses(r, scd=(2.2, 0.12, 0.1)), [8]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_claim_fails_where_its_mechanism_is_broken_in_one_seed(name):
    setting, damage, expected = BROKEN[name]
    runs = as_the_theory_says()
    assert failing(runs | {setting: damage(runs[setting])}) == expected


def test_a_split_that_loses_ties_is_seen(monkeypatch):
    def careless(student, teacher):
        split = split_risk(student, teacher)
        return replace(split, deficit=split.deficit * (1 - 1e-6))

    monkeypatch.setattr(planted, "split_risk", careless)
    assert failing(as_the_theory_says()) == [5]


def test_bounds_that_follow_from_the_theory():
    # kd_ratio 0.5: gold has half of the target at the first of two tokens; beside a uniform member, 1/2 + 1/8.
    assert pytest.approx(0.5 * np.log(2)) == planted.HARM
    assert pytest.approx(-0.5 * np.log(5 / 8)) == planted.STAY
    assert pytest.approx(0.5 * np.log(4)) == planted.GROUPS_ONLY


@pytest.mark.parametrize(("damage", "code"), [(lambda run: run, 0), (constant, 1)])
def test_the_command_says_so(tmp_path, monkeypatch, capsys, damage, code):
    runs = as_the_theory_says()
    runs["planted"] = damage(runs["planted"])
    monkeypatch.setattr(planted, "measure", lambda *_: [runs])
    with pytest.raises(typer.Exit) as leaving:
        planted.main(seeds=1, jobs=1, json_file=tmp_path / "out.json", keep=tmp_path)
    assert leaving.value.exit_code == code
    assert ("claims that fail: [2]" if code else "all claims hold") in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert {line["claim"] for line in found["checks"] if not line["holds"]} == ({2} if code else set())
    assert found["observations"]["share of td's deficit that scd closes, knowledge"] == [pytest.approx(1.0 / 1.95)]
