"""What is printed: tables of text from data."""

import re

import pytest

from tutelage.utils.console import Screen, print_table, visible


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv"])
def test_a_table_shows_control_characters_and_obeys_none(capsys, form):
    print_table("title", ["name", "value"], [["\x1b[2Jred\u202edlog", "a\tb\nc"]], form)
    out = capsys.readouterr().out
    assert "␛[2Jred⟨U+202E⟩dlog" in out and "a␉b␊c" in out
    assert not {"\x1b", "\u202e"} & set(out) and len(out.strip().splitlines()) <= 4


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_narrow_terminal_cuts_no_number_off(capsys, monkeypatch, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    head = ["recipe", "method", "seeds", "score", "gap closed", "loss (nats)", "p (Holm)", "seconds", "rank"]
    row = [
        "banking77_smollm2",
        "td+kd_ratio=0.7",
        "3",
        "0.842 [0.810, 0.873]*",
        "56% [39%, 68%]",
        "0.330 [0.294, 0.366]",
        "0.014",
    ]
    print_table("title", head, [[*row, "20", "16.5 / 13.5"]])
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in out and max(map(len, out.splitlines())) <= columns
    for number in ("0.842", "[0.810,", "0.873]*", "[0.294,", "0.366]", "0.014", "16.5", "13.5"):
        assert number in out


def test_latex_takes_every_name(capsys):
    print_table("title", ["name"], [["a_b%&#$~^\\{}<c>"]], "latex")
    assert (
        r"a\_b\%\&\#\$\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\textless{}c\textgreater{} \\"
        in capsys.readouterr().out
    )


def test_steps_before_a_resume_are_not_counted(capsys):
    for reports, words in (
        ([0, 1, 2], "2 steps in"),
        ([7, 8], "1 steps, resumed at step 7, in"),
        ([], "0 steps in"),
    ):
        with Screen().steps("train") as on_step:
            for done in reports:
                on_step(done, 10)
        assert f"train: {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("발열 発熱 é 👩‍⚕️", "발열 発熱 é 👩‍⚕️"),  # joiners in emoji are harmless
        ("a\x1b]0;t\x07b", "a␛]0;t␇b"),
        ("\x7f\x9b31m", "␡⟨U+009B⟩31m"),
        ("a\u202eb\u2066c\u200fd", "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200F⟩d"),
        ("a\ud800b\u2028c\ufeff", "a⟨U+D800⟩b⟨U+2028⟩c⟨U+FEFF⟩"),
        ("one\ntwo\tthree", "one␊two␉three"),
    ],
)
def test_control_characters_are_shown_as_symbols(text, shown):
    assert visible(text) == shown
    visible(text).encode()


def test_lines_are_kept_on_request():
    assert visible("a\n\tb\r", lines=True) == "a\n\tb␍"
