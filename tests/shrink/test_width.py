"""`tutelage shrink --width`: which feed-forward units stay."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.project import Command
from helpers.rows import PAD
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.shrink.healing import heal_model
from tutelage.shrink.plan import HealingPlan
from tutelage.shrink.width import feed_forwards, most_active, prune_units, unit_activation

ROWS = [EncodedRow(f"r{number}", "train", list(range(97, 97 + 6 + number)), [98, 99]) for number in range(5)]
IDS = torch.tensor([list(range(97, 110))])


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("cats see a. dogs eat b. cats eat c.\n" * 60)
    return file


@pytest.fixture
def saved(tmp_path):
    """A model of three layers and 64 feed-forward units."""
    folder = tmp_path / "model"
    tiny_model(0, hidden=32, layers=3).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).intermediate_size == 64
    return folder


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox", "phi"])
def test_the_narrow_model_gives_what_the_wide_one_gives_whose_other_units_are_zero(arch):
    """gpt_neox and phi have biases and no gate."""
    narrow, wide = (tiny_model(3, arch).double().eval() for _ in range(2))
    kept = [[1, 4, 5, 30], [0, 2, 9, 31]]
    with torch.no_grad():
        for block, units in zip(feed_forwards(wide), kept, strict=True):
            others = [unit for unit in range(block.down.in_features) if unit not in units]
            block.down.weight[:, others] = 0
        expected, found = wide(IDS).logits, prune_units(narrow, kept)(IDS).logits
    assert torch.allclose(expected, found, atol=1e-12)
    assert narrow.config.intermediate_size == 4 and narrow.num_parameters() < wide.num_parameters()


def test_activation_by_hand():
    model = tiny_model(0).eval()
    seen = {}
    block = model.model.layers[0].mlp
    handle = block.down_proj.register_forward_pre_hook(lambda module, args: seen.update(units=args[0]))
    batch = Collator(PAD)(list(enumerate(ROWS)))
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    expected = seen["units"][batch["attention_mask"].bool()].abs().mean(dim=0)
    for batch_size in (1, 5):  # padding does not count
        found = unit_activation(model, ROWS, pad_id=PAD, batch_size=batch_size)
        assert found[0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_units_that_do_nothing_are_dropped():
    model = tiny_model(0)
    dead = [[3, 7], [0, 5]]
    with torch.no_grad():
        for block, units in zip(feed_forwards(model), dead, strict=True):
            block.up[0].weight[units] = 0
    units = model.config.intermediate_size
    kept = most_active(unit_activation(model, ROWS, pad_id=PAD, batch_size=2), units - 2)
    assert kept == [[unit for unit in range(units) if unit not in own] for own in dead]
    assert most_active([torch.tensor([1.0, 2.0, 2.0, 0.0])], 2) == [[1, 2]]


@pytest.mark.parametrize("arch", ["mixtral", "phi3", "opt"])
def test_experts_fused_gates_and_loose_projections_are_refused(arch):
    with pytest.raises(ModelError, match="no single plain feed-forward block"):
        feed_forwards(tiny_model(0, arch))


def test_from_the_command(command, saved, text, tmp_path):
    assert command("shrink", saved, tmp_path / "narrow", "--width", 16, "--text", text) == 0
    assert "3 of 3 layers of 16 feed-forward units" in " ".join(command.err.split())
    assert command("shrink", saved, tmp_path / "both", "--width", 16, "--layers", 2, "--text", text) == 0
    for name, layers in (("narrow", 3), ("both", 2)):
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values())
        assert (model.config.num_hidden_layers, model.config.intermediate_size) == (layers, 16)


def test_healed_and_recorded(command, saved, text, tmp_path):
    heal = ["--heal", "--text", text, "--tokens", 3_000, "--block-length", 32, "--learning-rate", "3e-3"]
    assert command("shrink", saved, tmp_path / "small", "--width", 16, "--layers", 2, *heal) == 0
    record = json.loads((tmp_path / "small/healing.json").read_text())
    assert record["units"] == {"kept": 16, "of": 64} and record["layers"]["kept"] == [0, 2]
    lines = [line.split("\t") for line in command.out.splitlines()]
    assert [(line[1], line[2]) for line in lines[1:]] == [("3", "64"), ("2", "16"), ("2", "16")]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert model.num_parameters() == record["parameters"]["pruned"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "type --layers with the number of layers to keep, or --width"),
        (["--width", "16"], "add --text FILE"),
        (["--width", "64", "--text", "text.txt"], "between 1 and 63"),
        (["--width", "16", "--by", "influence", "--text", "text.txt"], "all are kept"),
    ],
)
def test_wrong_options_are_refused_with_what_to_type(command, saved, text, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    assert command("shrink", saved, "small", *options) == 2
    assert said in " ".join(command.err.split()) and not list(tmp_path.glob("small*"))


def test_a_width_that_the_model_cannot_have_leaves_nothing_behind(saved, text, tmp_path):
    plan = HealingPlan(None, (text,), width=64, tokens=3_000, block_length=32)
    with pytest.raises(ModelError, match="between 1 and 63"):
        heal_model(str(saved), tmp_path / "small", plan)
    assert not list(tmp_path.glob("small*"))  # another width can be typed at once
