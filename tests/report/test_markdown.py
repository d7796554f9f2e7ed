"""Text from data cannot become Markdown markup."""

from tutelage.report.markdown import md


def test_markdown_of_data_is_text():
    assert md("<b>|`x`* [a](http://e.com) a_b _c_\n# d") == r"\<b\>\|\`x\`\* \[a\](http\://e.com) a_b \_c\_ \# d"
