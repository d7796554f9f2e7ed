"""The code on a model card, run as it stands: plain transformers answers exactly as `tutelage predict`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from helpers.tiny import EOS, byte_tokenizer, tiny_model
from helpers.whole_run import whole_run
from tutelage.data.readers import Place
from tutelage.models.load import load_tokenizer, load_trainable
from tutelage.models.save import save_student
from tutelage.predict.find_model import find_model
from tutelage.predict.predictor import Predictor
from tutelage.recipe.schema import Model
from tutelage.report.model_card import write_card

MAIN = "scd-aw/seed-0"
TEXTS = ["my head hurts", "coughing since Monday", "두통이 심해요", "a", "発熱 39"]
HOSTILE = {
    **{"do_sample": True, "temperature": 3.0, "top_p": 0.1, "min_p": 0.5, "typical_p": 0.2, "num_beams": 3},
    **{"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_length": 12, "min_new_tokens": 5},
    **{"bad_words_ids": [[101], [32]], "suppress_tokens": [97, 110], "forced_eos_token_id": 70, "max_new_tokens": 3},
    **{"encoder_repetition_penalty": 4.0, "length_penalty": 9.0, "num_return_sequences": 2, "stop_strings": ["e"]},
}
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{{ '<bot>' if add_generation_prompt }}"


def with_end() -> PreTrainedTokenizerFast:
    """A tokenizer that writes an end-of-sequence after every text."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<|pad|> $A {EOS}", special_tokens=[("<|pad|>", 257), (EOS, 256)]
    )
    return tokenizer


def base(folder: Path, tokenizer: PreTrainedTokenizerFast, ends: list[int], **model) -> Path:
    """A student before training, with everything that could change its answers in its generation config."""
    tiny_model(**model).save_pretrained(folder)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.add_special_tokens({"additional_special_tokens": [chr(end) for end in ends]})
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({**HOSTILE, "eos_token_id": ends[:-1]}))
    config = json.loads((folder / "config.json").read_text())
    written = {**config, "eos_token_id": ends[-1], "repetition_penalty": 5.0, "max_length": 12, "num_beams": 3}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize(
    ("tokenizer", "chat", "model"),
    [
        (byte_tokenizer(), False, {"arch": "llama", "vocab_size": 288}),
        (byte_tokenizer(), False, {"arch": "qwen2", "vocab_size": 288, "tie_word_embeddings": True}),
        (with_end(), False, {"arch": "mistral"}),
        (with_end(), True, {"arch": "glm4", "vocab_size": 288}),
    ],
    ids=["padded", "padded-tied", "end-appended", "all"],
)
def test_the_code_of_the_card_answers_as_predict(tmp_path, capsys, tokenizer, chat, model):
    tokenizer.chat_template = CHAT if chat else None
    section = Model(model_name_or_path=str(base(tmp_path / "base", tokenizer, [120, 45, 88], **model)))
    run = whole_run(tmp_path, rows=8)
    folder = run / "distill" / MAIN
    save_student(load_trainable(section, None, 0, 258), load_tokenizer(section), folder)
    usage = json.loads((folder / "tutelage.json").read_text())
    usage["data"] |= {"chat_template": chat, "system": "Be brief." if chat else None}
    (folder / "tutelage.json").write_text(json.dumps(usage | {"max_new_tokens": 24}))

    code = re.search(r"```python\n(.*?)```", write_card(run).read_text(), flags=re.DOTALL)[1]
    code = code.replace("'PATH_OR_REPOSITORY'", repr(str(folder)))
    capsys.readouterr()
    plain = []
    for text in TEXTS:
        exec(code.replace('text="..."', f"text={text!r}"), {})
        plain.append(capsys.readouterr().out.removesuffix("\n"))
    rows = [({"text": text}, Place("rows", n)) for n, text in enumerate(TEXTS)]
    predicted = [line["raw"] for line in Predictor(find_model(folder), batch_size=1)(rows)]
    assert plain == predicted
    assert len(set(plain)) > 2 and len(set(map(len, plain))) > 2, "answers must differ, and end at different tokens"
    kept = json.loads((folder / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [45, 88, 120, 256] and not HOSTILE.keys() & kept.keys() - {"do_sample"}
