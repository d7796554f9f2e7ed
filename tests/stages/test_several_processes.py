"""A run that one, two and three processes share: 13 rows in every split, which divide by none of these numbers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.launch import launch
from helpers.project import color_rows, make_project, run_to_the_end, write_rows
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.utils.files import read_json

ROWS, STEP = 13, 6
METHODS = ["scd-aw-cf", "taid", "seqkd"]
TIMES = ("seconds", "runtime", "per_second", "answering", "flos", "train_batch_size", "memory", "finished")
OF_THE_TRAINER = ("epoch", "train_loss")
"""transformers counts epochs in batches, of which a step may have more on fewer processes, and its train_loss is of the
steps since a restart. The loss of every step is compared."""
DIES = """
import os, signal
from tutelage.training.trainer import DistillTrainer
def loss(self, *args, plain=DistillTrainer.compute_loss, **more):
    if os.environ["RANK"] == "2" and "trainer-2" in self.args.output_dir and self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **more)
DistillTrainer.compute_loss = loss
"""


def project(folder: Path, processes: int) -> Path:
    """A recipe with every stage, a teacher with adapters and a student with tied embeddings. STEP rows make a step, if
    it is begun with this many processes."""
    changes: dict[str, Any] = {
        "task": {"type": "classification", "decoding": "labels"},
        "data": {"unlabelled": str(folder / "unlabelled.jsonl")},
        "teacher": {"lora": {"r": 2, "lora_dropout": 0.0}},
        "trainer": {"per_device_train_batch_size": STEP // processes, "logging_steps": 1},
        "cache": {"batch_size": 2, "shard_rows": 4},
        "cross_fit": {"folds": 2},
        "distill": {"methods": METHODS, "keep": "best"},
        "evaluate": {"batch_size": 2},
    }
    recipe = make_project(folder, **changes)
    for split in ("train", "validation", "test"):
        write_rows(folder / "data" / f"{split}.jsonl", color_rows(split, ROWS))
    write_rows(folder / "unlabelled.jsonl", [{"id": f"u{n}", "text": f"new thing {n}"} for n in range(7)])
    tiny_model(1, tie_word_embeddings=True).save_pretrained(folder / "models/student")
    byte_tokenizer().save_pretrained(folder / "models/student")
    return recipe


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process's run."""
    recipe = project(tmp_path_factory.mktemp("one"), 1)
    run_to_the_end(recipe)
    return recipe.parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes, and how they ended."""
    recipe = project(tmp_path_factory.mktemp("two"), 2)
    return recipe.parent, launch(2, "run", recipe, "--anyway")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run of three processes, of which one is killed; two continue it. How they all ended."""
    recipe = project(tmp_path_factory.mktemp("three"), 3)
    killed = launch(3, "run", recipe, "--anyway", before=DIES)
    return recipe.parent, killed, launch(2, "run", recipe, "--anyway")


def numbers(folder: Path) -> dict[str, Any]:
    """Every value in every JSON file of a run, by file and key, but times and places."""
    found = {}
    for path in sorted((folder / "run").rglob("*.json*")):
        name = path.relative_to(folder / "run").as_posix()
        if path.name in ("manifest.json", "checksums.json", "adapter_config.json", "store.json"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for number, line in enumerate(lines):
            found |= {f"{name}:{number}{key}": value for key, value in leaves(json.loads(line))}
    return {key: value for key, value in found.items() if not any(word in key for word in (*TIMES, *OF_THE_TRAINER))}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def same(one: Path, other: Path) -> None:
    """Losses within 1e-5, and everything else equal: names of checkpoints, choices, answers, numbers of steps."""
    before, now = numbers(one), numbers(other)
    assert before.keys() == now.keys()
    for key, value in now.items():
        value = value.replace(str(other), str(one)) if isinstance(value, str) else value
        assert value == (pytest.approx(before[key], rel=1e-5, abs=1e-5) if isinstance(value, float) else before[key]), (
            key
        )


def test_two_processes_have_the_losses_and_choices_of_one(alone, two):
    folder, ended = two
    assert [process.code for process in ended] == [0, 0], ended[0].err
    same(alone, folder)


def test_only_the_main_process_speaks(two):
    main, other = two[1]
    assert "accuracy" in main.out and "stage 2: follows checkpoint-" in main.err
    assert (other.out, other.err) == ("", "")


def test_a_run_that_lost_a_process_goes_on_with_fewer_and_has_the_same_result(alone, three):
    folder, killed, continued = three
    assert killed[2].code == -9 and killed[0].code == killed[1].code == 1
    messages = [process.err.splitlines()[-1:] for process in killed[:2]]
    lost = ["process 2 of 3 was killed or has crashed; the same command continues where it stopped"]
    assert sorted(messages)[-1] == lost and sum(lost[0] in process.err for process in killed) == 1
    assert [process.code for process in continued] == [0, 0], continued[0].err
    assert "begun with 3 processes: its batches stay as they are, shared out over 2" in continued[0].err
    same(alone, folder)


def test_caches_and_answers_of_two_processes_are_those_of_one_to_the_bit(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "copy")
    recipe = tmp_path / "copy/recipe.yaml"
    made = ["cache", "silver", "teacher_answers", "evaluate"]
    for name in made:
        shutil.rmtree(tmp_path / "copy/run" / name)
    output = f"output_dir={tmp_path / 'copy/run'}"
    assert [process.code for process in launch(2, "run", recipe, output, "--anyway")] == [0, 0]
    compared = 0
    for name in made:
        for path in sorted((alone / "run" / name).rglob("*")):
            if path.is_file() and path.name not in ("manifest.json", "checksums.json"):
                assert path.read_bytes() == (tmp_path / "copy/run" / path.relative_to(alone / "run")).read_bytes(), path
                compared += 1
    assert compared > 30
    students = read_json(tmp_path / "copy/run/distill/taid/seed-0/manifest.json")
    assert students == read_json(alone / "run/distill/taid/seed-0/manifest.json")  # as one process left them


def test_a_refusal_is_told_once_and_ends_all(alone):
    ended = launch(2, "distill", alone / "recipe.yaml", "distill.temperature=2.0", "--anyway")
    assert [process.code for process in ended] == [2, 2]
    assert sum(process.err.count("distill.temperature: 1.0 -> 2.0") for process in ended) == 1
    assert sum(process.err.count("Error") for process in ended) == 1
