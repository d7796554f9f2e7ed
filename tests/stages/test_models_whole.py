"""Models that are not whole stop a run before anything trains; what a run saves is what it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.project import Command, make_project
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.doctor import examine_file
from tutelage.errors import Kind
from tutelage.models.generation import end_ids
from tutelage.models.load import cut_vocabulary, load_model, load_trainable
from tutelage.models.save import save_student
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Model
from tutelage.training import run_models


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def too_small(folder: Path) -> None:
    tiny_model(vocab_size=200, eos_token_id=199, pad_token_id=198).save_pretrained(folder)


def config_as_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def adapters_alone(folder: Path) -> None:
    """transformers finds the base by their config and loads both, but new adapters cannot be put on them."""
    base = folder.with_name(f"{folder.name}-base")
    folder.rename(base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def as_whole_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {key: (weights[key] * 10).to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def end_that_is_text(folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=[256, "x"])


def end_beyond_the_vocabulary(folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=[256, 9999])


def end_in_config_beyond_the_vocabulary(folder: Path) -> None:
    change_json(folder / "config.json", eos_token_id=10**9)


def no_longest_text(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", model_max_length="x")


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (as_whole_numbers, Kind.WEIGHTS_NOT_FLOATS),
        (end_that_is_text, Kind.END_IDS_INVALID),
        (end_beyond_the_vocabulary, Kind.END_IDS_INVALID),
        (end_in_config_beyond_the_vocabulary, Kind.END_IDS_INVALID),
        (no_longest_text, None),
        (without_head, Kind.WEIGHTS_INCOMPLETE),
        (with_nan, Kind.WEIGHTS_NOT_FINITE),
        (too_small, Kind.EMBEDDINGS_TOO_SMALL),
        (cut_short, None),
        (config_as_list, None),
        (adapters_alone, Kind.ADAPTERS_WITHOUT_BASE),
    ],
)
def test_prepare_and_doctor_find_a_model_that_is_not_whole(tmp_path, command, fault, kind, role):
    recipe = make_project(tmp_path)
    fault(tmp_path / "models" / role)
    assert command("run", recipe) == 2
    assert str(tmp_path / "models" / role) in command.err or role in command.err
    assert kind is None or f"[{kind}]" in command.err
    assert not (tmp_path / "run" / "teach").exists()
    failing = [check for check in examine_file(recipe) if check.status == "fail"]
    assert failing and (kind is None or failing[0].kind == kind)


def test_a_checkpoint_that_is_not_whole_is_found_before_the_cache(tmp_path, command):
    recipe = make_project(tmp_path, teach={"checkpoints": str(tmp_path / "own"), "trainer": {}, "num_checkpoints": 4})
    for step in (1, 2):
        tiny_model(step, hidden=32, layers=4).save_pretrained(tmp_path / "own" / f"checkpoint-{step}")
    without_head(tmp_path / "own" / "checkpoint-2")
    assert command("prepare", recipe) == 2
    assert f"[{Kind.WEIGHTS_INCOMPLETE}]" in command.err and "checkpoint-2" in command.err
    check = next(check for check in examine_file(recipe) if check.status == "fail")
    assert (check.kind, check.change) == (Kind.WEIGHTS_INCOMPLETE, "teach.checkpoints=...")


def test_adapters_that_are_whole_numbers_or_of_no_base_are_refused(tmp_path, command):
    own = tmp_path / "own" / "checkpoint-1"
    recipe = make_project(
        tmp_path,
        teach={"checkpoints": str(own.parent), "trainer": {}},
        teacher={"lora": {"target_modules": ["q_proj"]}},
    )
    trained = load_trainable(load_recipe(recipe).recipe.teacher, None, 0)
    trained.save_pretrained(own)
    assert command("prepare", recipe) == 0, command.err
    change_json(own / "adapter_config.json", base_model_name_or_path=["x"])
    assert command("prepare", recipe, "--force") == 2 and "base_model_name_or_path" in command.err
    change_json(own / "adapter_config.json", base_model_name_or_path=str(tmp_path / "models" / "teacher"))
    weights = load_file(own / "adapter_model.safetensors")
    save_file({key: weight.to(torch.int8) for key, weight in weights.items()}, own / "adapter_model.safetensors")
    assert command("prepare", recipe, "--force") == 2 and f"[{Kind.WEIGHTS_NOT_FLOATS}]" in command.err
    check = next(check for check in examine_file(recipe) if check.status == "fail")
    assert (check.kind, check.change) == (Kind.WEIGHTS_NOT_FLOATS, "teach.checkpoints=...")


def test_masks_and_positions_of_a_file_are_no_weights(tmp_path, command):
    recipe = make_project(tmp_path)
    model = tiny_model(1, "gpt2")
    model.save_pretrained(tmp_path / "models" / "student")
    path = tmp_path / "models" / "student" / "model.safetensors"
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    buffers["transformer.position_ids"] = torch.arange(8)
    save_file(load_file(path) | buffers, path, {"format": "pt"})
    assert command("prepare", recipe) == 0, command.err


def test_a_cut_vocabulary_leaves_no_end_beyond_it(tmp_path):
    model = tiny_model(1, vocab_size=320, eos_token_id=[256, 300])
    model.generation_config.eos_token_id = [300]
    cut_vocabulary(model, 258)
    save_student(model, byte_tokenizer(), tmp_path / "cut")
    assert end_ids(load_model(Model(model_name_or_path=str(tmp_path / "cut"))), byte_tokenizer()) == [256]


def test_adapters_on_a_tied_head_are_refused_before_anything_trains(tmp_path, command):
    recipe = make_project(tmp_path, student={"lora": {"target_modules": ["q_proj", "lm_head"]}})
    tiny_model(1, tie_word_embeddings=True).save_pretrained(tmp_path / "models" / "student")
    assert command("prepare", recipe) == 2 and f"[{Kind.ADAPTERS_ON_TIED_HEAD}]" in command.err
    failing = [check.kind for check in examine_file(recipe) if check.status == "fail"]
    assert failing == [Kind.ADAPTERS_ON_TIED_HEAD]


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['content'].startswith('train thing 7') %}{{ raise_exception('no sevens') }}{% endif %}x",
        "{{ messages[0]['content'] if '7' not in messages[0]['content'] else messages[9].role.x }}",
        "{% for m in messages %}{{ m['content'] }}",
        "{{ 1 + messages[0]['content'] }}",
    ],
    ids=["refuses", "undefined", "broken", "type"],
)
def test_a_chat_template_that_refuses_a_row_names_it(tmp_path, command, template):
    recipe = make_project(tmp_path, data={"chat_template": True})
    for role in ("teacher", "student"):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "models" / role)
    assert command("prepare", recipe) == 2
    assert f"[{Kind.CHAT_TEMPLATE_FAILED}]" in command.err and "row train-" in command.err
    failing = [check for check in examine_file(recipe) if check.status == "fail"]
    assert [check.kind for check in failing] == [Kind.CHAT_TEMPLATE_FAILED]


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "adapters"])
def test_a_run_with_padded_vocabularies_ends_with_a_student_without_padding(tmp_path, command, lora):
    recipe = make_project(tmp_path, student={"lora": lora}, teacher={"lora": lora})
    tiny_model(0, hidden=32, layers=4, vocab_size=320).save_pretrained(tmp_path / "models" / "teacher")
    tiny_model(1, vocab_size=288, tie_word_embeddings=True).save_pretrained(tmp_path / "models" / "student")
    method = "scd-aw" if lora else "ccd"  # an optimizer for each stage, and one over all stages
    for stage in ("prepare", "teach", "anchor", "cache", "distill"):
        assert command(stage, recipe, f"distill.methods=[{method}]") == 0, command.err
    for folder in ("anchor", f"distill/{method}/seed-0"):
        saved = tmp_path / "run" / folder
        assert json.loads((saved / "config.json").read_text())["vocab_size"] == 258
        assert len(load_file(saved / "model.safetensors")["model.embed_tokens.weight"]) == 258


def test_a_saved_student_with_another_loss_is_an_error(tmp_path, command, monkeypatch):
    def forgetful(model, tokenizer, folder):
        with torch.no_grad():
            model.lm_head.weight.neg_()
        save_student(model, tokenizer, folder)

    recipe = make_project(tmp_path)
    assert command("prepare", recipe) == 0
    monkeypatch.setattr(run_models, "save_student", forgetful)
    assert command("anchor", recipe) == 2
    assert f"[{Kind.SAVED_MODEL_DIFFERS}]" in command.err
    assert not (tmp_path / "run" / "anchor" / "manifest.json").exists()
