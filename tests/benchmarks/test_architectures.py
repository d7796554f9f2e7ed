"""`benchmarks.architectures` on one architecture, and what it says of one that is refused."""

from pathlib import Path

from benchmarks.architectures import END, START, outcome, table

MODELS = Path(__file__).parents[2] / "docs/models.md"


def test_a_hybrid_of_convolution_and_attention_goes_through_a_whole_run():
    """Rows of different lengths, and embeddings that are padded to different sizes."""
    found = outcome("lfm2")
    assert found.pop("alone") < 1e-5
    assert found == {"cache": "states", "fused": True, "answers": "6 of 6"}
    assert outcome("t5") == {"refused": "encoder_decoder"}


def test_the_documented_table_is_of_this_form():
    text = MODELS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert table({}) in text
