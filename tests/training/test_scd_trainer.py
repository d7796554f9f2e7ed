"""`SCDTrainer`: the README's example, and the same student as the command with the same settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from helpers.project import Command, make_project, prompt_rows, run_to_the_end, trainer_for
from helpers.tokenizers_made import save_cross_pair, unigram_tokenizer
from tutelage import SCDConfig, SCDTrainer
from tutelage.errors import ConfigError, ModelError, RunLockedError, StaleArtifactError
from tutelage.utils.files import read_json

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = make_project(folder, teach={"best_by": "loss"}, distill={"select_by": "loss"}, cache={"shard_rows": 1024})
    run_to_the_end(recipe)
    return folder


def test_command_and_python_give_the_same_student(finished, tmp_path):
    trainer = trainer_for(finished, tmp_path / "out")
    trainer.train()
    trainer.save_model()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(finished / "run/distill/scd-aw/seed-0").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def cross_run(folder: Path, **changes) -> Path:
    """A finished run of a teacher and a student with different tokenizers; `trainer_for` finds its models."""
    recipe = make_project(
        folder,
        teach={"best_by": "loss"},
        distill={"select_by": "loss"},
        cache={"shard_rows": 1024},
        **changes,
    )
    save_cross_pair(folder / "models")
    run_to_the_end(recipe)
    return folder


def same_weights(ours: Path, theirs: Path) -> bool:
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (ours, theirs))
    return all(torch.equal(first[name], second[name]) for name in second)


def test_models_with_different_tokenizers_give_the_student_of_the_command(tmp_path):
    """Choice of T* and of checkpoints, weights and cache over bytes included. The teacher's tokenizer may be given."""
    cross_run(tmp_path)
    given = unigram_tokenizer(adds_space=True)
    for name, changes in {"found": {}, "given": {"teacher_processing_class": given}}.items():
        trainer = trainer_for(tmp_path, tmp_path / name, **changes)
        trainer.train()
        trainer.save_model()
        assert {read_json(path)["kind"] for path in (tmp_path / name / "cache").glob("*/store.json")} == {"bytes"}
        assert trainer._best() == read_json(tmp_path / "run/teach/checkpoints.json")["best"]
        assert same_weights(tmp_path / name, tmp_path / "run/distill/scd-aw/seed-0")


def test_states_of_another_tokenizer_are_refused(tmp_path):
    cross_run(tmp_path)
    with pytest.raises(ModelError, match="cache_form"):
        trainer_for(tmp_path, tmp_path / "out", cache_form="states")


def test_other_settings_are_refused_in_the_same_folder(finished, tmp_path):
    trainer_for(finished, tmp_path / "out").train()
    with pytest.raises(StaleArtifactError, match="temperature"):
        trainer_for(finished, tmp_path / "out", temperature=2.0).train()


def test_saving_before_training_is_an_error(finished, tmp_path):
    with pytest.raises(ModelError, match="train"):
        trainer_for(finished, tmp_path / "out").save_model()


def test_processes_of_a_launcher_do_not_write_one_folder(finished, tmp_path, monkeypatch):
    trainer = trainer_for(finished, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="started 2 processes"):
        trainer.train()
    assert not list(tmp_path.rglob("manifest.json"))


def test_two_trainers_do_not_write_one_folder(finished, tmp_path):
    """The second one, in another process or thread, is refused at once."""
    trainer = trainer_for(finished, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with FileLock(str(tmp_path / "out/.lock")), pytest.raises(RunLockedError, match="output_dir"):
        trainer.train()
    assert not (tmp_path / "out/cache").exists()
    trainer.train()
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_given_anchor_and_adapters(finished, tmp_path):
    trainer = SCDTrainer(
        model=str(finished / "models/student"),
        teacher_checkpoints=sorted((finished / "run/teach").glob("checkpoint-*")),
        args=SCDConfig(output_dir=str(tmp_path), num_stages=1, epochs_per_stage=1, use_cpu=True),
        train_dataset=prompt_rows("train", 12),
        anchor=AutoModelForCausalLM.from_pretrained(finished / "run/anchor"),
        peft_config=LoraConfig(r=2),
    )
    records = trainer.train()
    trainer.save_model(tmp_path / "student")
    assert records[0]["chosen"].startswith("checkpoint-")
    assert "lora" not in " ".join(AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict())


def test_the_readme_example_runs(finished, tmp_path, monkeypatch, capsys):
    """As printed, with the two folders that it names."""
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 25
    (tmp_path / "models").mkdir()
    (tmp_path / "runs").mkdir()
    os.symlink(finished / "models/student", tmp_path / "models/student")
    os.symlink(finished / "run/teach", tmp_path / "runs/teacher")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "checkpoint-" in capsys.readouterr().out
    assert (tmp_path / "runs/student/model.safetensors").exists()


def test_command_line_errors_are_python_errors_too(tmp_path, monkeypatch, capsys):
    with pytest.raises(ModelError, match="checkpoint"):
        SCDTrainer(
            model="x", teacher_checkpoints=str(tmp_path), args=SCDConfig(output_dir=str(tmp_path)), train_dataset=[]
        )
    assert Command(monkeypatch, capsys)("show", tmp_path / "none.yaml") == 2
