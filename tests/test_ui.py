"""What is printed: tables of text from data."""

import pytest

from tutelage.ui import print_table


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv"])
def test_a_table_shows_control_characters_and_obeys_none(capsys, form):
    print_table("title", ["name", "value"], [["\x1b[2Jred\u202edlog", "a\tb\nc"]], form)
    out = capsys.readouterr().out
    assert "␛[2Jred⟨U+202E⟩dlog" in out and "a␉b␊c" in out
    assert not {"\x1b", "\u202e"} & set(out) and len(out.strip().splitlines()) <= 4
