"""Every architecture through a whole run: `python -m benchmarks.architectures [NAME...] [--docs docs/models.md]`.

For each, teacher and student are tiny models with random weights and embeddings that are padded to different sizes;
prompts differ in length. The stages of `tutelage run` go from rows to scores. Then:

    alone      largest difference between a row's loss in the run's padded batches and in plain transformers, one row at
               a time without padding, for the teacher's last checkpoint; nats
    cache      `states` if the cached hidden states and head give the model's own logits, else `top-k`
    fused      whether head and loss are computed together (`fused_loss.py`), which is used only where it equals the
               plain loss
    answers    test rows whose answer is the same in plain `transformers.generate`, one row at a time, of the saved
               student

What a run refuses is shown with the kind of its error. About a quarter of a minute for each.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.endtoend import open_run
from benchmarks.machine import versions
from tutelage.demo.models import build_models
from tutelage.errors import UserError
from tutelage.utils.files import read_json, read_jsonl

START, END = "<!-- table: architectures -->", "<!-- end of table -->"
LABELS = ("red", "green", "blue")
PADDED = {"teacher": 330, "student": 300}
"""Embeddings; the tokenizer has fewer entries."""
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
    "attention_dropout": 0.0,
}
FULL_HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MAMBA = {"state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 4, "n_groups": 1, "chunk_size": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2")},
    **{name: {} for name in ("olmo3", "smollm3", "granite", "cohere", "cohere2", "stablelm", "starcoder2")},
    **{name: {} for name in ("glm", "glm4", "exaone4", "nemotron", "ministral", "hunyuan_v1_dense", "seed_oss")},
    **{name: FULL_HEADS for name in ("phi", "gpt_neox", "olmo", "persimmon")},
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4, "n_layer": 2},
    "falcon": {"num_kv_heads": 2, "head_dim": None},
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32, "num_experts": 4},
    "qwen3_moe": EXPERTS,
    "olmoe": {**EXPERTS, **FULL_HEADS},
    "granitemoe": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v3": {
        **FULL_HEADS,
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32},
        "first_k_dense_replace": 1,
    },
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 8, "head_dim": 8},
    "falcon_mamba": MAMBA,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 16},
    "lfm2": {"full_attn_idxs": [1], "layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "attn_layer_indices": [1]},
    "jamba": {**EXPERTS, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 64},
    "rwkv": {"attention_hidden_size": 32},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}
"""Architecture -> what its config needs besides SHAPE; None takes a setting out."""


def make_project(folder: Path, name: str) -> Path:
    """Rows, models and the recipe in `folder`; returns the recipe."""
    texts = [f"{'a rather ' * (n % 4)}long thing number {n} is {LABELS[n % 3]}" for n in range(24)]
    build_models(folder / "models", texts * 4, vocabulary=290)  # for its tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/student")
    for seed, role in enumerate(("teacher", "student")):
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings = {**SHAPE, **ids, "vocab_size": PADDED[role], **ARCHITECTURES[name]}
        config = AutoConfig.for_model(name, **{key: value for key, value in settings.items() if value is not None})
        torch.manual_seed(seed)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config)
        model.save_pretrained(folder / "models" / role)
        tokenizer.save_pretrained(folder / "models" / role)
    (folder / "data").mkdir()
    for split, part in (("train", texts[:12]), ("validation", texts[12:18]), ("test", texts[18:])):
        rows = [{"text": text, "label": LABELS[n % 3]} for n, text in enumerate(part)]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "output_dir": str(folder / "run"),
        "task": {"type": "classification", "max_new_tokens": 6},
        "data": {"dataset": str(folder / "data"), "template": "{text}\nColor:"},
        "teacher": {"model_name_or_path": str(folder / "models/teacher")},
        "student": {"model_name_or_path": str(folder / "models/student")},
        "trainer": {"per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 0.003, "bf16": False},
        "teach": {"num_checkpoints": 2, "trainer": {"num_train_epochs": 2}},
        "cache": {"dtype": "float32"},
        "distill": {"methods": ["scd-aw"], "select": None, "num_stages": 2, "epochs_per_stage": 1.0, "probe_rows": 4},
        "evaluate": {"resamples": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def examine(folder: Path, name: str) -> dict[str, Any]:
    """A whole run, and what the module says of it."""
    from tutelage.stages import STAGES
    from tutelage.stages.pipeline import run_stages

    run = open_run(make_project(folder, name))
    run_stages(run, [stage for stage in STAGES if stage not in ("diagnose", "report")])
    store = read_json(run.folder / "cache" / run.teacher_checkpoints["best"] / "store.json")
    return {
        "alone": _alone(run),
        "cache": "states" if store["kind"] == "hidden" else store["kind"],
        "fused": _fused(run),
        "answers": _answers(run.folder / "distill/scd-aw/seed-0", run.folder / "evaluate/scd-aw/seed-0"),
    }


def _alone(run: Any) -> float:
    from tutelage.models.load import load_model
    from tutelage.training.run_models import RunModels

    models, last = RunModels(run), run.teacher_checkpoints["checkpoints"][-1]["name"]
    model = load_model(run.recipe.teacher, run.checkpoint_folders[last])
    rows, worst = list(models.encoded("validation")), 0.0
    found = {line["id"]: line["nll"] for line in read_jsonl(run.folder / f"teach/validation/{last}.jsonl")}
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row.prompt) - 1 : -1, : run.prepared["vocabulary"]].float()
        plain = torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer)).item()
        worst = max(worst, abs(plain - found[row.id]))
    return worst


def _fused(run: Any) -> bool:
    from tutelage.data.collate import Collator
    from tutelage.models.heads import takes_logits_to_keep
    from tutelage.models.load import load_trainable
    from tutelage.training.fused_loss import HeadLoss, LossInputs
    from tutelage.training.run_models import RunModels

    models = RunModels(run)
    model = load_trainable(run.recipe.student, None, 0, run.prepared["vocabulary"])
    batch = Collator(models.pad_id)(list(enumerate(models.encoded("train")))[:4])
    mask = batch["targets"] != -100
    loss = HeadLoss(model, keep=takes_logits_to_keep(model))
    loss(model, batch, LossInputs(batch["targets"][mask], mask, torch.zeros(4), None, run.prepared["vocabulary"]))
    return loss.fused


def _answers(student: Path, scored: Path) -> str:
    """`6 of 6`."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    lines, same = list(read_jsonl(scored / "predictions.jsonl")), 0
    texts = {line["id"]: line for line in read_jsonl(student.parents[2] / "prepare/rows.jsonl")}
    for line in lines:
        ids = tokenizer(texts[line["id"]]["prompt"], return_tensors="pt").input_ids
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        same += answer.strip() == line["raw"].strip()
    return f"{same} of {len(lines)}"


def outcome(name: str) -> dict[str, Any]:
    """What came of an architecture; `refused` with the message of a user error, `failed` with that of another one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return examine(Path(folder), name)
        except UserError as error:
            return {"refused": error.problems[0].kind if error.problems else str(error)}
        except Exception as error:  # one architecture must not end the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            return {"failed": f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results in markdown."""
    lines = ["| architecture | rows in a batch = alone (nats) | cache | fused loss | answers as in transformers |"]
    lines += ["|---|---|---|---|---|"]
    for name, result in found.items():
        if "alone" in result:
            fused = "yes" if result["fused"] else "no"
            lines.append(f"| {name} | {result['alone']:.0e} | {result['cache']} | {fused} | {result['answers']} |")
        else:
            kind = "refused" if "refused" in result else "failed"
            lines.append(f"| {name} | {kind}: `{result[kind].splitlines()[0][:200]}` | | | |")
    return "\n".join(lines)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Architectures. Default: all.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Replace the table in this document.")] = None,
) -> None:
    """Run every architecture from rows to scores, and check it against plain transformers."""
    logging.set_verbosity_error()
    found = {}
    for name in names or ARCHITECTURES:
        found[name] = outcome(name)
        print(name, found[name], flush=True)
    print(table(found))
    if docs:
        before, _, after = docs.read_text(encoding="utf-8").partition(START)
        made = f"transformers {versions()['transformers']}, torch {versions()['torch']}:"
        text = f"{before}{START}\n\n{made}\n\n{table(found)}\n\n{END}{after.partition(END)[2]}"
        docs.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
