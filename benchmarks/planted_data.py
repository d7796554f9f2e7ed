"""A small world whose truth is known, the runs that are made on it, and what they say in numbers: for
`benchmarks.planted`.

A row is three words, `filler cue thing`, and a label. What decides the label is planted, by subdomain:

    knowledge   label = (group of the cue, member of the thing). 16 cues fall into 4 groups: soon learned. Every thing
                has a member of its own, 1 of 4, which nothing in the row gives away: it has to be remembered. Things of
                the student's training rows, of validation and of test are different ones, and each of its training rows
                has a thing of its own; the teacher's corpus names every thing several times. So only the teacher, with
                its larger corpus and its capacity, can know the member; a student can learn the group, and memorise
                what it was shown.
    changed     the label is the thing's (a law's). The world changed after the teacher was trained: in its corpus every
                law has another label than in the student's rows, so that the teacher cannot have learned what is gold
                now.
    easy        the label is the thing's, for teacher and student alike.

`splits(within_reach=True)` has knowledge rows about 24 things only, the same in all splits: members are there to be
learned. With `outdated=False` the corpus has today's laws: the plant is absent, and the teacher is right everywhere.
Everything is seeded.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from tutelage.utils.files import read_json, read_jsonl, write_jsonl

GROUPS, MEMBERS = 4, 4
CUES, LAWS, WORDS, FILLERS = 16, 24, 24, 40
ROWS = {
    "train": {"knowledge": 160, "changed": 120, "easy": 120},
    "validation": {"knowledge": 80, "changed": 60, "easy": 60},
    "test": {"knowledge": 200, "changed": 100, "easy": 100},
}
CORPUS = {"knowledge": 3200, "changed": 600, "easy": 600}
"""Rows that the teacher is trained on; none of them is a row of the student's."""
NOISE = 0.1
"""Share of the corpus's knowledge rows whose member is drawn at random: a teacher that has learned its corpus is right,
and says so with the certainty of 0.9 rather than of 1, as a teacher of real data would."""

EOS, PAD = "<eos>", "<pad>"
THINGS = sum(kinds["knowledge"] for kinds in ROWS.values())
FEW_THINGS = 24
"""As many as there are laws and easy words, which a student learns from its rows."""

TEACHER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.08,
}
STUDENT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}

Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What decides the labels. Labels are numbers below GROUPS x MEMBERS, written `L7`."""

    seed: int
    group: list[int]
    """Of each cue."""
    member: list[int]
    """Of each thing."""
    law: list[int]
    """Label of each law today."""
    old_law: list[int]
    """Label of each law before the world changed: another one."""
    word: list[int]
    """Label of each easy word."""

    @classmethod
    def drawn(cls, seed: int) -> World:
        """The world of a seed."""
        rng, labels = random.Random(f"{seed}/world"), GROUPS * MEMBERS
        group = [cue % GROUPS for cue in range(CUES)]
        rng.shuffle(group)
        law = [rng.randrange(labels) for _ in range(LAWS)]
        return cls(
            seed,
            group,
            member=[rng.randrange(MEMBERS) for _ in range(THINGS)],
            law=law,
            old_law=[(label + rng.randrange(1, labels)) % labels for label in law],
            word=[rng.randrange(labels) for _ in range(WORDS)],
        )

    def splits(self, *, within_reach: bool = False) -> dict[str, list[Row]]:
        """The student's rows: train, validation and test, as ROWS counts them; no text occurs twice. within_reach:
        about the same FEW_THINGS things everywhere, so that a student can learn them too."""
        rng, seen, found, first = random.Random(f"{self.seed}/rows"), set(), {}, 0
        for split, kinds in ROWS.items():
            things = range(FEW_THINGS) if within_reach else range(first, first + kinds["knowledge"])
            first += kinds["knowledge"]
            found[split] = []
            for kind, count in kinds.items():
                for number in range(count):
                    row = self._row(kind, things[number % len(things)], rng, seen)
                    seen.add(row["text"])
                    found[split].append({"id": f"{split}-{kind}-{number}", **row, "subdomain": kind})
        return found

    def corpus(self, *, outdated: bool) -> list[Row]:
        """The teacher's rows: every thing in turn, laws and words. None has the text of a student's row. outdated: old
        laws."""
        rng, rows = random.Random(f"{self.seed}/corpus"), []
        students = (*self.splits().values(), *self.splits(within_reach=True).values())
        taken = {row["text"] for rows_of_split in students for row in rows_of_split}
        for kind, count in CORPUS.items():
            for number in range(count):
                row = self._row(kind, number % THINGS, rng, taken, outdated=outdated)
                if kind == "knowledge" and rng.random() < NOISE:
                    row["label"] = f"L{int(row['label'][1:]) // MEMBERS * MEMBERS + rng.randrange(MEMBERS)}"
                rows.append({"id": f"corpus-{kind}-{number}", **row, "subdomain": kind})
        return rows

    def _row(self, kind: str, thing: int, rng: random.Random, taken: set[str], *, outdated: bool = False) -> Row:
        """Text and label of a row whose text is not taken; of knowledge, about this thing."""
        while True:
            filler = f"f{rng.randrange(FILLERS)}"
            if kind == "knowledge":
                cue = rng.randrange(CUES)
                words, label = f"c{cue} t{thing}", self.group[cue] * MEMBERS + self.member[thing]
            elif kind == "changed":
                law = rng.randrange(LAWS)
                words, label = f"law l{law}", (self.old_law if outdated else self.law)[law]
            else:
                word = rng.randrange(WORDS)
                words, label = f"word w{word}", self.word[word]
            if f"{filler} {words}" not in taken:
                return {"text": f"{filler} {words}", "label": f"L{label}"}


def vocabulary() -> list[str]:
    """Every word there is, labels included: a token each."""
    counts = {"f": FILLERS, "c": CUES, "t": THINGS, "l": LAWS, "w": WORDS, "L": GROUPS * MEMBERS}
    return [
        EOS,
        PAD,
        "law",
        "word",
        *(f"{letter}{number}" for letter, count in counts.items() for number in range(count)),
    ]


def words_tokenizer() -> Any:
    """A token for each word of `vocabulary`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary())}, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)


def write_models(folder: Path, seed: int) -> None:
    """Write folder/teacher (about 100,000 weights) and folder/student (about 11,000): random Llamas, and the tokenizer
    of both."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = words_tokenizer()
    for place, (name, shape) in enumerate((("teacher", TEACHER), ("student", STUDENT))):
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = LlamaConfig(
            **shape, **ends, vocab_size=len(tokenizer), max_position_embeddings=32, tie_word_embeddings=True
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 * seed + place)
            LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


STAGES = ("prepare", "teach", "anchor", "cache", "cross_fit", "distill", "evaluate")


class Setting(NamedTuple):
    """A run of every seed."""

    name: str
    outdated: bool
    """Whether the teacher was trained before the world changed."""
    methods: tuple[str, ...]
    epochs_per_stage: float
    data: str = "today"
    """The student's rows: `today`, or `few-things`, where knowledge is within the student's reach."""


SETTINGS = (
    Setting("planted", True, ("td", "td-aw", "cd", "scd"), 3.0),
    Setting("memorised", True, ("td-aw", "td-aw-cf"), 6.0),
    Setting("absent", False, ("td", "td-aw"), 3.0),
    Setting("reachable", False, ("td", "scd"), 6.0, "few-things"),
)
KD_RATIO = 0.5

# --- the runs ---


def make_runs(folder: Path, seed: int, outdated: bool) -> float:
    """One world's teacher, and the runs of the settings that it teaches in. Returns the seconds it took."""
    import torch

    torch.set_num_threads(1)  # the same numbers however many cores there are
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        write_world(folder, seed, outdated)
        teach = {
            "num_checkpoints": 4,
            "trainer": {"num_train_epochs": 4.5, "learning_rate": 2e-3, "per_device_train_batch_size": 32},
        }
        run_stages(write_recipe(folder, "teacher", "corpus", seed, teach=teach), STAGES[:2])
        for setting in SETTINGS:
            if setting.outdated == outdated:
                run_stages(student_recipe(folder, setting, seed), STAGES)
    return time.monotonic() - began


def write_world(folder: Path, seed: int, outdated: bool) -> None:
    """Rows of teacher and student, and the two untrained models."""
    world = World.drawn(seed)
    today = world.splits()
    data = {
        "today": today,
        "few-things": world.splits(within_reach=True),
        "corpus": today | {"train": world.corpus(outdated=outdated)},
    }
    for name, splits in data.items():
        for split, rows in splits.items():
            write_jsonl(folder / "data" / name / f"{split}.jsonl", rows)
    write_models(folder / "models", seed)


def student_recipe(folder: Path, setting: Setting, seed: int) -> Path:
    """Students of a setting, taught by the checkpoints in folder/teacher.

    cross_fit: the teacher has seen none of the student's rows, so its losses on them are out of sample as they are.
    keep: every student after the same steps; a choice of stage on validation would have a part in what is measured.
    """
    distill = {
        "methods": list(setting.methods),
        "seeds": [seed],
        "num_stages": 4,
        "epochs_per_stage": setting.epochs_per_stage,
        "kd_ratio": KD_RATIO,
        "keep": "last",
        "trainer": {"learning_rate": 5e-3},
    }
    teach = {"checkpoints": str(folder / "teacher" / "teach")}
    return write_recipe(
        folder,
        setting.name,
        setting.data,
        seed,
        preset="paper",
        teach=teach,
        distill=distill,
        cross_fit={"teacher": False},
    )


def write_recipe(folder: Path, name: str, data: str, seed: int, **sections: Any) -> Path:
    """A recipe over folder/data and folder/models; returns its path."""
    recipe = {
        "output_dir": str(folder / name),
        "seed": seed,
        "task": {"type": "classification"},
        "data": {"dataset": str(folder / "data" / data), "template": "{text}"},
        "teacher": {"model_name_or_path": str(folder / "models" / "teacher")},
        "student": {"model_name_or_path": str(folder / "models" / "student")},
        "trainer": {"per_device_train_batch_size": 16, "bf16": False, "use_cpu": True},
        "cache": {"dtype": "float32", "batch_size": 256},
        "evaluate": {"batch_size": 256, "resamples": 100},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | sections, sort_keys=False), encoding="utf-8")
    return path


def run_stages(recipe: Path, stages: Iterable[str]) -> None:
    """What `tutelage STAGE RECIPE` does, in this process: starting one for every stage would take longer than the
    trainings."""
    from tutelage.recipe.load import load_recipe
    from tutelage.run.run_folder import RunFolder
    from tutelage.stages import pipeline

    pipeline.run_stages(RunFolder(load_recipe(recipe).recipe, anyway=True), stages)


# --- what they say ---


@dataclass(frozen=True)
class Run:
    """A finished run folder in numbers. Models: `teacher` (T*), `anchor`, `student` (untrained), and methods."""

    losses: dict[str, dict[str, np.ndarray]]
    """Test losses in nats an answer token: by model, by subdomain, [rows]."""
    risk: dict[str, float]
    """Mean test loss of each model, as `evaluate` reports it."""
    weights: dict[str, dict[str, float]]
    """Mean weight over training rows and stages: by method, by subdomain; `all`: over all rows."""
    followed: dict[str, list[int]]
    """Place of the checkpoint that each stage followed, 0 the oldest: by method."""

    def loss(self, model: str, subdomain: str) -> float:
        """Mean test loss on a subdomain."""
        return float(self.losses[model][subdomain].mean())


def subdomain(row: str) -> str:
    """Of a row by its id: `test-changed-7` is `changed`."""
    return row.split("-")[1]


def by_subdomain(values: Iterable[tuple[str, float]]) -> dict[str, np.ndarray]:
    """Values by the subdomain of the row ids that they come with."""
    found: dict[str, list[float]] = {}
    for row, value in values:
        found.setdefault(subdomain(row), []).append(value)
    return {name: np.array(several) for name, several in found.items()}


def read_run(folder: Path) -> Run:
    """What a run folder says."""
    losses, weights, followed = {}, {}, {}
    names = [checkpoint["name"] for checkpoint in read_json(folder / "teach" / "checkpoints.json")["checkpoints"]]
    scores = read_json(folder / "evaluate" / "scores.json")["models"]
    for model in scores:
        rows = read_jsonl(folder / "evaluate" / model / "predictions.jsonl")
        losses[model.split("/")[0]] = by_subdomain((row["id"], row["nll"]) for row in rows)
    for path in folder.glob("distill/*/seed-*"):
        rows = by_subdomain((row["id"], row["weight"]) for row in read_jsonl(path / "weights.jsonl"))
        weights[path.parent.name] = {name: float(values.mean()) for name, values in rows.items()}
        weights[path.parent.name]["all"] = float(np.concatenate(list(rows.values())).mean())
        followed[path.parent.name] = [names.index(stage["chosen"]) for stage in read_json(path / "stages.json")]
    return Run(
        losses, {model.split("/")[0]: score["nll"]["value"] for model, score in scores.items()}, weights, followed
    )
