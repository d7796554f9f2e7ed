"""Numbers as a reader sees them."""

import pytest

from tutelage.utils.format import format_bytes, format_count


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (99_960, "100 kB"), (999_600, "1.0 MB"), (3e9, "3.0 GB")],
)
def test_bytes(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "an unknown number of"), (12, "12"), (156_000, "156 thousand"), (1_540_000_000, "1.54 billion")],
)
def test_parameter_counts(count, text):
    assert format_count(count) == text
