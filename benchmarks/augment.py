"""Made-up prompts as rows without labels: a language model tuned on the training prompts, sampled (arXiv 2106.06168).

    python -m benchmarks.augment RUN MODEL OUT.jsonl --rows 1500
    python -m benchmarks.pairs DATA --unlabelled-file OUT.jsonl ...

RUN is a run folder whose `prepare` is finished: only its training prompts are read. What nearly repeats a validation or
test row is left out when a recipe reads OUT as `data.unlabelled`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.data.splits import normalised
from tutelage.utils.files import read_jsonl, write_jsonl

BATCH = 32


def tune(model: torch.nn.Module, tokenizer, texts: list[str], epochs: float, rate: float) -> None:
    """Next-token training on whole prompts, 8 at a time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    order = torch.Generator().manual_seed(0)
    steps = int(epochs * len(texts) / 8)
    for step in range(steps):
        chosen = [texts[index] + tokenizer.eos_token for index in torch.randperm(len(texts), generator=order)[:8]]
        batch = tokenizer(chosen, return_tensors="pt", padding=True, padding_side="right")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step} of {steps}: {loss.item():.3f}", flush=True)


def sampled(model: torch.nn.Module, tokenizer, start: str, end: str, longest: int) -> list[str]:
    """A batch of new prompts that begin and end as all training prompts do; broken ones are left out."""
    inputs = tokenizer([start] * BATCH, return_tensors="pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ids = model.generate(**inputs, do_sample=True, temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=longest,
                             pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    middles = [text[len(start) : -len(end)] for text in texts if text.startswith(start) and text.endswith(end)]
    return [start + middle + end for middle in middles if middle.strip() and end not in middle]


def common_start(texts: list[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return next((first[:n] for n in range(len(first)) if first[n] != last[n : n + 1]), first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--rate", type=float, default=1e-4)
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = read_jsonl(given.run / "prepare" / "rows.jsonl")
    texts = [row["prompt"] for row in rows if row["split"] == "train"]
    tokenizer, model = AutoTokenizer.from_pretrained(given.model), AutoModelForCausalLM.from_pretrained(given.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    start = common_start(texts).rsplit(" ", 1)[0]
    end = common_start([text[::-1] for text in texts])[::-1].lstrip()
    tune(model.train(), tokenizer, texts, given.epochs, given.rate)
    longest = max(len(ids) for ids in tokenizer(texts).input_ids)
    seen, kept, tried = {normalised(text) for text in texts}, [], 0
    while len(kept) < given.rows and tried < 4 * given.rows:
        tried += BATCH
        for text in sampled(model.eval(), tokenizer, start, end, longest):
            if normalised(text) not in seen:
                seen.add(normalised(text))
                kept.append(text)
        print(f"{len(kept)} of {tried} kept", flush=True)
    write_jsonl(given.out, ({"prompt": text} for text in kept[: given.rows]))


if __name__ == "__main__":
    main()
