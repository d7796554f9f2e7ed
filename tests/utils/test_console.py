"""What is printed: tables of text from data."""

import io
import re

import pytest
from rich.console import Console

from tutelage.utils import console
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


class Clock:
    """In place of the module time."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(console, "time", self)

    def monotonic(self) -> float:
        return self.now


def test_a_line_a_minute_where_there_is_no_terminal_with_the_speed_of_new_steps(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Screen().steps("train") as on_step:
        clock.now += 10  # the model is loaded
        on_step(100, 400)
        for done in range(101, 131):
            clock.now += 3
            on_step(done, 400)
    # 20 new steps after 60 s; 280 to go, of 3 s each. The last line has the 10 s in it.
    assert capsys.readouterr().err.splitlines() == [
        "train: 117 of 400 steps, 3.0 s each, about 14 min left",
        "train: 30 steps, resumed at step 100, in 100.0 s",
    ]


def test_rows_that_were_done_before_say_nothing_about_the_speed(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Screen().progress("rows", 10_000, 9_000) as advance:
        for _ in range(4):
            clock.now += 30
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "rows: 9,200 of 10,000, 3 a second, about 4 min left",
        "rows: 9,400 of 10,000, 3 a second, about 3 min left",
        "rows: 1,000, resumed at 9,000, in 120.0 s",
    ]


def test_a_bar_after_a_resume_starts_where_the_work_does(monkeypatch):
    clock, screen = Clock(monkeypatch), Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with screen.steps("train") as on_step:
        on_step(100, 400)
        clock.now += 50  # rich itself forgets what is more than 30 s ago
        on_step(101, 400)
        screen.console.file.truncate(0)
        on_step(101, 400)
    shown = screen.console.file.getvalue()
    assert "101/400" in shown and "50.0 s each, about 4 h 9 min left" in shown


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
