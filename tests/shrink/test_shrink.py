"""`tutelage shrink`: which layers stay, and the healing of a pruned model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.project import Command, write_rows
from helpers.rows import PAD, VOCABULARY
from helpers.tiny import EOS, byte_tokenizer, tiny_model
from tutelage.data.collate import IGNORED, Collator
from tutelage.errors import ConfigError, DataError, ModelError, RunLockedError, StaleArtifactError
from tutelage.method.mixed_loss import mixed_loss
from tutelage.models.evaluation import sample_losses
from tutelage.models.heads import answer_logits
from tutelage.models.load import load_model
from tutelage.recipe.schema import Model
from tutelage.run.manifest import locked
from tutelage.shrink import healing
from tutelage.shrink.healing import Healing, heal_model
from tutelage.shrink.influence import block_influence, most_influential
from tutelage.shrink.make import shrink_model
from tutelage.shrink.plan import HealingPlan, trained_tokens, training_steps
from tutelage.shrink.text import as_rows, pack, read_documents, split_blocks
from tutelage.teacher.sources import CachedTeacher, LiveTeacher
from tutelage.utils.files import read_jsonl

LINES = [f"{animal} {verb} {thing}.\n" for animal in ("cats", "dogs") for verb in ("see", "eat") for thing in "abc"]


class Killed(Exception):
    """Simulates a kill between two optimizer steps."""


def write_text(path: Path, lines: int = 400) -> Path:
    picks = np.random.default_rng(0).integers(len(LINES), size=lines)
    path.write_text("".join(LINES[pick] for pick in picks), encoding="utf-8")
    return path


def blocks_of(file: Path, length: int = 32) -> list:
    blocks = pack(read_documents([file], byte_tokenizer()), length)
    return list(as_rows(blocks, range(len(blocks)), "train"))


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Path, Path]:
    """A model of 4 layers that knows the text, its third layer nearly the identity; and the text."""
    folder = tmp_path_factory.mktemp("taught")
    file, model = write_text(folder / "text.txt"), tiny_model(0, hidden=32, layers=4)
    lame(model, 2)
    rows = blocks_of(file)
    ids = torch.tensor([row.prompt + row.answer for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(120):
        batch = ids[torch.randint(len(ids), (16,), generator=order)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder / "model", file


def lame(model, index: int, share: float = 1e-3) -> None:
    """Make a layer nearly the identity: what it adds becomes tiny."""
    layer = model.model.layers[index]
    with torch.no_grad():
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.mul_(share)


def small_plan(file: Path, **changed) -> HealingPlan:
    given = {"layers": 2, "tokens": 16_000, "block_length": 32, "learning_rate": 3e-3}
    return HealingPlan(text=(file,), **{**given, **changed})


# --- which layers stay ---


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "granite"])
@pytest.mark.parametrize("index", [1, 2])
def test_the_layer_that_changes_nothing_is_the_one_dropped(tmp_path, arch, index):
    model, rows = tiny_model(3, arch, layers=4), blocks_of(write_text(tmp_path / "t.txt"))
    layer = model.model.layers[index]
    with torch.no_grad():
        names = {"o_proj", "down_proj", "post_attention_layernorm", "post_feedforward_layernorm"}
        for name, weight in layer.named_parameters():
            if name.split(".")[-2] in (names if arch == "gemma2" else {"o_proj", "down_proj"}):
                weight.copy_(-0.999 * torch.ones_like(weight) if "layernorm" in name else weight * 1e-3)
    found = block_influence(model, rows, pad_id=PAD, batch_size=4)
    assert found[index] < 1e-3 < min(value for other, value in enumerate(found) if other != index)
    assert most_influential(found, 3) == [other for other in range(4) if other != index]


def test_influence_by_hand(tmp_path):
    model, rows = tiny_model(3, layers=3), blocks_of(write_text(tmp_path / "t.txt"))[:7]
    similarities = [[] for _ in range(3)]
    for row in rows:
        with torch.no_grad():
            # the last entry has the final norm applied, so the last layer's output is taken from a model without it
            states = model(torch.tensor([(row.prompt + row.answer)[:-1]]), output_hidden_states=True).hidden_states
        for index in range(2):
            similarities[index] += torch.cosine_similarity(states[index], states[index + 1], dim=-1)[0].tolist()
    expected = [1 - np.mean(values) for values in similarities[:2]]
    for batch_size in (1, 3, 7):
        assert block_influence(model, rows, pad_id=PAD, batch_size=batch_size)[:2] == pytest.approx(expected, abs=1e-5)


def test_the_first_layer_always_stays():
    assert most_influential([0.0, 0.3, 0.1, 0.2], 2) == [0, 1]
    assert most_influential([0.0, 0.2, 0.2, 0.2], 3) == [0, 1, 2]  # of equals, the earlier


def test_shrink_by_influence_from_the_command(command, taught, tmp_path):
    model, file = taught
    assert command("shrink", model, tmp_path / "small", "--layers", 3, "--by", "influence", "--text", file) == 0
    assert "dropped: layers 2" in command.err
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for new, old in ((0, 0), (1, 1), (2, 3)):
        name = "self_attn.q_proj.weight"
        assert torch.equal(small[f"model.layers.{new}.{name}"], whole[f"model.layers.{old}.{name}"])
    assert not (tmp_path / "small" / "healing.json").exists()


# --- text ---


def test_documents_of_every_kind_of_file(tmp_path):
    tokenizer = byte_tokenizer()
    write_rows(tmp_path / "label.jsonl", [{"text": "one", "label": "x"}, {"text": ""}, {"content": "two"}])
    write_rows(tmp_path / "prompt.jsonl", [{"prompt": "ask", "completion": "say"}])
    write_rows(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    (tmp_path / "plain.txt").write_text("a\n\nb\n")
    (tmp_path / "table.csv").write_text("text,other\nthree,1\n")
    files = [tmp_path / name for name in ("label.jsonl", "prompt.jsonl", "chat.jsonl", "plain.txt", "table.csv")]
    texts = [tokenizer.decode(ids) for ids in read_documents(files, tokenizer)]
    assert texts == [f"{text}{EOS}" for text in ("one", "two", "ask say", "hi", "a\n\nb\n", "three")]


def test_a_large_plain_text_is_tokenized_in_pieces_without_a_loss(tmp_path, monkeypatch):
    file = write_text(tmp_path / "t.txt")
    whole = list(read_documents([file], byte_tokenizer()))
    monkeypatch.setattr("tutelage.shrink.text.CHUNK", 50)
    assert list(read_documents([file], byte_tokenizer())) == whole


def test_the_text_of_a_recipe_is_the_prompts_of_its_training_and_unlabelled_rows(tmp_path):
    train = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(20)]
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "test.jsonl", [{"text": "z", "label": "a"}])
    write_rows(tmp_path / "more.jsonl", [{"text": "u1"}, {"text": "z"}])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: {{type: classification}}\ndata: {{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl,"
        f" unlabelled: {tmp_path}/more.jsonl,"
        ' template: "Text: {text}\\nLabel:"}\nteacher: {model_name_or_path: a}\nstudent: {model_name_or_path: b}\n'
    )
    texts = [byte_tokenizer().decode(ids) for ids in read_documents([recipe], byte_tokenizer())]
    assert texts.pop() == f"Text: u1\nLabel:{EOS}"  # no prompt of a test row
    assert set(texts) <= {f"Text: {row['text']}\nLabel:{EOS}" for row in train} and len(texts) > 10


def test_rows_without_text_are_refused_with_the_way_out(tmp_path):
    write_rows(tmp_path / "r.jsonl", [{"number": 1, "other": 2}])
    with pytest.raises(DataError, match=r"r.jsonl:1: none of the columns number, other .* call that column `text`"):
        list(read_documents([tmp_path / "r.jsonl"], byte_tokenizer()))


def test_blocks_have_equal_length_and_the_held_out_ones_are_not_trained_on():
    blocks = pack([[1, 2, 3, 9], [4, 5, 9], [6]], 3)
    assert blocks.tolist() == [[1, 2, 3], [9, 4, 5]]
    for count, wanted in ((2, 50), (40, 1000), (1000, 95), (1000, 2000)):
        split = split_blocks(count, wanted, 0)
        used = set(split.train) | set(split.held_out)
        assert len(used) == len(split.train) + len(split.held_out) <= count
        assert len(split.held_out) == max(1, round(0.05 * len(used))) and len(split.train) == min(
            wanted, count * 95 // 100
        )
    assert split_blocks(1000, 95, 0) != split_blocks(1000, 95, 1)


@pytest.mark.parametrize(("tokens", "blocks", "batch"), [(1, 10, 4), (320, 10, 4), (321, 10, 4), (10_000, 7, 8)])
def test_the_steps_cover_the_tokens(tokens, blocks, batch):
    plan = HealingPlan(2, (), tokens=tokens, batch_size=batch, block_length=32)
    seen, steps = 0, 0
    while seen < tokens:
        left = blocks - (steps % -(-blocks // batch)) * batch
        seen, steps = seen + 32 * min(batch, left), steps + 1
    assert (training_steps(plan, blocks), trained_tokens(plan, blocks)) == (steps, seen)


# --- healing ---


def test_healing_lowers_the_perplexity_of_a_pruned_model(command, taught, tmp_path):
    model, file = taught
    options = ["--text", file, "--heal", "--tokens", 30_000, "--block-length", 32, "--learning-rate", "3e-3"]
    assert command("shrink", model, tmp_path / "small", "--layers", 2, *options) == 0
    record = json.loads((tmp_path / "small" / "healing.json").read_text())
    unpruned, pruned, healed = (record["perplexity"][name] for name in ("unpruned", "pruned", "healed"))
    assert unpruned < healed < 0.5 * pruned
    assert record["layers"] == {"kept": [0, 3], "of": 4, "by": "even"} and len(record["influence"]) == 4
    assert record["tokens"] >= 30_000 and record["model"] == str(model)
    assert [line.split("\t")[0] for line in command.out.splitlines()] == ["model", "unpruned", "pruned", "healed"]
    losses = [line["loss"] for line in read_jsonl(tmp_path / "small" / "log.jsonl") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "small"]  # the working folder is gone
    small, tokenizer = (kind.from_pretrained(tmp_path / "small") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = torch.tensor([tokenizer("cats ")["input_ids"]])
    assert tokenizer.decode(small.generate(ids, max_new_tokens=3)[0]) in ("cats see", "cats eat")


def test_the_recorded_perplexity_is_that_of_the_saved_model(taught, tmp_path):
    model, file = taught
    plan = small_plan(file, tokens=3_000)
    heal_model(str(model), tmp_path / "small", plan)
    blocks = pack(read_documents([file], byte_tokenizer()), 32)
    held_out = list(as_rows(blocks, split_blocks(len(blocks), -(-3_000 // 32), 0).held_out, "validation"))
    record = json.loads((tmp_path / "small" / "healing.json").read_text())
    for name, folder in (("unpruned", model), ("healed", tmp_path / "small")):
        loaded = load_model(Model(model_name_or_path=str(folder)))
        losses = sample_losses(loaded, held_out, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)
        assert record["perplexity"][name] == pytest.approx(math.exp(losses.mean()), rel=0.01)


@pytest.mark.parametrize("kill_at", [1, 13, 40])
def test_killed_and_resumed_equals_never_killed_bit_for_bit(taught, tmp_path, kill_at):
    model, file = taught
    heal_model(str(model), tmp_path / "whole", small_plan(file))

    def kill(done, total):
        if done == kill_at:
            raise Killed

    out, working = tmp_path / "killed", tmp_path / "killed.healing"
    with locked(working), pytest.raises(Killed):
        Healing(str(model), out, small_plan(file), working, kill).run()
    assert working.is_dir() and not out.exists()
    heal_model(str(model), out, small_plan(file))
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = [
        [(line["step"], line["loss"]) for line in read_jsonl(tmp_path / name / "log.jsonl") if "loss" in line]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("step", ["_write_blocks", "_prune", "_record", "discard", "rmtree"])
def test_a_kill_before_or_after_training_is_continued(taught, tmp_path, monkeypatch, step):
    model, file = taught
    out, plan = tmp_path / "small", small_plan(file, tokens=2_000)
    owner = {"discard": healing, "rmtree": shutil}.get(step, Healing)

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(Killed):
            heal_model(str(model), out, plan)
    heal_model(str(model), out, plan)
    assert (out / "healing.json").is_file() and list(tmp_path.iterdir()) == [out]


def test_stored_hidden_states_give_the_loss_of_the_live_model(taught, tmp_path):
    model, file = taught

    def kill(done, total):
        raise Killed

    working = tmp_path / "small.healing"
    with locked(working), pytest.raises(Killed):
        Healing(str(model), tmp_path / "small", small_plan(file), working, kill).run()
    job = Healing(str(model), tmp_path / "small", small_plan(file), working)
    rows = job.rows[:6]
    stored = CachedTeacher(working / "cache", ["unpruned"], job.rows)
    live = LiveTeacher(["unpruned"], lambda _: load_model(Model(model_name_or_path=str(model))), rows, VOCABULARY, PAD)
    student, batch = tiny_model(9), Collator(PAD)(list(enumerate(rows)))
    mask = batch["targets"] != IGNORED
    assert mask.all() and mask.shape == (6, 31)  # every position but the first, which nothing predicts
    losses = []
    for source in (live, stored):
        with torch.no_grad():
            logits = answer_logits(student, batch)[mask]
            targets = source.targets("unpruned", batch)
        losses.append(float(mixed_loss(logits, batch["targets"][mask], mask, torch.ones(6), targets).total))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # they are stored in bfloat16


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "influence"], "add --text FILE"),
        (["--heal"], "add --text FILE"),
        (["--tokens", "100", "--seed", "1"], "--tokens, --seed sets how the pruned model is healed"),
        (["--text", "t.txt"], "add one of them, or leave --text out"),
        (["--heal", "--text", "nowhere.txt"], "nowhere.txt"),
        (["--heal", "--text", "t.txt", "--block-length", "4096"], "--block-length 2048"),
        (["--heal", "--text", "few.txt"], "two blocks of 512"),
        (["--heal", "--text", "t.txt", "--tokens", "4000"], "raise --tokens"),
        (["--heal", "--text", "t.txt", "--layers", "4"], "between 2 and 3"),
        (["--by", "size"], "influence"),
    ],
)
def test_wrong_options_are_refused_with_what_to_type(command, taught, tmp_path, monkeypatch, options, said):
    model, file = taught
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(file.read_text())
    (tmp_path / "few.txt").write_text("short")
    assert command("shrink", model, "small", "--layers", 2, *options) == 2
    assert said in command.err and not list(tmp_path.glob("small*"))


def test_a_folder_that_exists_is_refused_before_anything_is_read(taught, tmp_path, monkeypatch):
    model, file = taught
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(healing, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ModelError, match="exists already"):
        heal_model(str(model), tmp_path / "small", small_plan(file))
    with pytest.raises(ModelError, match="exists already"):
        shrink_model(str(model), tmp_path / "small", 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "small"]


def test_unfinished_work_of_other_options_and_a_second_process_are_refused(taught, tmp_path):
    model, file = taught
    out, working = tmp_path / "small", tmp_path / "small.healing"

    def kill(done, total):
        raise Killed

    with locked(working):
        with pytest.raises(RunLockedError, match="another OUT"):
            heal_model(str(model), out, small_plan(file))
        with pytest.raises(Killed):
            Healing(str(model), out, small_plan(file, batch_size=16), working, kill).run()
    with pytest.raises(StaleArtifactError, match=r"layers: 2 -> 3.*former command.*healing to start anew"):
        heal_model(str(model), out, small_plan(file, layers=3, batch_size=16))
    with pytest.raises(Killed):  # no resume checkpoint yet: the training can have other options
        Healing(str(model), out, small_plan(file), working, lambda done, total: done < 20 or kill(done, total)).run()
    with pytest.raises(StaleArtifactError, match=r"learning_rate: 0.003 -> 0.001.*trainer to train anew"):
        heal_model(str(model), out, small_plan(file, learning_rate=1e-3))
    shutil.rmtree(working / "trainer")
    heal_model(str(model), out, small_plan(file, learning_rate=1e-3))
    assert json.loads((out / "healing.json").read_text())["learning_rate"] == 1e-3


def test_too_little_memory_names_the_option_and_keeps_the_work(taught, tmp_path, monkeypatch):
    model, file = taught

    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 9 GB")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match="smaller --batch-size than 8"):
        patch.setattr(healing, "train", full)
        heal_model(str(model), tmp_path / "small", small_plan(file, tokens=2_000))
    monkeypatch.setattr(healing, "measure_influence", lambda *_: pytest.fail("the text was read again"))
    heal_model(str(model), tmp_path / "small", small_plan(file, tokens=2_000, batch_size=4))


def test_text_that_fills_no_block_is_refused():
    with pytest.raises(ConfigError, match="has 5 tokens"):
        pack([[1, 2, 3, 4, 5]], 4)
