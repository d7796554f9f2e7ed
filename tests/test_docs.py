"""The documents agree with the code: commands, recipe keys, names, links, and the keys of what a run writes."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import fields
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from torch import nn

from benchmarks.results_tables import heading_anchor
from helpers.import_graph import PACKAGES
from tutelage.cli.main import app
from tutelage.data.encode import EncodedRow
from tutelage.errors import ConfigError
from tutelage.method.schedule import Candidate
from tutelage.method.taid import Interpolation
from tutelage.method.weighting import AdaptiveWeighting
from tutelage.recipe.load import load_recipe
from tutelage.records import Prediction, SampleLoss
from tutelage.training import distillation, probe
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.stage_records import Validation
from tutelage.utils.files import read_jsonl

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tutelage"
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ko.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMING_SOURCE = (
    "README.md",
    "README.ko.md",
    *(f"docs/{page}.md" for page in ("architecture", "artifacts", "contributing", "method")),
)
"""Documents whose inline `.py` names are files of this repository."""
MOST_COLUMNS = 120
RECIPES = sorted({path for pattern in ("*.yaml", "*/*.yaml") for path in (ROOT / "recipes").glob(pattern)})


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


# --- reading Markdown ---

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """Code blocks: fenced ones, and lines indented by four spaces or more."""
    outside = FENCE.sub("", text)
    return [body for _, body in FENCE.findall(text)] + re.findall(r"(?:^ {4}.+\n)+", outside, re.MULTILINE)


def inline(text: str) -> list[str]:
    """Inline code, with line breaks inside it as spaces."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text: str) -> list[list[str]]:
    """The words of every `tutelage ...` command, up to a pipe, a redirection or a comment. A name alone in a line of
    prose (`tutelage shrink`) is a mention: `--help` is appended to it."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    in_blocks = [command for line in lines if (command := command_in(line))]
    in_prose = [command for code in inline(text) if (command := command_in(code))]
    mentions = [[*command, "--help"] if len(command) == 1 and command[0].isalpha() else command for command in in_prose]
    return in_blocks + mentions


def command_in(line: str) -> list[str] | None:
    match = re.match(r"\s*(?:\$ )?(?:.*(?:-m|&&|\||;) +)?tutelage +(\S.*)", line)
    return words(match[1]) if match else None


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(takewhile(lambda word: not set(word) <= set("();<>|&"), lexer))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    tutelage run a.yaml x.y=1   # why\n", [["run", "a.yaml", "x.y=1"]]),
        ("so `tutelage run a.yaml\n  'm=[a, b]'` does", [["run", "a.yaml", "m=[a, b]"]]),
        ("```bash\n$ head f | tutelage predict M --input - > out\n```\n", [["predict", "M", "--input", "-"]]),
        ("```bash\naccelerate launch -m tutelage distill a.yaml\n```\n", [["distill", "a.yaml"]]),
        ("```bash\ntutelage demo \\\n  --task ner\n```\n", [["demo", "--task", "ner"]]),
        ("the work of `tutelage shrink`", [["shrink", "--help"]]),
        ("`pip install tutelage`, `import tutelage`, `tutelage.json`, and tutelage is a word", []),
    ],
)
def test_commands_are_found_in_text(text, expected):
    assert commands(text) == expected


# --- the packages ---


def test_the_architecture_page_lists_the_packages_in_the_order_that_imports_obey():
    assert re.findall(r"^\| `(\w+)/` \|", text_of("docs/architecture.md"), re.MULTILINE) == list(PACKAGES)


def test_the_architecture_page_names_modules_that_exist():
    rows = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", text_of("docs/architecture.md"), re.MULTILINE)
    modules = [SOURCE / package / module for package, cell in rows for module in re.findall(r"`(\w+)`", cell)]
    assert len(modules) > 50
    missing = [
        path for path in modules if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file()
    ]
    assert [name_of(path) for path in missing] == []


# --- commands and keys ---


def parse(arguments: list[str]) -> None:
    """Parse a command as `tutelage` would, without running it. Raises typer's error for one that it would refuse."""
    group = typer.main.get_command(app)
    with group.make_context("tutelage", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, arguments)
        command.make_context(name, rest, parent=context).close()


def refused(arguments: list[str]) -> str | None:
    """Why a command does not parse; None if it does."""
    try:
        parse(arguments)
    except typer.Exit:  # by --help and --version
        return None
    except Exception as error:
        return f"tutelage {' '.join(arguments)}: {getattr(error, 'message', None) or error!r}"
    return None


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=name_of)
def test_every_command_in_the_documents_and_recipes_parses(path, capsys):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":  # a recipe's commands are in the comment that opens it
        text = re.sub("^#", "", text, flags=re.MULTILINE).replace("   tutelage", "    tutelage")
        assert commands(text), "a recipe opens with the command that runs it"
    assert [reason for arguments in commands(text) if (reason := refused(arguments))] == []


@pytest.mark.parametrize(
    "line", ["teech r.yaml", "run", "run r.yaml --fast", "shrink a", "shrink a b --layers x", "predict m"]
)
def test_a_wrong_command_would_be_seen(line):
    assert refused(line.split())


@each_document
def test_every_dotted_key_in_the_documents_is_one_of_the_recipe(path):
    sections = "task|data|teacher|student|trainer|teach|anchor|cache|cross_fit|distill|evaluate|tune|compare|report"
    text = path.read_text(encoding="utf-8")
    code = "\n".join([*inline(text), *blocks(text)])
    keys = set(re.findall(rf"(?<![\w./-])((?:{sections})(?:\.\w+)+)(?:=|: )", code))
    assert [key for key in sorted(keys) if unknown(key)] == []


def unknown(key: str) -> bool:
    try:  # null is a wrong value for most keys, which is another error than an unknown key
        load_recipe(RECIPES[0], [f"{key}=null"])
    except ConfigError as error:
        return "unknown key" in str(error) or "not an argument" in str(error)
    return False


def test_a_wrong_key_would_be_seen():
    assert [unknown(key) for key in ("distill.stages", "trainer.lr")] == [True, True]
    assert [unknown(key) for key in ("distill.num_stages", "teacher.lora")] == [False, False]


def test_the_korean_readme_has_the_commands_headings_and_code_of_the_english_one():
    english, korean = text_of("README.md"), text_of("README.ko.md")
    assert commands(korean) == commands(english)
    assert len(re.findall("^#+ ", korean, re.MULTILINE)) == len(re.findall("^#+ ", english, re.MULTILINE))
    code = [next(body for kind, body in FENCE.findall(text) if kind == "python") for text in (english, korean)]
    assert ast.dump(ast.parse(code[0])) == ast.dump(ast.parse(code[1]))


def test_the_readme_is_short():
    assert len(text_of("README.md").split()) < 900


@each_document
def test_lines_are_short_except_tables_and_links(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    longer = [line for line in lines if len(line) > MOST_COLUMNS and not line.startswith("|") and "](" not in line]
    assert [line for line in longer if len(line.split()) > 1] == []


# --- names and links ---


@cache
def defined(path: Path) -> set[str]:
    """Functions, classes, methods and module-level names of a file."""
    nodes = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(nodes) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in nodes.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def references(text: str) -> list[tuple[Path, str]]:
    """File and name of each `file.py: name` (in the package) and `tests/file.py::name` (from the root)."""
    matches = filter(None, (re.fullmatch(r"([\w/]+\.py)(: |::)(\w+)", code) for code in inline(text)))
    return [((SOURCE if match[2] == ": " else ROOT) / match[1], match[3]) for match in matches]


@each_document
def test_every_function_class_and_test_that_is_named_exists(path):
    names = references(path.read_text(encoding="utf-8"))
    assert len(names) >= 8 or path.name != "method.md", "the method page names the code and the tests of each part"
    assert [f"{name_of(file)}: {name}" for file, name in names if not file.is_file() or name not in defined(file)] == []


@pytest.mark.parametrize("name", NAMING_SOURCE)
def test_every_source_file_that_is_named_exists(name):
    files = [code for code in inline(text_of(name)) if re.fullmatch(r"[\w/]+\.py", code)]
    assert [file for file in files if not (SOURCE / file).is_file() and not (ROOT / file).is_file()] == []


@each_document
def test_every_relative_link_points_to_a_file(path):
    assert [target.name for target, _ in local_links(path) if not target.exists()] == []


@each_document
def test_every_anchor_of_a_link_is_a_heading(path):
    links = [(target, anchor) for target, anchor in local_links(path) if anchor and target.is_file()]
    assert [f"{target.name}#{anchor}" for target, anchor in links if anchor not in anchors_of(target)] == []


def local_links(path: Path) -> list[tuple[Path, str]]:
    """File and anchor ("" if there is none) of every link into this repository."""
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text(encoding="utf-8")))
    local = [link.partition("#") for link in links if not re.match(r"[a-z]+:", link)]
    return [((path.parent / file) if file else path, anchor) for file, _, anchor in local]


@cache
def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {heading_anchor(heading) for heading in headings}


# --- recipes ---


def test_there_are_recipes_of_ours_and_of_the_demo():
    assert len(RECIPES) >= 5
    assert {path.stem for path in RECIPES if path.parent.name == "demo"} == {"classification", "ner", "qa"}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_loads(path):
    assert load_recipe(path).recipe.name


# --- keys of what a run writes ---

ARTIFACTS = text_of("docs/artifacts.md")


def keys_of_table(after: str) -> dict[str, str]:
    """Key -> meaning of the first table after a text. A row may name several keys."""
    rows = re.search(r"\n\|[- |]+\|\n((?:\|.*\n)+)", ARTIFACTS[ARTIFACTS.index(after) :])[1].splitlines()
    cells = [re.split(r"(?<!\\)\|", row.strip("|"), maxsplit=1) for row in rows]
    return {key: meaning for keys, meaning in cells for key in re.findall(r"`(\w+)`", keys)}


def keys_of_sentence(file: str) -> list[str]:
    """The keys in the sentence that begins with the name of a file."""
    sentence = re.search(rf"^`{re.escape(file)}`[:,](.*?)\.\s", ARTIFACTS, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"`(\w+)`", sentence)


def test_the_documented_keys_of_losses_and_predictions_are_those_of_the_records():
    assert list(keys_of_table("## sample_loss.jsonl")) == [field.name for field in fields(SampleLoss)]
    assert keys_of_sentence("predictions.jsonl") == [field.name for field in fields(Prediction)]


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """The folder of a distillation of two stages in which nothing is measured or trained."""
    seen = [Candidate("checkpoint-1", 0.5, 0.1), Candidate("checkpoint-2", 0.0, 0.2)]
    monkeypatch.setattr(probe.Probe, "compare", lambda self, model: seen)
    of_taid = Interpolation(share=0.5, momentum=0.0, previous=1.0)

    def untrained(self, stage, model, checkpoint, *_):
        return self._guidance(checkpoint, SimpleNamespace(interpolation=of_taid))

    monkeypatch.setattr(distillation.Distillation, "_train", untrained)
    monkeypatch.setattr(StudentSetup, "load", lambda self, folder, seed: nn.Linear(1, 1))
    monkeypatch.setattr(StudentSetup, "save", lambda self, model, folder: None)
    source = SimpleNamespace(checkpoints=[c.checkpoint for c in seen], nll=lambda checkpoint: np.array([0.5, 1.0]))
    setup = StudentSetup(
        model=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        vocabulary=4,
        rows=[EncodedRow(name, "train", [1], [2, 3]) for name in "ab"],
        teacher=source,
        best="checkpoint-2",
        weighting=AdaptiveWeighting(np.array([1.5, 1.0]), source.nll),
        validate=lambda model: Validation(0.5, 1.0),
    )
    distillation.Distillation(DistillationPlan(num_stages=2), tmp_path, setup).run()
    return tmp_path


def test_the_documented_keys_of_stages_are_those_that_are_written(written):
    documented = keys_of_table("`stages.json`, a list")
    records = json.loads((written / "stages.json").read_text())
    assert len(records) == 2
    for record in records:
        assert set(record) == set(documented)
        assert set(record["validation"]) == set(re.findall(r"`(\w+)`", documented["validation"]))
        for candidate in record["candidates"]:
            assert set(candidate) == set(re.findall(r"`(\w+)`", documented["candidates"]))


def test_the_documented_keys_of_weights_are_those_that_are_written(written):
    lines = list(read_jsonl(written / "weights.jsonl"))
    assert len(lines) == 2 * 2
    assert lines[0]["weight"] == pytest.approx(0.75)  # 1.5 / (1.5 + 0.5)
    for line in lines:
        assert list(line) == keys_of_sentence("weights.jsonl")
