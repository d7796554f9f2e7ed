"""Saved students in another version of transformers: are logits and greedy answers the same?

    python -m benchmarks.other_transformers PYTHON

PYTHON: the interpreter of an environment with that version and torch. Saves a tiny student of each architecture, loads
it there by the code of the model card, and compares. Exit code 1 if one differs. Needs no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tutelage.demo.models import build_models
from tutelage.models.load import cut_vocabulary
from tutelage.models.save import save_student

TEXT = "The patient has a fever and a cough since Monday."
PADDING = 30
SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 512},
}
ROPE = {"rope_type": "default", "rope_theta": 77.0}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
"""Settings of rotary embeddings that are no default of any architecture."""
CASES: dict[str, dict[str, Any]] = {
    **{arch: {"rope_parameters": ROPE} for arch in ("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2", "phi3")},
    **{arch: {} for arch in ("gemma2", "gemma3_text", "glm4", "granite", "cohere", "smollm3", "stablelm", "gpt2")},
    "llama, scaled": {"rope_parameters": LLAMA3},
    "gemma3_text, scaled": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
        }
    },
    "glm4, half": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "gpt_neox": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
}
LOADED = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in sys.stdin:
    name, text = json.loads(line)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    inputs = tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, max_new_tokens=20)[0]
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].tolist()
    answer = tokenizer.decode(output[inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    print("RESULT" + json.dumps([transformers.__version__, inputs["input_ids"].tolist(), answer, logits]))
"""


def save(name: str, changes: dict[str, Any], folder: Path, tokenizer: Any, cut: bool = True) -> None:
    """A student as a run leaves it, with a tokenizer that has more special tokens than the usual ones.

    cut: False for one that still has embeddings beyond the tokenizer.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|turn|>", special=True)]})
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        name.partition(",")[0], vocab_size=len(tokenizer) + PADDING, **SHAPE, **ids, **changes
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    save_student(cut_vocabulary(model, len(tokenizer)) if cut else model, tokenizer, folder)


def answers(python: str, folders: list[Path]) -> list[list[Any]]:
    """Version, prompt ids, answer and logits of each student, by the code of the model card."""
    lines = "".join(json.dumps([str(folder), TEXT]) + "\n" for folder in folders)
    done = subprocess.run([python, "-c", LOADED], input=lines, capture_output=True, text=True)
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if len(found) < len(folders):
        raise SystemExit(f"{folders[len(found)].name}: {done.stderr[-2000:]}")
    return found


def main(python: str) -> int:
    """Compare and print; the exit code."""
    different = 0
    with TemporaryDirectory() as folder:
        build_models(Path(folder), [TEXT] * 20, vocabulary=320)
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "student")
        folders = [Path(folder) / name for name in CASES]
        for path, changes in zip(folders, CASES.values(), strict=True):
            save(path.name, changes, path, tokenizer)
        here, there = answers(sys.executable, folders), answers(python, folders)
        print(f"transformers {here[0][0]} and {there[0][0]}")
        for path, one, other in zip(folders, here, there, strict=True):
            gap = max(abs(a - b) for a, b in zip(one[3], other[3], strict=True))
            same = one[1:3] == other[1:3]
            different += not same
            print(f"{path.name:<20} answers {'equal' if same else 'DIFFER'}, largest difference of a logit {gap:.1e}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
