"""Every test runs offline and with one torch thread, so that results are reproducible. Shared fixtures."""

import gc
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest

from helpers.recipes_in import GOOD
from helpers.skip_rule import pytest_configure  # noqa: F401 a hook of every session

# What tests write need not survive a power failure. Syncing it took most of the time of tests that run stages.
os.fsync = lambda descriptor: None


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _frozen_heap():
    """Each training begins with a garbage collection, by accelerate. It costs 0.3 s if it visits what is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def recipe_file(tmp_path):
    """Writes GOOD and more text to bank.yaml; the added text starts at line 8."""

    def write(more="", text=GOOD):
        path = tmp_path / "bank.yaml"
        path.write_text(text + more, encoding="utf-8")
        return path

    return write


@pytest.fixture
def complaints(recipe_file):
    """Lists the problems of a recipe, without the folder of its file and the kind at the end."""

    def find(more="", overrides=(), text=GOOD):
        from tutelage.errors import ConfigError
        from tutelage.recipe.load import load_recipe

        path = recipe_file(more, text)
        with pytest.raises(ConfigError) as caught:
            load_recipe(path, overrides)
        lines = str(caught.value).replace(f"{path.parent}/", "").splitlines()
        return [re.sub(r"  \[\w+\]$", "", line.removeprefix("  - ")) for line in lines]

    return find
