"""Seconds and tokens of decoding: `python -m benchmarks.decode [--json FILE]`.

    greedy          answers of mixed lengths, 1 to 64 tokens
        tutelage    tutelage's own loop: rows that ended leave the batch
        generate    model.generate on the same batches: rows that ended stay until the longest answer is done
    labels, sure    77 labels of 2 to 8 tokens, a model that knows them and is nearly always sure (as a fine-tuned one
    is)
        one         one label a prompt: what reading the prompt and a single answer costs
        choose      the best of 77
        all         the scores of all 77
    labels, unsure  the same with a model that knows nothing: the worst case, no label can be ruled out before it is
    read

64 prompts of 40 to 80 tokens, batches of 16 sorted by length, a random Llama of 19 million parameters, float32, all
cores. The model's likings (when to end, which label) are added to its logits by a hook that every variant goes through.
Variants take turns, so whatever else the machine does meets all of them alike. Seconds are of all 64 prompts; tokens
are those that go through the model, padding included.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GenerationConfig

from benchmarks.machine import cores, machine_class, versions
from benchmarks.shapes import EOS, FIRST_TEXT_ID, PAD, Shape, build_model
from tutelage.models.generation import generate_answers, length_batches, pad_left
from tutelage.models.label_scoring import choose_labels, label_scores

MODEL = Shape(hidden=384, layers=8, heads=6, kv_heads=2, intermediate=1024, vocabulary=16_384)
PROMPTS, BATCH, LONGEST_ANSWER, LABELS, FIRST_TOKENS = 64, 16, 64, 77, 30
RATIOS = (("generate", "tutelage"), ("choose", "one"), ("all", "one"), ("all", "choose"))
KNOWN, AHEAD = 16.0, 5.0
"""Nats on the logits: of every token that continues a label, and of the prompt's own label on top."""


class Ids:
    """A tokenizer that turns ids into the digits of the ids."""

    eos_token_id, pad_token_id = EOS, PAD

    def __init__(self, size: int) -> None:
        """size: number of entries."""
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        """Every entry's id."""
        return {str(index): index for index in range(self.size)}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The ids, spaces between them."""
        return " ".join(map(str, ids))


# --- what a model likes, by a hook on its logits ---


def ends_by_position(module: nn.Module, args: tuple, inputs: dict[str, Any], output: Any) -> None:
    """End-of-sequence wherever 17 x position + 31 x token is a multiple of the longest answer: 1 to about that many
    tokens."""
    ends = (17 * inputs["position_ids"][:, -1] + 31 * inputs["input_ids"][:, -1]) % LONGEST_ANSWER == 0
    output.logits[ends, -1, EOS] += 1e4


class Taught:
    """Hook that makes a model as sure of labels as training does: a prompt's label is the one at its length modulo
    their number."""

    def __init__(self, labels: Sequence[Sequence[int]], known: float = KNOWN, ahead: float = AHEAD) -> None:
        """known, ahead: nats, see KNOWN and AHEAD."""
        self.labels, self.ahead = [(*label, EOS) for label in labels], ahead
        self.next: dict[tuple[int, ...], dict[int, float]] = {}
        for label in self.labels:
            for place, token in enumerate(label):
                self.next.setdefault(label[:place], {})[token] = known

    def __call__(self, module: nn.Module, args: tuple, inputs: dict[str, Any], output: Any) -> None:
        """Add to the logits of each row: at the end of a prompt, or behind each token of an answer."""
        ids, positions = inputs["input_ids"].tolist(), inputs["position_ids"]
        after_prompt = inputs["attention_mask"].shape[1] == len(ids[0])
        lengths = (positions[:, -1] + 1 if after_prompt else positions[:, 0]).tolist()
        for row, length in enumerate(lengths):
            own = self.labels[length % len(self.labels)]
            for place in range(1 if after_prompt else len(ids[row])):
                prefix = () if after_prompt else tuple(ids[row][: place + 1])
                for token, liking in self.next.get(prefix, {}).items():
                    more = self.ahead if own[: len(prefix) + 1] == (*prefix, token) else 0.0
                    output.logits[row, -1 if after_prompt else place, token] += liking + more


def random_labels(vocabulary: int, seed: int, count: int = LABELS, first_tokens: int = FIRST_TOKENS) -> list[list[int]]:
    """Labels of 2 to 8 tokens; many begin alike, as banking77's do."""
    draw = np.random.default_rng(seed)
    first = draw.integers(FIRST_TEXT_ID, vocabulary, first_tokens)
    return [
        [int(draw.choice(first)), *draw.integers(FIRST_TEXT_ID, vocabulary, draw.integers(1, 8)).tolist()]
        for _ in range(count)
    ]


def random_prompts(vocabulary: int, seed: int, count: int = PROMPTS) -> list[list[int]]:
    """Prompts of 40 to 80 tokens."""
    draw = np.random.default_rng(seed)
    return [draw.integers(FIRST_TEXT_ID, vocabulary, draw.integers(40, 81)).tolist() for _ in range(count)]


# --- measuring ---


def by_generate(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[str]:
    """What `generate_answers` gives, by `model.generate` on the same batches."""
    config = GenerationConfig(do_sample=False, max_new_tokens=LONGEST_ANSWER, eos_token_id=EOS, pad_token_id=PAD)
    answers = [""] * len(prompts)
    for places in length_batches(prompts, BATCH):
        inputs = pad_left([prompts[place] for place in places], PAD, model.device)
        written = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
        for place, ids in zip(places, written, strict=True):
            answers[place] = " ".join(map(str, ids[: ids.index(EOS)] if EOS in ids else ids))
    return answers


def cases(shape: Shape, count: int) -> list[tuple[str, Callable | None, dict[str, Callable[[nn.Module], Any]]]]:
    """(case, hook, what each variant does with the model). count: prompts."""
    prompts, labels, ids = (
        random_prompts(shape.vocabulary, 1, count),
        random_labels(shape.vocabulary, 2),
        Ids(shape.vocabulary),
    )
    one, every = [[labels[len(prompt) % LABELS]] for prompt in prompts], [labels] * len(prompts)
    decoding = {
        "tutelage": lambda model: [
            answer.text
            for answer in generate_answers(model, ids, prompts, max_new_tokens=LONGEST_ANSWER, batch_size=BATCH)
        ],
        "generate": lambda model: by_generate(model, prompts),
    }
    choosing = {
        "one": lambda model: choose_labels(model, ids, prompts, one, batch_size=BATCH),
        "choose": lambda model: choose_labels(model, ids, prompts, every, batch_size=BATCH),
        "all": lambda model: label_scores(model, ids, prompts, every, batch_size=BATCH),
    }
    return [
        ("greedy", ends_by_position, decoding),
        ("labels, sure", Taught(labels), choosing),
        ("labels, unsure", None, choosing),
    ]


def measure(
    model: nn.Module, hook: Callable | None, variants: dict[str, Callable[[nn.Module], Any]], rounds: int
) -> dict[str, Any]:
    """Seconds (median of the rounds, after one to warm up) and tokens of every variant, taking turns."""
    handle = hook and model.register_forward_hook(hook, with_kwargs=True)
    samples: dict[str, list[float]] = {name: [] for name in variants}
    tokens = {name: count_tokens(model, run) for name, run in variants.items()}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run(model)
            samples[name].append(time.perf_counter() - start)
    if handle:
        handle.remove()
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    ratios = {f"{a}/{b}": seconds[a] / seconds[b] for a, b in RATIOS if a in seconds and b in seconds}
    ratios |= {f"tokens {a}/{b}": tokens[a] / tokens[b] for a, b in RATIOS if a in tokens and b in tokens}
    return {"seconds": seconds, "tokens": tokens, "ratios": ratios, "samples": samples}


def count_tokens(model: nn.Module, run: Callable[[nn.Module], Any]) -> int:
    """Tokens, padding included, that go through the model meanwhile."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        run(model)
    finally:
        handle.remove()
    return sum(seen)


def table(found: dict[str, Any]) -> Table:
    """One record as a table: a line a variant, the ratios below."""
    view = Table(
        title=found["case"], caption="\n".join(f"{name} {value:.2f}" for name, value in found["ratios"].items())
    )
    for heading in ("variant", "s (median)", "fastest", "slowest", "tokens"):
        view.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, seconds in found["seconds"].items():
        samples = found["samples"][name]
        times = [f"{value:.3f}" for value in (seconds, min(samples), max(samples))]
        view.add_row(name, *times, f"{found['tokens'][name]:,}")
    return view


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after one to warm up.")] = 5,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = PROMPTS,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads; 0: one a core. On a machine with other work, take 1.")
    ] = 0,
) -> None:
    """Seconds and tokens of greedy decoding, and of choosing between 77 labels."""
    torch.set_num_threads(threads or cores())
    console, about = Console(), {"machine": machine_class(), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['machine']}; {packages}", highlight=False)
    model, records = build_model(MODEL, 0).eval(), []
    for case, hook, variants in cases(MODEL, prompts):
        with console.status(case):
            records.append({"case": case, **measure(model, hook, variants, rounds), **about})
        console.print(table(records[-1]))
        if json_file:  # after every case: a run that is stopped keeps what it has
            json_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
