"""Token ids against Meta's own tokenizer and transformers', with the real vocabulary of Llama 3."""

import pathlib
import random

import llama_models
import pytest
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from llama_jax.text import Tokenizer

TEXTS = [
    "Hello, world! It's 1234567890 o'clock\n\n\tand I'LL go.",
    "  leading,   several   and trailing spaces  \r\n\r\n",
    "日本語の文章、中文。한국어 مرحبا بالعالم שלום ไทย हिन्दी",
    "e\u0301 a\u0308\u0323 👩🏽‍🚀👨‍👩‍👧‍👦🇨🇭 \U0001f9ff ﷽ ½ ٣",
    "def f(x):\n    return x ** 2  # ünïcode\n" * 3,
    "\x00\x07\ufeff\u2028\u200b",
]
WITH_SPECIAL = [
    "<|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|>",
    "<|begin_of_text|>twice <|begin_of_text|> and broken <|eot_id |>",
]


def random_texts(count=200):
    draw = random.Random(0)
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x4E00, 0x4F00), (0x1F600, 0x1F650)]
    for _ in range(count):
        low, high = draw.choice(ranges)
        yield "".join(chr(draw.randrange(low, high)) for _ in range(draw.randrange(40)))


@pytest.fixture(scope="module")
def meta():
    return MetaTokenizer.get_instance()


@pytest.fixture(scope="module")
def tokenizer(meta, tmp_path_factory):
    """Meta's vocabulary as a `tokenizer.json`, made by transformers."""
    converter = TikTokenConverter(
        str(pathlib.Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"),
        pattern=meta.model._pat_str,
        extra_special_tokens=sorted(meta.special_tokens, key=meta.special_tokens.get),
    )
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.json"
    converter.converted().save(str(path))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    """What transformers makes of the files that we save."""
    directory = tmp_path_factory.mktemp("saved")
    tokenizer.save(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')  # as in a checkpoint
    return AutoTokenizer.from_pretrained(directory)


def test_the_vocabulary_is_metas(tokenizer, meta):
    assert (tokenizer.vocab_size, tokenizer.bos) == (128256, 128000)
    assert tokenizer.special == meta.special_tokens
    assert all(tokenizer.token_bytes(i) == meta.model.decode_bytes([i]) for i in range(128256))


def test_ids_are_metas_with_special_tokens_as_text_and_allowed(tokenizer, meta):
    for text in (*TEXTS, *WITH_SPECIAL, *random_texts()):
        assert tokenizer.encode(text, bos=False) == meta.encode(text, bos=False, eos=False), text
        allowed = meta.encode(text, bos=False, eos=False, allowed_special="all")
        assert tokenizer.encode(text, bos=False, allow_special=True) == allowed, text
        assert tokenizer.decode(allowed) == meta.decode(allowed) == text


def test_transformers_opens_what_was_saved_and_both_ways_agree(tokenizer, theirs):
    assert theirs.bos_token_id == tokenizer.bos
    for text in (*TEXTS, *WITH_SPECIAL[:1], *random_texts()):
        ids = theirs(text)["input_ids"]
        assert tokenizer.encode(text, allow_special=True) == ids, text
        assert tokenizer.decode(ids) == theirs.decode(ids) == theirs.bos_token + text
        assert tokenizer.decode(ids, skip_special=True) == theirs.decode(
            ids, skip_special_tokens=True
        )


def test_what_transformers_saves_is_read(tokenizer, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.bos == tokenizer.bos
    for text in (*TEXTS, *WITH_SPECIAL):
        assert again.encode(text) == tokenizer.encode(text)
