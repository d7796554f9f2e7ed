"""Teachers that do not fit: weights in 4 or 8 bits, and weights that wait elsewhere until their layer is run."""

import importlib.util
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.project import Command, make_project, run_to_the_end
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import Kind, ModelError
from tutelage.models import load, placement
from tutelage.models.adapters import has_adapters
from tutelage.models.evaluation import sample_losses
from tutelage.models.forward import read_batch
from tutelage.models.generation import generate_answers
from tutelage.models.heads import answer_logits, answer_states, head_error, head_of
from tutelage.models.label_scoring import choose_labels
from tutelage.models.load import load_model, load_trainable
from tutelage.recipe.schema import Lora, Model
from tutelage.training.finetuning import fine_tune
from tutelage.training.trainer import training_arguments
from tutelage.utils.files import read_json, read_jsonl

HIDDEN = 64
"""bitsandbytes quantizes weights in blocks of 64."""
ROWS = [EncodedRow(f"r{n}", "train", [60 + n, 70, 71 + n], [80 + n, 81, 256]) for n in range(8)]
VOCABULARY, PAD = 258, 257
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_model(3, hidden=HIDDEN, initializer_range=0.1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def losses(model):
    return sample_losses(model, ROWS, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "bits", "error"), [("4bit", 4, 0.5), ("8bit", 8, 0.05)])
def test_quantized_layers_take_their_bits_and_lose_little(teacher, quantization, bits, error):
    whole = load_model(Model(model_name_or_path=str(teacher)))
    small = load_model(Model(model_name_or_path=str(teacher), quantization=quantization))
    layer, quantized = (model.model.layers[0].mlp.up_proj.weight for model in (whole, small))
    assert quantized.numel() * quantized.element_size() == layer.numel() * bits // 8
    assert small.lm_head.weight.equal(whole.lm_head.weight)  # so that the cache can hold one head for all checkpoints
    difference = abs(losses(whole) - losses(small))
    assert 0 < difference.max() < error
    assert head_error(head_of(small, VOCABULARY), *_states(small)) < 1e-6


def _states(model):
    read = read_batch(model, Collator(PAD)(list(enumerate(ROWS))), VOCABULARY)
    return read.hidden, read.logits


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_on_a_quantized_teacher_read_as_they_were_trained(teacher, tmp_path, quantization, checkpointing):
    section = Model(model_name_or_path=str(teacher), quantization=quantization, lora=Lora(r=4))
    model = load_trainable(section, None, seed=0)
    before, frozen = losses(model), model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.clone()
    args = training_arguments(
        tmp_path / "t", {"learning_rate": 1e-2, "activation_checkpointing": checkpointing}, seed=0, epochs=8
    )
    fine_tune(model, args, ROWS, save_at=[8], log=tmp_path / "log.jsonl", vocabulary=VOCABULARY, pad_id=PAD)
    after, folder = losses(model), tmp_path / "t/checkpoint-8"
    assert after.mean() < before.mean() - 0.5
    assert model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.equal(frozen)
    assert has_adapters(folder) and not list(folder.glob("model*.safetensors"))
    assert losses(load_model(section, folder)) == pytest.approx(after, abs=1e-6)


@needs_bitsandbytes
def test_a_run_with_a_teacher_in_4_bits(tmp_path, command):
    folder = tmp_path / "models/teacher"
    changes = {
        "teacher": {"quantization": "4bit", "lora": {"r": 4}},
        "distill": {"methods": ["scd-aw"]},
    }
    recipe = make_project(tmp_path, **changes)
    tiny_model(3, hidden=HIDDEN, layers=3).save_pretrained(folder)
    run_to_the_end(recipe)
    checkpoints = read_json(tmp_path / "run/teach/checkpoints.json")["checkpoints"]
    assert all(has_adapters(tmp_path / "run/teach" / record["name"]) for record in checkpoints)
    heads = list((tmp_path / "run/cache").glob("head-*.safetensors"))
    assert len(heads) == 1
    # what the cache says of a row is what the teacher itself says of it
    best = read_json(tmp_path / "run/teach/checkpoints.json")["best"]
    scored = [line["nll"] for line in read_jsonl(tmp_path / f"run/teach/validation/{best}.jsonl")]
    assert scored and all(0 < loss < 20 for loss in scored)
    assert command("cache", recipe, "teacher.quantization=8bit") == 2 and "teacher.quantization" in command.err
    assert command("cache", recipe, "teacher.device_map=auto") == 0 and "cache: up to date" in command.err


@pytest.fixture
def spread(monkeypatch, tmp_path):
    """Weights of all layers but the first wait on disk until these are run, as they would with too little memory."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path / "waiting")}
    monkeypatch.setattr(load, "loading_options", lambda model, dtype: options if model.device_map else {})


def test_a_teacher_that_is_spread_out_reads_and_answers_as_a_whole_one(teacher, spread):
    section, spread_out = (Model(model_name_or_path=str(teacher), device_map=where) for where in (None, "auto"))
    whole, model = load_model(section), load_model(spread_out)
    assert model.lm_head.weight.is_meta and placement.device_of(model).type == "cpu"
    assert losses(model).tolist() == losses(whole).tolist()
    assert all(one.equal(other) for one, other in zip(_states(model), _states(whole), strict=True))
    assert head_of(model, VOCABULARY).weight.equal(head_of(whole, VOCABULARY).weight)
    prompts, tokenizer = [row.prompt for row in ROWS], byte_tokenizer()
    answered = [generate_answers(m, tokenizer, prompts, max_new_tokens=6, batch_size=3) for m in (model, whole)]
    assert [answer.text for answer in answered[0]] == [answer.text for answer in answered[1]]
    assert [answer.log_prob for answer in answered[0]] == pytest.approx([answer.log_prob for answer in answered[1]])
    candidates = [[[80, 81], [90]]] * len(ROWS)
    chosen = [choose_labels(m, tokenizer, prompts, candidates, batch_size=3) for m in (model, whole)]
    assert [winner.index for winner in chosen[0]] == [winner.index for winner in chosen[1]]


def test_adapters_are_not_folded_into_a_teacher_that_is_spread_out(teacher, spread, tmp_path):
    section = Model(model_name_or_path=str(teacher), lora=Lora(r=4))
    model = load_trainable(section, None, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapters")
    whole = load_model(section, tmp_path / "adapters")
    other = load_model(section.model_copy(update={"device_map": "auto"}), tmp_path / "adapters")
    assert not any("lora" in name for name, _ in whole.named_parameters()) and other.lm_head.weight.is_meta
    assert losses(other) == pytest.approx(losses(whole), abs=1e-5)


def test_a_teacher_is_trained_on_one_device(teacher):
    model = load_trainable(Model(model_name_or_path=str(teacher), device_map="auto"), None, seed=0)
    assert not hasattr(model, "hf_device_map")


# --- what cannot work ---


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        (["student.quantization=4bit"], "student.quantization: 4bit is for teachers"),
        (["student.device_map=auto"], "student.device_map: auto is for teachers"),
        (
            ["teacher.quantization=8bit"],
            "weights in 8 bits cannot be trained, only adapters on them: write teacher.lora",
        ),
        (["teacher.quantization=2bit"], "teacher.quantization"),
        (["teacher.device_map=cuda"], "teacher.device_map"),
    ],
)
def test_what_a_recipe_cannot_ask_for(tmp_path, command, changes, refusal):
    assert command("prepare", make_project(tmp_path), *changes) == 2
    assert refusal in command.err and not (tmp_path / "run/prepare").exists()


def test_a_missing_package_is_named_before_anything_is_trained(tmp_path, command, monkeypatch):

    def without(name, *more, found=importlib.util.find_spec):
        return None if name == "bitsandbytes" else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    recipe = make_project(tmp_path, teacher={"quantization": "4bit", "lora": {}})
    assert command("prepare", recipe) == 2
    assert "pip install 'tutelage[quantization]'" in command.err
    assert command("doctor", recipe, "--json") == 2
    checks = json.loads(command.out)
    assert {check["kind"] for check in checks if check["name"] == "quantization"} == {Kind.EXTRA_MISSING}
    with pytest.raises(ModelError):
        load_model(Model(model_name_or_path="anything", quantization="8bit"))


class Copies(TorchDispatchMode):
    """Notes the number of elements of every tensor that is copied."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if str(operator) in ("aten.clone.default", "aten.bmm.default"):
            self.largest = max(self.largest, args[-1 if "bmm" in str(operator) else 0].numel())
        return operator(*args, **(kwargs or {}))


def test_the_head_of_a_frozen_model_is_not_copied_for_every_row():
    """torch does so for the last positions of a sequence, if neither they nor the weight require a gradient."""
    frozen, rows = tiny_model(1).requires_grad_(False), ROWS[:6]
    batch = Collator(PAD)(list(enumerate(rows)))
    head, prompts = frozen.get_output_embeddings().weight, [row.prompt for row in rows]
    with torch.no_grad(), Copies() as copies:
        answer_logits(frozen, batch)
    assert copies.largest >= len(rows) * head.numel()  # as torch does it
    for read in (
        lambda: answer_states(frozen, batch),
        lambda: generate_answers(frozen, byte_tokenizer(), prompts, max_new_tokens=3, batch_size=6),
    ):
        with Copies() as copies:
            read()
        assert copies.largest <= head.numel()
        assert not any(weight.requires_grad for weight in frozen.parameters())
