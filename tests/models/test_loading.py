"""Nothing loads half: weights that are missing, unknown, of another shape or NaN are refused, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.errors import Kind, ModelError
from tutelage.models.load import check_weights, cut_vocabulary, load_model, load_tokenizer, load_trainable
from tutelage.models.save import check_same_loss, save_student
from tutelage.recipe.schema import Lora, Model

IDS = torch.tensor([[72, 101, 108, 108, 111]])
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def section(folder: Path, **values) -> Model:
    return Model(model_name_or_path=str(folder), **values)


def rewritten(folder: Path, change, file="model.safetensors", **model) -> Path:
    """A saved tiny model after `change` of its weights, a dict by name."""
    tiny_model(**model).save_pretrained(folder)
    save(change(load_file(folder / file)), folder / file)
    return folder


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: weight.clone() for name, weight in weights.items()}, path, {"format": "pt"})


def without(*names):
    return lambda weights: {name: weight for name, weight in weights.items() if name not in names}


def prefixed(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def refused(model: Model, path: Path | None = None) -> str:
    """The message of both ways to find it: by loading, and by the files alone. Both must have one kind."""
    errors = []
    for check in (load_model, check_weights):
        with pytest.raises(ModelError) as caught:
            check(model, path)
        errors.append(caught.value)
    assert errors[0].kind == errors[1].kind != Kind.MODEL
    return str(errors[0])


# --- whole models ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(HEAD), "1 missing (lm_head.weight)"),
        (without("model.layers.1.mlp.up_proj.weight"), "1 missing (model.layers.1.mlp.up_proj.weight)"),
        (lambda weights: {}, "21 missing (lm_head.weight, model.embed_tokens.weight, "),
        (lambda w: {**w, "model.layers.2.mlp.up_proj.weight": torch.ones(2)}, "1 unexpected (model.layers.2."),
        (lambda w: {**w, "lm_head.bias": torch.ones(258)}, "1 unexpected (lm_head.bias)"),
        (lambda w: {**w, EMBEDDING: torch.ones(200, 16)}, "model.embed_tokens.weight: [200, 16] instead of [258, 16]"),
        (lambda w: {**w, HEAD: torch.ones(0, 16)}, "lm_head.weight: [0, 16] instead of [258, 16]"),
        (lambda w: {**w, "model.norm.weight": torch.full((16,), float("nan"))}, "model.norm.weight"),
        (lambda w: {**w, HEAD: torch.full((258, 16), float("inf"))}, "NaN or infinite (lm_head.weight)"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tmp_path, change, words):
    assert words in refused(section(rewritten(tmp_path, change)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_left_out_and_said(tmp_path, capsys, prefix, tied):
    folder = rewritten(tmp_path / "a", prefixed(prefix), tie_word_embeddings=tied)
    model = load_model(section(folder))
    assert torch.equal(model(IDS).logits, tiny_model(tie_word_embeddings=tied)(IDS).logits)
    assert f"`{prefix}`" in capsys.readouterr().err
    check_weights(section(folder))
    save_student(model, byte_tokenizer(), tmp_path / "b")
    assert not any(name.startswith(prefix) for name in load_file(tmp_path / "b" / "model.safetensors"))


def test_a_prefix_of_some_names_is_named_as_the_cause(tmp_path):
    folder = rewritten(
        tmp_path, lambda w: {("_orig_mod." if "layers.1" in name else "") + name: x for name, x in w.items()}
    )
    message = refused(section(folder))
    assert "`_orig_mod.`" in message and "torch.compile" in message
    both = rewritten(tmp_path / "b", lambda w: w | prefixed("module.")(w))
    assert "`module.`" in refused(section(both))


def test_heads_of_tied_models_are_not_missed_and_those_of_others_keep_their_weights(tmp_path):
    same = rewritten(tmp_path / "a", without(HEAD), tie_word_embeddings=True)
    assert torch.equal(load_model(section(same))(IDS).logits, tiny_model(tie_word_embeddings=True)(IDS).logits)
    other = rewritten(tmp_path / "b", lambda w: w | {HEAD: 2 * w[EMBEDDING]}, tie_word_embeddings=True)
    save_student(load_model(section(other)), byte_tokenizer(), tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["tie_word_embeddings"] is False
    logits = [load_model(section(folder))(IDS).logits for folder in (other, tmp_path / "c", same)]
    assert torch.equal(logits[0], logits[1]) and torch.allclose(logits[0], 2 * logits[2])


def test_buffers_and_parts_beside_the_language_model_are_no_fault(tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "vision_tower.patch.weight": torch.ones(4)}
    folder = rewritten(tmp_path, lambda weights: weights | extra)
    check_weights(section(folder))
    assert load_model(section(folder)).num_parameters() == tiny_model().num_parameters()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "gemma2", "granite", "cohere", "glm4", "mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_is_whole(tmp_path, arch, tied):
    tiny_model(arch=arch, tie_word_embeddings=tied).save_pretrained(tmp_path, max_shard_size="20KB")
    check_weights(section(tmp_path))
    assert torch.isfinite(load_model(section(tmp_path))(IDS).logits).all()


def test_only_safetensors_are_read(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
    assert "only safetensors are read" in refused(section(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[1, 2]", '"text"', "{", "7", "", '{"model": 3}', '{"vocab_size": "many"}'])
def test_files_that_are_no_such_thing_are_user_errors(tmp_path, file, text):
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    for load in (load_model, check_weights, load_tokenizer):
        try:
            load(section(tmp_path))
        except ModelError as error:
            assert str(tmp_path) in str(error)


def test_float16_is_for_reading_and_for_adapters(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_trainable(section(tmp_path, dtype="float16"), None, 0)
    assert caught.value.kind == Kind.FLOAT16_TRAINED
    load_model(section(tmp_path, dtype="float16"))
    load_trainable(section(tmp_path, dtype="float16", lora=Lora()), None, 0)
    large = rewritten(tmp_path / "b", lambda w: {**w, "model.norm.weight": torch.full((16,), 1e6)})
    with pytest.raises(ModelError, match="in float16 are NaN or infinite"):
        load_model(section(large, dtype="float16"))


# --- adapters ---


def adapters(folder: Path, change=lambda weights: weights, targets="all-linear", whole=None, **model) -> Model:
    """A base in `folder/base` with adapters in `folder`, after `change` of their weights."""
    base = tiny_model(**model)
    base.save_pretrained(folder / "base")
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, modules_to_save=whole)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save(change(load_file(path)), path)
    return section(folder / "base")


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: {}, "28 missing"),
        (without(FIRST), f"1 missing ({FIRST.replace('A.weight', 'A.default.weight')})"),
        (lambda w: {f"base_model.{name}": weight for name, weight in w.items()}, "28 missing"),
        (lambda w: {**w, FIRST.replace("layers.0", "layers.7"): w[FIRST]}, "1 unexpected"),
        (lambda w: {**w, FIRST: torch.full_like(w[FIRST], float("nan"))}, "NaN or infinite"),
    ],
)
def test_adapters_that_match_nothing_or_not_all_are_refused(tmp_path, change, words):
    assert words in refused(adapters(tmp_path, change), tmp_path)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0), (2, 31)])
def test_adapters_of_another_size_are_refused(tmp_path, shape):
    base = adapters(tmp_path, lambda weights: {**weights, FIRST: torch.ones(shape)})
    for check in (load_model, check_weights):
        with pytest.raises(ModelError, match="do not fit"):
            check(base, tmp_path)


def test_a_module_that_adapters_replace_as_a_whole_must_be_there(tmp_path):
    base = adapters(tmp_path, whole=["lm_head"])
    load_model(base, tmp_path)
    adapters(tmp_path, lambda w: {name: x for name, x in w.items() if "lm_head" not in name}, whole=["lm_head"])
    with pytest.raises(ModelError, match="lm_head"):
        load_model(base, tmp_path)


def test_adapters_that_fit_are_merged(tmp_path):
    base = adapters(tmp_path)
    check_weights(base, tmp_path)
    assert (load_model(base, tmp_path)(IDS).logits - load_model(base)(IDS).logits).abs().max() > 0.1


def test_adapters_are_read_from_safetensors_alone(tmp_path):
    base = adapters(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter_model.bin")
    path.unlink()
    assert "only safetensors are read" in refused(base, tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"peft_type": "LORA", "r": "x"}', "{"])
def test_an_adapter_config_that_is_none_is_a_user_error(tmp_path, text):
    base = adapters(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    for check in (load_model, check_weights):
        with pytest.raises(ModelError, match="do not fit"):
            check(base, tmp_path)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]])
def test_adapters_on_a_tied_head_are_refused(tmp_path, targets):
    assert "one weight" in refused(adapters(tmp_path, targets=targets, tie_word_embeddings=True), tmp_path)
    with pytest.raises(ModelError) as caught:
        load_trainable(section(tmp_path / "base", lora=Lora(target_modules=targets)), None, 0)
    assert caught.value.kind == Kind.ADAPTERS_ON_TIED_HEAD
    untied = adapters(tmp_path / "untied", targets=targets, tie_word_embeddings=False)
    load_model(untied, tmp_path / "untied")


def test_target_modules_that_match_nothing_are_a_user_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Target modules"):
        load_trainable(section(tmp_path, lora=Lora(target_modules=["attention.query"])), None, 0)


# --- padded vocabularies ---


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "glm4", "gemma", "gemma2", "cohere", "gpt2", "phi"])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_is_cut_and_nothing_else_changes(tmp_path, arch, tied):
    tiny_model(arch=arch, vocab_size=288, tie_word_embeddings=tied, pad_token_id=287).save_pretrained(tmp_path / "a")
    padded = load_model(section(tmp_path / "a"))
    student = load_trainable(section(tmp_path / "a"), None, 0, vocabulary=258).eval()
    assert torch.equal(student(IDS).logits, padded(IDS).logits[..., :258])
    assert student.config.vocab_size == student.get_input_embeddings().num_embeddings == 258
    assert torch.equal(student.get_input_embeddings().weight, padded.get_input_embeddings().weight[:258])
    save_student(student, byte_tokenizer(), tmp_path / "b")
    again = load_model(section(tmp_path / "b"))
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


def test_models_without_padding_stay_and_smaller_ones_are_refused(tmp_path):
    model = tiny_model()
    weight = model.lm_head.weight
    assert cut_vocabulary(model, 258).lm_head.weight is weight
    with pytest.raises(ModelError) as caught:
        cut_vocabulary(model, 259)
    assert caught.value.kind == Kind.EMBEDDINGS_TOO_SMALL


def test_an_architecture_whose_vocabulary_cannot_be_cut_is_refused():
    model = tiny_model(vocab_size=288)
    model.register_forward_hook(lambda module, inputs, out: setattr(out, "logits", out.logits * out.logits.shape[-1]))
    with pytest.raises(ModelError, match="cannot be cut"):
        cut_vocabulary(model, 258)


def test_a_saved_model_with_another_loss_is_refused(tmp_path):
    losses = torch.tensor([1.0, 2.0]).numpy()
    check_same_loss(losses, losses + 0.01, tmp_path)
    for other in (losses + 0.1, losses * float("nan")):
        with pytest.raises(ModelError) as caught:
            check_same_loss(losses, other, tmp_path)
        assert caught.value.kind == Kind.SAVED_MODEL_DIFFERS
