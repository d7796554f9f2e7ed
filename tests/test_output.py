"""All that is printed goes through utils/console.py, which shows control characters instead of obeying them."""

import ast
import io
import json
import os
from pathlib import Path

import pytest

from tutelage.utils.console import Screen, as_json, err, out, print_table

SOURCES = Path(__file__).parents[1] / "src" / "tutelage"
PRINTS = {"print", "echo", "secho", "print_exc", "print_exception", "print_json"}
OBEYED = ("\x1b[2J", "\x1b]", "\x07", "\u202e", "\x9b", "\r")
HOSTILE = "\x1b[2J\x1b]0;title\x07[red]x[/red] :smile: \u202egnp.exe\x9b1m\r"


def calls_that_print(tree):
    """Calls of a function or method that prints, and of `write` on a standard stream."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            receiver = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in PRINTS or (name in ("write", "writelines") and receiver.startswith("sys.std")):
                yield node.lineno


def test_only_the_console_prints():
    found = {
        f"{path.relative_to(SOURCES)}:{line}"
        for path in SOURCES.rglob("*.py")
        for line in calls_that_print(ast.parse(path.read_text(encoding="utf-8")))
        if path != SOURCES / "utils" / "console.py"
    }
    # A worker of a comparison prints the traceback of a failed student into its log file.
    assert {place.partition(":")[0] for place in found} == {"compare/executors.py"}, found


def test_the_check_sees_every_way_to_print():
    code = "print(1)\nconsole.print(2)\ntyper.echo(3)\nsys.stderr.write(4)\nfile.write(5)\nprint_table(6)\n"
    assert sorted(calls_that_print(ast.parse(code))) == [1, 2, 3, 4]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "put",
    [
        lambda: out(HOSTILE),
        lambda: out((HOSTILE, "bold"), HOSTILE),
        lambda: err(HOSTILE),
        lambda: Screen().say(HOSTILE),
        lambda: Screen().warn(HOSTILE),
        lambda: print_table(HOSTILE, [HOSTILE], [[HOSTILE]]),
        lambda: out(as_json({HOSTILE: HOSTILE})),
    ],
    ids=["out", "styled", "err", "say", "warn", "table", "json"],
)
def test_hostile_text_is_shown_and_not_obeyed(capsys, monkeypatch, put, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "200")
    put()
    text = "".join(capsys.readouterr())
    assert not any(part in text for part in OBEYED)
    assert "[red]x[/red] :smile:" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_titles_of_progress_are_text(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen().progress(HOSTILE, 2) as advance:
        advance(2)
    with Screen().steps(HOSTILE) as on_step:
        on_step(2, 2)
    text = capsys.readouterr().err
    assert "[red]x[/red]" in text and not any(part in text for part in ("\x1b[2J", "\x1b]", "\x07", "\u202e", "\x9b"))


def test_json_loses_nothing():
    value = {HOSTILE: [HOSTILE, "발열 é 👩\u200d⚕️", "\U000e0041", "\ud800"]}
    text = as_json(value)
    assert json.loads(text) == value and "발열 é" in text and not any(part in text for part in OBEYED)


def test_messages_that_cannot_be_written_do_not_end_the_work(monkeypatch):
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.FileIO(full, "w"), write_through=True))
    Screen().say("lost")
    err("lost")


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "https://me:pass@host/x"])
def test_messages_hide_tokens(capsys, secret):
    err(f"no model {secret}")
    Screen().say(f"no model {secret}")
    text = capsys.readouterr().err
    assert text.count("***") == 2 and "aB3" not in text and "pass" not in text
