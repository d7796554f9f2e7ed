"""Answers of an exported model in its own runtime, and of the student in transformers, for a comparison.

A runtime answers greedily, or with one of the allowed answers where a row has them. Used in a process of its own
(`measure.py`), which loads no library of another runtime: torch alone would add 0.3 GB to its memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np

EQUAL = 1e-5
"""Nats within which the scores of two allowed answers are equal."""


class Ask(TypedDict):
    """A prompt."""

    ids: list[int]
    """Token ids of the prompt, as the student was trained on them."""
    text: str | None
    """The same as text, for runtimes with a tokenizer of their own, which adds the beginning-of-sequence; None for a
    prompt whose start was cut."""
    labels: list[str]
    """The allowed answers as the model writes them, short forms included; empty where any text is one."""
    candidates: list[list[int]]
    """The same as token ids, end-of-sequence included."""


class Reply(TypedDict):
    """An answer, as token ids without end-of-sequence or as text."""

    ids: NotRequired[list[int]]
    text: NotRequired[str]


class Setting(TypedDict):
    """What holds for all prompts of a model."""

    folder: str
    """Of the exported model, or of the student."""
    threads: int
    longest: int
    """Tokens of an answer at most."""
    context: int
    """Tokens of prompt and answer at most."""
    ends: list[int]
    """Ids that end an answer."""
    prefix: str
    """What an answer begins with before its text, as in the recipe's `answer_prefix`."""


class Runtime(Protocol):
    """A loaded model."""

    packages: tuple[str, ...]
    """Packages whose versions decide how it answers."""

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answers to prompts, all at once."""

    def tokens(self, asks: Sequence[Ask]) -> list[list[int]]:
        """What the runtime reads of each prompt."""


# --- transformers ---


class Transformers:
    """The student as `tutelage predict` asks it."""

    packages = ("transformers", "torch")

    def __init__(self, setting: Setting, at_once: int) -> None:
        """at_once: most prompts in a batch."""
        import torch

        from tutelage.models.load import load_model, load_tokenizer
        from tutelage.recipe.schema import Model

        torch.set_num_threads(setting["threads"])
        section = Model(model_name_or_path=setting["folder"], dtype="auto")
        self.model, self.tokenizer = load_model(section), load_tokenizer(section)
        self.longest, self.at_once = setting["longest"], at_once

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """See `Runtime`."""
        from tutelage.models.generation import generate_answers
        from tutelage.models.label_scoring import choose_labels

        prompts = [ask["ids"] for ask in asks]
        if not asks[0]["labels"]:
            answers = generate_answers(
                self.model, self.tokenizer, prompts, max_new_tokens=self.longest, batch_size=self.at_once
            )
            return [{"text": answer.text} for answer in answers]
        candidates = [[candidate[:-1] for candidate in ask["candidates"]] for ask in asks]
        winners = choose_labels(self.model, self.tokenizer, prompts, candidates, batch_size=self.at_once)
        return [{"text": ask["labels"][winner.index]} for ask, winner in zip(asks, winners, strict=True)]

    def tokens(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See `Runtime`."""
        return [ask["ids"] for ask in asks]


# --- llama.cpp ---


class LlamaCpp:
    """llama-server inside this process (xllamacpp), with the settings that it has by itself."""

    packages = ("xllamacpp",)

    def __init__(self, setting: Setting, at_once: int) -> None:
        """at_once: number of slots, each for one prompt."""
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(Path(setting["folder"]) / "model.gguf")
        params.n_ctx, params.n_parallel = setting["context"] * at_once, at_once
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setting["threads"]
        params.warmup, params.verbosity = False, 0
        self.server, self.setting = xllamacpp.Server(params), setting
        self.at_once = at_once

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """See `Runtime`."""
        with ThreadPoolExecutor(self.at_once) as threads:
            return list(threads.map(self._answer, asks))

    def _answer(self, ask: Ask) -> Reply:
        wanted = {
            "prompt": ask["ids"] if ask["text"] is None else ask["text"],
            "temperature": 0,
            "n_predict": self.setting["longest"],
            "cache_prompt": False,
        }
        if ask["labels"]:
            wanted["grammar"] = grammar_of(ask["labels"], self.setting["prefix"])
        return {"text": self.server.handle_completions(wanted)["choices"][0]["text"].strip()}

    def tokens(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See `Runtime`."""
        return [ask["ids"] if ask["text"] is None else self._tokens(ask["text"]) for ask in asks]

    def _tokens(self, text: str) -> list[int]:
        """The server's own endpoint, over this machine's loopback: there is no other way to ask for it."""
        from urllib.request import Request, urlopen

        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = Request(f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            return json.load(response)["tokens"]


def grammar_of(labels: Sequence[str], prefix: str) -> str:
    """The grammar (GBNF) that lets llama.cpp write one of these answers and nothing else."""
    return "root ::= " + " | ".join(json.dumps(prefix + label, ensure_ascii=False) for label in labels) + "\n"


# --- CTranslate2 ---


class CTranslate2:
    """ctranslate2.Generator, which gets and gives token ids."""

    packages = ("ctranslate2",)

    def __init__(self, setting: Setting, at_once: int) -> None:
        """at_once: most prompts in a batch."""
        import ctranslate2

        folder = Path(setting["folder"])
        self.model = ctranslate2.Generator(str(folder), device="cpu", intra_threads=setting["threads"])
        self.names: list[str] = json.loads((folder / "vocabulary.json").read_bytes())
        self.setting, self.at_once = setting, at_once

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """See `Runtime`."""
        if asks[0]["labels"]:
            return [{"text": ask["labels"][self._choose(ask)]} for ask in asks]
        found = self.model.generate_batch(
            [self._names(ask["ids"]) for ask in asks],
            max_batch_size=self.at_once,
            max_length=self.setting["longest"],
            end_token=self.setting["ends"],
            include_prompt_in_result=False,
        )
        return [{"ids": list(result.sequences_ids[0])} for result in found]

    def _names(self, ids: Sequence[int]) -> list[str]:
        return [self.names[index] for index in ids]

    def _choose(self, ask: Ask) -> int:
        """Index of the allowed answer with the highest mean log-probability per token, the first of equal ones.

        As `models.label_scoring`: an answer's first token bounds its score from above, since log-probabilities are at
        most 0, so that those whose bound is below the best score need not be read.
        """
        prompt, answers = self._names(ask["ids"]), ask["candidates"]
        first = np.array(self.model.forward_batch([prompt], return_log_probs=True))[0, -1]
        bounds = np.array([first[answer[0]] / len(answer) for answer in answers])
        scores = np.full(len(answers), -np.inf)
        waiting, number = list(np.argsort(-bounds, kind="stable")), 1
        while waiting and bounds[waiting[0]] > scores.max() - EQUAL:
            now, waiting, number = waiting[:number], waiting[number:], 2 * number
            read = self.model.score_batch([prompt + self._names(answers[index]) for index in now], max_input_length=0)
            for index, result in zip(now, read, strict=True):
                scores[index] = float(np.mean(result.log_probs[-len(answers[index]) :]))
        return int(np.flatnonzero(scores > scores.max() - EQUAL)[0])

    def tokens(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See `Runtime`."""
        return [ask["ids"] for ask in asks]


RUNTIMES: dict[str, Callable[[Setting, int], Runtime]] = {
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "ctranslate2": CTranslate2,
}
"""By name; called with the setting and the number of prompts that are answered at once."""


def versions_of(runtime: Runtime) -> dict[str, str]:
    """Versions of the packages that decide how it answers."""
    return {name: metadata.version(name) for name in runtime.packages}
