"""No token or password gets into a file of a run, into output or into an error, wherever a user puts one."""

import json

import pytest

from helpers.project import Command, make_project
from tutelage import SCDConfig
from tutelage.errors import Kind
from tutelage.errors.secrets import has_secret, redacted

TOKEN = "hf_" + "FAKEtoken0" * 3
KEY = "0123456789abcdef" * 2 + "01234567"  # as a key of Weights & Biases
URL = f"https://somebody:{TOKEN}@huggingface.co/owner/name"
PASSWORD_URL = "https://somebody:s3cret-word@example.org/rows.jsonl"


def files_with(folder, *secrets):
    """Files below a folder that hold one of the texts, whatever their format."""
    return [
        (path, secret)
        for path in folder.rglob("*")
        if path.is_file()
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.mark.parametrize(
    "override",
    [
        f"trainer.hub_token={TOKEN}",
        f"trainer.run_name={TOKEN}",
        f"trainer.lr_scheduler_kwargs={{key: {TOKEN}}}",
        f"hub_token={TOKEN}",
        f"teacher.token={TOKEN}",
        f"teacher.model_name_or_path={URL}",
        f"student.model_name_or_path={URL}",
        f"anchor.model_name_or_path={URL}",
        f"teach.checkpoints=[{URL}]",
        f"data.dataset={URL}",
        f"data.train={PASSWORD_URL}",
        f"data.train=[{PASSWORD_URL}]",
        f"data.revision={TOKEN}",
        f"data.columns={{{TOKEN}: text}}",
        f"data.max_length={TOKEN}",
        f"name={TOKEN}",
        f"distill.methods=[td+trainer.run_name={TOKEN}]",
        f"no override {TOKEN}",
        f"trainer.hub_token ={TOKEN}",
    ],
)
def test_a_token_in_a_recipe_is_refused_and_not_repeated(tmp_path, command, override):
    recipe = make_project(tmp_path)
    for words in (["prepare", recipe, override], ["doctor", recipe, override, "--json"], ["show", recipe, override]):
        assert command(*words) == 2
        assert not any(secret in command.out + command.err for secret in (TOKEN, "s3cret-word"))
    assert not (tmp_path / "run").exists()


def test_a_token_in_the_recipe_file_is_named_by_its_line(tmp_path, command):
    recipe = make_project(tmp_path)
    recipe.write_text(f"{recipe.read_text()}\nname: {TOKEN}\n", encoding="utf-8")
    line = len(recipe.read_text().splitlines())
    assert command("doctor", recipe, "--json") == 2
    (check,) = json.loads(command.out)
    assert (check["kind"], check["line"]) == (Kind.SECRET_IN_RECIPE, f"{recipe}:{line}")
    assert "HF_TOKEN" in check["text"]


@pytest.mark.parametrize(
    "words",
    [
        ["init", "DATA", "--teacher", URL, "--student", "x"],
        ["predict", URL, "--input", "-"],
        ["shrink", URL, "OUT", "--layers", "1"],
        ["push", "RUN", URL],
        ["explain", TOKEN, "--run", URL],
        ["ls", URL],
        ["compare", URL, "--methods", TOKEN],
        ["show", URL],
    ],
)
def test_a_token_in_another_place_is_not_repeated(tmp_path, command, words, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `init` writes here
    make_project(tmp_path)
    places = {"DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out"), "RUN": str(tmp_path / "run")}
    before = files_with(tmp_path, TOKEN)
    command(*(places.get(word, word) for word in words))
    assert TOKEN not in command.out + command.err and files_with(tmp_path, TOKEN) == before == []


def test_tokens_of_the_environment_are_in_no_file_of_a_run(tmp_path, command, monkeypatch):
    """All files that a run with its report and card writes, and all that these commands and `doctor` print."""
    secrets = {"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN, "WANDB_API_KEY": KEY, "COMET_API_KEY": KEY}
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    recipe, printed = make_project(tmp_path, distill={"num_stages": 1}), ""
    for words in (("run", recipe), ("card", tmp_path / "run"), ("doctor", recipe, "--json")):
        assert command(*words) in ({1, 2} if words[0] == "doctor" else {0}), command.err
        printed += command.out + command.err
    assert not any(secret in printed for secret in (TOKEN, KEY))
    assert len(list((tmp_path / "run").rglob("*"))) > 30 and files_with(tmp_path, TOKEN, KEY) == []


def test_a_token_given_to_python_is_not_recorded(tmp_path):
    config = SCDConfig(output_dir=str(tmp_path), hub_token=TOKEN, hub_model_id="owner/name", learning_rate=1e-3)
    assert TOKEN not in str(config.given()) and config.given()["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        URL,
        PASSWORD_URL,
        "ghp_" + "a1" * 18,
        "sk-" + "a1" * 20,
        "AKIA" + "A1" * 8,
        "wandb_v1_" + "a1B" * 9,
        f"x={TOKEN}.",
    ],
)
def test_secrets_are_known_by_their_form(text):
    assert has_secret(text) and "***" in redacted(text) and not has_secret(redacted(text).replace("***@", ""))


@pytest.mark.parametrize(
    "text", ["hf_hub", "https://huggingface.co/a/b", "me@example.org", "a://b c@d", "task-sk-learn", "s3://bucket/key"]
)
def test_other_text_is_left_alone(text):
    assert not has_secret(text) and redacted(text) == text
