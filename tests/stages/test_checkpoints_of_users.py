"""The teacher's checkpoints in the forms that other trainers leave: each is read as plain PEFT and transformers read
it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.project import Command, color_rows, make_project
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.errors import ModelError
from tutelage.recipe.schema import Model
from tutelage.run.checkpoints import base_of, list_checkpoints
from tutelage.utils.files import read_json, read_jsonl

UNTIED = {"tie_word_embeddings": False}


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def project(folder: Path, **config) -> Path:
    """A project whose teacher is a new model; its recipe names checkpoints in `folder/given`, which are still to be
    made."""
    recipe = make_project(folder)
    values = yaml.safe_load(recipe.read_text()) | {"teach": {"checkpoints": str(folder / "given")}}
    recipe.write_text(yaml.safe_dump(values))
    shutil.rmtree(folder / "models/teacher")
    model = tiny_model(0, hidden=32, layers=3, **config)
    model.save_pretrained(folder / "models/teacher")
    byte_tokenizer().save_pretrained(folder / "models/teacher")
    return recipe


def save_adapters(folder: Path, name: str, seed: int = 1, **settings) -> Path:
    """Adapters with random weights, as PEFT saves them."""
    base = AutoModelForCausalLM.from_pretrained(folder / "models/teacher")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **settings}
        get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(folder / "given" / name)
    return folder / "given" / name


def save_trained(folder: Path, name: str, **settings) -> Path:
    """Adapters of which every trained weight has moved, as PEFT saves them."""
    base = AutoModelForCausalLM.from_pretrained(folder / "models/teacher")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, **settings))
        for weight in adapted.parameters():
            weight += 0.2 * torch.randn_like(weight) * weight.requires_grad
    adapted.save_pretrained(folder / "given" / name)
    return folder / "given" / name


def save_whole(folder: Path, name: str, seed: int, **options) -> Path:
    base = AutoModelForCausalLM.from_pretrained(folder / "models/teacher")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in base.parameters():
            weight += 0.05 * torch.randn_like(weight)
    base.save_pretrained(folder / "given" / name, **options)
    return folder / "given" / name


def plain(folder: Path, checkpoint: Path) -> torch.nn.Module:
    """The checkpoint as its own library reads it."""
    if (checkpoint / "adapter_config.json").is_file():
        base = AutoModelForCausalLM.from_pretrained(folder / "models/teacher")
        return PeftModel.from_pretrained(base, checkpoint).eval()
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


def loss(model: torch.nn.Module) -> float:
    """Mean loss of the validation rows' answers, in nats per token."""
    return float(np.mean(losses(model, color_rows("validation", 6))))


def losses(model: torch.nn.Module, rows: list[dict]) -> list[float]:
    """Loss of each row's answer, in nats per token, computed row by row."""
    tokenizer, found = byte_tokenizer(), []
    for row in rows:
        prompt = tokenizer(row["text"] + ":").input_ids
        answer = [*tokenizer(" " + row["label"]).input_ids, tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + answer
        with torch.no_grad():
            found.append(model(torch.tensor([prompt + answer]), labels=torch.tensor([labels])).loss.item())
    return found


def taught(command: Command, folder: Path, recipe: Path) -> dict[str, float]:
    """Validation loss of every checkpoint, by name, after `prepare`, `teach` and `cache`."""
    for stage in ("prepare", "teach", "anchor", "cache"):
        assert command(stage, recipe) == 0, command.err
    return {entry["name"]: entry["nll"] for entry in read_json(folder / "run/teach/checkpoints.json")["checkpoints"]}


ADAPTERS = {
    "rsLoRA": {"use_rslora": True, "lora_alpha": 8},
    "DoRA": {"use_dora": True},
    "a head trained whole": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
    "embeddings and head trained whole": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
    "ranks by layer": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 16}},
    "adapters on the head": {"target_modules": ["q_proj", "lm_head"]},
    "biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_read_as_peft_reads_them(tmp_path, command, name):
    recipe = project(tmp_path, **UNTIED, attention_bias=True)
    folders = [save_adapters(tmp_path, f"checkpoint-{step}", step, **ADAPTERS[name]) for step in (1, 2)]
    found = taught(command, tmp_path, recipe)
    for folder in folders:
        assert found[folder.name] == pytest.approx(loss(plain(tmp_path, folder)), abs=1e-4)
    assert abs(found["checkpoint-1"] - found["checkpoint-2"]) > 1e-3
    teacher = loss(AutoModelForCausalLM.from_pretrained(tmp_path / "models/teacher"))
    assert all(abs(value - teacher) > 1e-3 for value in found.values())


def test_whole_models_shards_adapters_and_the_base_itself_in_one_list(tmp_path, command):
    recipe = project(tmp_path)
    shutil.copytree(tmp_path / "models/teacher", tmp_path / "given/checkpoint-0")
    folders = [tmp_path / "given/checkpoint-0", save_adapters(tmp_path, "checkpoint-900"),
               save_whole(tmp_path, "checkpoint-1000", 3, max_shard_size="30KB")]  # fmt: skip
    assert len(list(folders[2].glob("*.safetensors"))) > 1
    found = taught(command, tmp_path, recipe)
    assert list(found) == ["checkpoint-0", "checkpoint-900", "checkpoint-1000"]
    for folder in folders:
        assert found[folder.name] == pytest.approx(loss(plain(tmp_path, folder)), abs=1e-4)


@pytest.mark.parametrize(
    "first",
    [
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["norm"], "target_modules": ["q_proj"]},
        {"bias": "all", "target_modules": ["q_proj"]},
        {"init_lora_weights": "pissa", "target_modules": ["q_proj"]},
    ],
    ids=lambda settings: str(next(iter(settings.values()))),
)
def test_what_one_checkpoint_trained_is_not_in_the_next(tmp_path, command, first):
    """PEFT leaves whole layers, biases and PiSSA's remainder in the base that adapters are taken off."""
    recipe = project(tmp_path, **UNTIED, attention_bias=True)
    folders = [save_trained(tmp_path, "checkpoint-1", **first), save_adapters(tmp_path, "checkpoint-2", 2)]
    taught(command, tmp_path, recipe)
    for folder in folders:
        cached = read_jsonl(tmp_path / "run/cache" / folder.name / "sample_loss.jsonl")
        expected = losses(plain(tmp_path, folder), color_rows("train", 12))
        assert [line["nll"] for line in cached] == pytest.approx(expected, abs=1e-4)


def test_the_first_checkpoint_is_that_of_the_fewest_steps(tmp_path):
    project(tmp_path)
    for step in (1000, 900):
        save_whole(tmp_path, f"checkpoint-{step}", step)
    assert base_of(str(tmp_path / "given")) == str(tmp_path / "given/checkpoint-900")


def test_a_list_against_the_order_of_training_is_refused(tmp_path):
    project(tmp_path)
    folders = [str(save_whole(tmp_path, f"checkpoint-{step}", step)) for step in (1000, 900)]
    teacher = Model(model_name_or_path=str(tmp_path / "models/teacher"))
    with pytest.raises(ModelError, match=r"Write \[checkpoint-900, checkpoint-1000\]"):
        list_checkpoints(folders, teacher)
    (tmp_path / "given/checkpoint-900").rename(tmp_path / "given/last")
    named = [folders[0], str(tmp_path / "given/last")]
    assert [folder.name for folder in list_checkpoints(named, teacher)] == ["checkpoint-1000", "last"]


# --- the base of adapters ---


def renamed_base(folder: Path, base: str, **more) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base, **more}))


@pytest.mark.parametrize(
    "base", ["/gone/teacher", "someone/Teacher", "models/../elsewhere/teacher", "C:\\work\\teacher"]
)
def test_adapters_whose_base_has_moved_go_with_a_model_of_that_name(tmp_path, base):
    project(tmp_path)
    folder = save_adapters(tmp_path, "checkpoint-1")
    renamed_base(folder, base)
    teacher = Model(model_name_or_path=str(tmp_path / "models/teacher"))
    assert list_checkpoints(str(tmp_path / "given"), teacher) == [folder]


def test_adapters_whose_base_was_copied_go_with_the_copy(tmp_path):
    project(tmp_path)
    folder = save_adapters(tmp_path, "checkpoint-1")
    shutil.copytree(tmp_path / "models/teacher", tmp_path / "copy-of-it")
    assert list_checkpoints(str(tmp_path / "given"), Model(model_name_or_path=str(tmp_path / "copy-of-it"))) == [folder]


@pytest.mark.parametrize("base", ["/gone/another", "someone/teacher-instruct", "models/student"])
def test_adapters_of_another_base_are_refused_with_the_way_out(tmp_path, monkeypatch, base):
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = save_adapters(tmp_path, "checkpoint-1")
    renamed_base(folder, base)
    with pytest.raises(ModelError) as caught:
        list_checkpoints(str(tmp_path / "given"), Model(model_name_or_path=str(tmp_path / "models/teacher")))
    assert base in str(caught.value) and "adapter_config.json" in str(caught.value)


# --- revisions on the hub ---


def test_revisions_on_the_hub_are_checkpoints_by_their_names(tmp_path, command, monkeypatch):
    """The hub keeps its downloads in folders that are named by hashes."""
    recipe, asked = project(tmp_path), []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        folder = tmp_path / "hub/models--someone--teacher/snapshots" / f"hash-of-{revision}"
        if not folder.exists():
            shutil.copytree(save_whole(tmp_path, revision, len(revision)), folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    values = yaml.safe_load(recipe.read_text())
    values["teach"]["checkpoints"] = ["someone/teacher@step-9", "someone/teacher@step-10"]
    recipe.write_text(yaml.safe_dump(values))
    found = taught(command, tmp_path, recipe)
    assert list(found) == ["teacher@step-9", "teacher@step-10"]
    assert set(asked) == {("someone/teacher", "step-9"), ("someone/teacher", "step-10")}
    assert found["teacher@step-10"] == pytest.approx(loss(plain(tmp_path, tmp_path / "given/step-10")), abs=1e-4)


def test_a_revision_that_the_hub_does_not_have_is_one_message(tmp_path, monkeypatch):
    def missing(name, **options):
        raise OSError("404: there is no step-7")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ModelError, match="someone/teacher@step-7"):
        list_checkpoints(["someone/teacher@step-7"], Model(model_name_or_path="someone/teacher"))
