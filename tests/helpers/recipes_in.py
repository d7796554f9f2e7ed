"""The recipe that tests of recipes change, and how they look at what is wrong with it."""

GOOD = """\
task: {type: classification}
data:
  train: data/train.jsonl
teacher:
  model_name_or_path: big
student:
  model_name_or_path: small
"""


def only(lines):
    """The one problem below the title, or the one line there is."""
    assert len(lines) <= 2, lines
    return lines[-1]
