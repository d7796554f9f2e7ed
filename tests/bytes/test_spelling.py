"""What tokens spell, which tokenizers are refused and with which reason."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.tiny import EOS, byte_tokenizer
from helpers.tokenizers_made import CORPUS, bpe_tokenizer, tekken_tokenizer, unigram_tokenizer
from tutelage.bytes.reader import byte_reader
from tutelage.bytes.spelling import added_spaces, spellings
from tutelage.bytes.vocabulary import ByteVocabulary
from tutelage.data.collate import vocabulary_of
from tutelage.errors import Kind, ModelError


def found(tokenizer, *texts):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return byte_reader(tokenizer, ((text, [*row, 0]) for text, row in zip(texts, ids, strict=True)), "teacher").skip


def reason(tokenizer, *texts):
    with pytest.raises(ModelError) as refused:
        found(tokenizer, *texts)
    (problem,) = refused.value.problems
    assert problem.kind == Kind.TEXT_NOT_SPELLED and problem.values["role"] == "teacher"
    return problem.values["reason"]


@pytest.mark.parametrize("make", [byte_tokenizer, bpe_tokenizer, tekken_tokenizer, unigram_tokenizer])
def test_every_text_is_spelled_as_it_is(make):
    assert found(make(), *CORPUS, " a  b\n\n\tc ", "🙂 é à", "Ġ and <0x", "") == 0


def test_the_character_that_stands_for_a_space_is_no_space():
    assert reason(unigram_tokenizer(), "a▁b") == "other"


def test_one_space_in_front_is_known():
    assert found(unigram_tokenizer(adds_space=True), "a", " b", "感") == 1


def test_a_space_in_front_of_some_texts_alone_is_refused():
    tokenizer = unigram_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    assert found(tokenizer, "a", "b") == 1 and found(tokenizer, " a", " b") == 0
    assert reason(tokenizer, "a", " b") == "spaces_differ"


@pytest.mark.parametrize(
    ("normalizer", "text", "expected"),
    [
        (normalizers.Lowercase(), " Positive", "lower_case"),
        (normalizers.NFKC(), " １００", "normal_form"),
        (normalizers.Replace("  ", " "), " a  b", "spaces"),
        (normalizers.Replace("a", "b"), " a", "other"),
    ],
)
def test_a_tokenizer_that_changes_text_is_refused_with_the_reason(normalizer, text, expected):
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    assert reason(tokenizer, text) == expected
    assert found(tokenizer, " x") == 0  # by the texts at hand: what it leaves as it is can be compared


def test_characters_without_a_token_and_special_tokens_in_a_text_are_refused():
    words = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁", -1.0)], unk_id=0))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token=EOS)
    assert found(tokenizer, "a a") == 0
    assert reason(tokenizer, "a b") == "unknown"
    assert reason(bpe_tokenizer(), f"a{EOS}b") == "unknown"


def test_wordpiece_is_refused():
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ModelError) as refused:
        found(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token=EOS), "ab")
    assert refused.value.kind == Kind.TOKENS_WITHOUT_BYTES and "WordPiece" in str(refused.value)


def test_byte_tokens_added_tokens_and_special_tokens():
    tokenizer = unigram_tokenizer()
    tokenizer.add_tokens(["<think>", "▁▁"])
    spelled = spellings(tokenizer, vocabulary_of(tokenizer))
    expected = {
        "<0xE6>": b"\xe6",
        "<think>": b"<think>",
        "▁▁": b"  ",
        "▁positive": b" positive",
        EOS: b"",
        "<unk>": b"",
    }
    assert {token: spelled[tokenizer.convert_tokens_to_ids(token)] for token in expected} == expected


def test_texts_are_the_bytes_between_answer_prefix_and_end():
    tokenizer = unigram_tokenizer(adds_space=True)
    ids = [*tokenizer(" new York", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert byte_reader(tokenizer, [(" new York", ids)], "student").text(ids) == b" new York"
    assert added_spaces([b"a"], [], "student") == 0


def test_children_of_a_prefix_are_ranges_in_the_order_of_bytes():
    vocabulary = ByteVocabulary([b"b", b"ab", b"a", b"", b"a\xff", b"ab", b"abc", b"\xff\xff"], end=3)
    assert vocabulary.order.tolist() == [2, 1, 5, 6, 4, 0, 7]
    children = vocabulary.children(b"a")
    assert (children.exact, children.start, children.stop) == (0, 1, 5)
    assert (children.bytes.tolist(), children.sizes.tolist()) == ([ord("b"), 0xFF], [3, 1])
    assert vocabulary.children(b"\xff").sizes.tolist() == [1]
    assert vocabulary.children(b"abc").bytes.tolist() == [] == vocabulary.children(b"zz").bytes.tolist()
