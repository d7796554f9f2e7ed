"""Numbers, durations and sizes as text; text from data in Markdown."""

import math

import pytest

from tutelage.records import Interval
from tutelage.utils.console import rough_duration
from tutelage.utils.format import (
    code_block,
    counted,
    duration,
    escape_markdown,
    file_size,
    number,
    p_value,
    parameter_count,
    percent,
    short_count,
    short_time,
    signed,
    signed_span,
    span,
)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (number, -0.0001, "0.000"),
        (number, -0.25, "−0.250"),
        (number, None, "–"),
        (number, math.nan, "–"),
        (signed, 0.0139, "+0.014"),
        (signed, -0.006, "−0.006"),
        (signed, 0.0, "0.000"),
        (signed, None, "–"),
        (span, Interval(0.794, 0.768, 0.8181), "0.794 [0.768, 0.818]"),
        (span, Interval(0.3, math.nan, math.nan), "0.300"),
        (span, None, "–"),
        (signed_span, Interval(0.014, -0.006, 0.034), "+0.014 [−0.006, +0.034]"),
        (percent, 0.684, "68 %"),
        (percent, 1.2, "120 %"),
        (percent, -0.2, "−20 %"),
        (percent, 0.001, "< 1 %"),
        (percent, 0.999, "> 99 %"),
        (percent, 0.0, "0 %"),
        (percent, 1.0, "100 %"),
        (percent, None, "–"),
        (p_value, 0.0142, "0.014"),
        (p_value, 0.0004, "< 0.001"),
        (p_value, None, "–"),
        (duration, 8.44, "8.4 s"),
        (duration, 200, "3 min 20 s"),
        (duration, 4320, "1 h 12 min"),
        (rough_duration, 8.44, "8 s"),
        (rough_duration, 200, "3 min"),
        (rough_duration, 6000, "1 h 40 min"),
        (short_time, 0.0351, "35 ms"),
        (short_time, 0.00062, "0.6 ms"),
        (short_time, 1.23, "1.2 s"),
        (file_size, 0, "0 B"),
        (file_size, 999, "999 B"),
        (file_size, 1234, "1.2 kB"),
        (file_size, 99_960, "100 kB"),
        (file_size, 999_600, "1.0 MB"),
        (file_size, 3e9, "3.0 GB"),
        (file_size, 4.2e15, "4,200.0 TB"),
        (parameter_count, 0, "an unknown number of"),
        (parameter_count, 12, "12"),
        (parameter_count, 156_000, "156 thousand"),
        (parameter_count, 1_540_000_000, "1.54 billion"),
        (short_count, 999, "999"),
        (short_count, 999_600, "1 M"),
        (short_count, 7_615_000_000, "7.62 B"),
    ],
)
def test_values_as_text(write, value, text):
    assert write(value) == text


def test_a_number_does_not_depend_on_how_it_was_computed():
    assert number(0.0175) == number(0.8225 - 0.805) == number(0.84 - 0.8225) == "0.018"  # no difference is 0.0175


def test_patterns_are_translated():
    korean = {"%(number)s %%": "%(number)s%%", "%(seconds)s s": "%(seconds)s초"}
    assert (percent(0.5, korean.__getitem__), duration(8.44, korean.__getitem__)) == ("50%", "8.4초")


def test_markdown_of_data_is_text():
    expected = r"\<b\>\|\`x\`\* \[a\](http\://e.com) a_b \_c\_ \# d"
    assert escape_markdown("<b>|`x`* [a](http://e.com) a_b _c_\n# d") == expected


def test_a_code_block_cannot_be_closed_by_its_text():
    assert code_block("a\n```\nb", "yaml") == ["````yaml", "a\n```\nb", "````"]


def test_one_is_counted_in_the_singular():
    said = [counted(1, "row"), counted(1234, "row"), counted(0, "row"), counted(2, "row repeats", "rows repeat")]
    assert said == ["1 row", "1,234 rows", "0 rows", "2 rows repeat"]
