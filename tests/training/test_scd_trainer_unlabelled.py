"""`SCDTrainer` with rows without labels: the same answers and the same student as the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.project import LABELS, color_rows, make_project, run_to_the_end, trainer_for, write_rows
from helpers.tiny import save_pair
from helpers.tokenizers_made import save_cross_pair
from tutelage import SCDTrainer
from tutelage.data.token_store import TokenStore
from tutelage.errors import DataError, Kind, StaleArtifactError
from tutelage.models.generation import Answer
from tutelage.teacher import silver_rows
from tutelage.teacher.sources import CachedTeacher
from tutelage.training import scd_trainer
from tutelage.utils.files import read_jsonl

PROMPTS = [f"a new thing {n} is {LABELS[n % 3]}" for n in range(9)]
LEAKED, KNOWN = "validation thing 2 is blue", "train thing 1 is green"


def finished_run(folder: Path, save_models=save_pair) -> Path:
    """A finished run of questions with free answers, greedily decoded, with nine rows without gold and two to leave
    out."""
    recipe = make_project(
        folder,
        task={"type": "qa", "max_new_tokens": None},
        data={"template": "{question}:", "unlabelled": str(folder / "more.jsonl")},
        teach={"best_by": "loss", "trainer": {"num_train_epochs": 20}},  # until it ends its answers
        distill={"select_by": "loss", "methods": ["scd-aw"]},
        cache={"shard_rows": 1024},
    )
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        own = color_rows(split, count)
        rows = [{"id": row["id"], "question": row["text"], "answers": [row["label"]]} for row in own]
        write_rows(folder / "data" / f"{split}.jsonl", rows)
    write_rows(folder / "more.jsonl", [{"question": prompt} for prompt in [*PROMPTS, LEAKED, KNOWN]])
    save_models(folder / "models")
    run_to_the_end(recipe)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"))


def trainer_asking(finished: Path, output: Path, prompts=(*PROMPTS, LEAKED, KNOWN), **changes) -> SCDTrainer:
    return trainer_for(finished, output, unlabelled=prompts, **changes)


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory) -> SCDTrainer:
    trainer = trainer_asking(finished, tmp_path_factory.mktemp("out"))
    trainer.train()
    trainer.save_model()
    return trainer


def test_the_answers_are_those_of_the_stage(finished, trained):
    theirs, ours = (
        [
            (line["raw"], line["confidence"], line.get("left_out"))
            for line in read_jsonl(folder / "silver/answers.jsonl")
        ]
        for folder in (finished / "run", trained.folder)
    )
    assert ours == theirs and len(ours) == len(PROMPTS)  # without the rows of train_dataset and eval_dataset
    assert any(left_out is None for _, _, left_out in ours)


def test_command_and_python_give_the_same_student(finished, trained):
    """Cache, weights, probe set and number of steps included."""
    ours = AutoModelForCausalLM.from_pretrained(trained.folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(finished / "run/distill/scd-aw/seed-0").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_teacher_with_another_tokenizer_answers_in_its_own_tokens(tmp_path):
    """The answers, the rows in both kinds of tokens and the student are those of the command."""
    finished = finished_run(tmp_path, save_cross_pair)
    trainer = trainer_asking(finished, tmp_path / "out")
    trainer.train()
    trainer.save_model()
    forms = trainer._silver_rows()
    for side, name in enumerate(("train", "teacher")):
        stored = TokenStore(finished / f"run/silver/{name}.arrow", "train")
        assert [row.answer for row in stored][12:] == [form[side].answer for form in forms]
    ours = AutoModelForCausalLM.from_pretrained(trainer.folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(finished / "run/distill/scd-aw/seed-0").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_checkpoint_is_cached_on_the_answers_and_steps_count_all_rows(finished, trained):
    rows = [*trained.own.rows, *(row for (row,) in trained._silver_rows())]
    kept = sum("left_out" not in line for line in read_jsonl(trained.folder / "silver/answers.jsonl"))
    assert len(rows) == 12 + kept
    cached = CachedTeacher(trained.folder / "cache", [folder.name for folder in trained.checkpoints], rows)
    for folder in trained.checkpoints:
        live = trained.own.losses(AutoModelForCausalLM.from_pretrained(folder), rows)
        assert np.allclose(cached.nll(folder.name), live, atol=1e-5)
    steps = [line["step"] for line in read_jsonl(trained.folder / "distill/log.jsonl")]
    assert max(steps) == 6  # ceil((12 + 9) / 4)
    assert max(line["step"] for line in read_jsonl(trained.folder / "anchor/log.jsonl")) == 2 * 6


def test_an_interrupted_process_answers_the_rest_alone(finished, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(silver_rows, "CHUNK", 4)
    asked, answers = [], scd_trainer.Evaluator.answers

    def counted(self, model, eval_set, on_rows=None):
        asked.append(len(eval_set.examples))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answers(self, model, eval_set, on_rows)

    monkeypatch.setattr(scd_trainer.Evaluator, "answers", counted)
    with pytest.raises(KeyboardInterrupt):
        trainer_asking(finished, tmp_path)._silver_rows()
    rows = trainer_asking(finished, tmp_path)._silver_rows()
    assert asked == [4, 4, 4, 1]
    assert [row.answer for (row,) in rows] == [row.answer for (row,) in trained._silver_rows()]
    assert not list((tmp_path / "silver").glob("answers-*"))


def test_plain_fine_tuning_gets_as_many_steps_and_no_answers(finished, tmp_path):
    trainer = trainer_asking(finished, tmp_path, method="sft", num_stages=1)
    trainer.train()
    assert not (tmp_path / "silver").exists()
    assert max(line["step"] for line in read_jsonl(tmp_path / "distill/log.jsonl")) == 6


def test_a_teacher_that_answers_nothing_and_other_rows_are_refused(finished, trained, tmp_path, monkeypatch):
    def nothing(self, model, eval_set, on_rows=None):
        return [Answer("", 0.0)] * len(eval_set.examples)

    with monkeypatch.context() as changed, pytest.raises(DataError) as error:
        changed.setattr(scd_trainer.Evaluator, "answers", nothing)
        trainer_asking(finished, tmp_path)._silver_rows()
    assert error.value.problems[0].kind == Kind.SILVER_EMPTIED
    with pytest.raises(StaleArtifactError, match="unlabelled"):
        trainer_asking(finished, trained.folder, [*PROMPTS[1:], "another thing"]).train()
