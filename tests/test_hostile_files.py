"""Models and rows of others are data: nothing in them is executed."""

import json
import pickle

import pytest

from helpers.project import Command, make_project


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt"])
def test_pickles_of_a_model_are_not_executed(tmp_path, command, name):
    recipe, ran = make_project(tmp_path), tmp_path / "ran"
    student = tmp_path / "models/student"
    (student / name).write_bytes(pickle.dumps(Payload(ran)))
    assert command("doctor", recipe) in (0, 1)
    (student / "model.safetensors").unlink()
    assert command("doctor", recipe) == 2 and "Traceback" not in command.err
    assert not ran.exists()


def test_code_that_comes_with_a_model_is_not_executed(tmp_path, command):
    recipe, ran = make_project(tmp_path), tmp_path / "ran"
    student = tmp_path / "models/student"
    (student / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    for file in ("config.json", "tokenizer_config.json"):
        values = json.loads((student / file).read_text())
        classes = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M", "AutoTokenizer": ["theirs.T", None]}
        (student / file).write_text(json.dumps(values | {"auto_map": classes}), encoding="utf-8")
    command("prepare", recipe)
    command("doctor", recipe)
    assert not ran.exists() and "Traceback" not in command.err


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('x') }}"]
)
def test_a_chat_template_reaches_nothing_of_python(tmp_path, command, template):
    recipe = make_project(tmp_path, data={"chat_template": True, "template": None})
    for role in ("teacher", "student"):
        (tmp_path / "models" / role / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert command("prepare", recipe) != 0
    assert not (tmp_path / "run/prepare/manifest.json").exists()
