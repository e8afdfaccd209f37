"""Tokenizer files of all kinds against what transformers' AutoTokenizer makes of them."""

import itertools
import json
import random

import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from transformers import AutoTokenizer

from llama_jax.text import Tokenizer
from llama_jax.text.opening import NAMED
from tests.text.vocabularies import byte_level, sentencepiece

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
WRITTEN = [
    "When Mary went to the shop",
    " John's  1250 drinks,\n\n\tMary ",
    "",
    " ",
    "日本語 👩🏽‍🚀 e\u0301 ünïcode",
    f"a {EOS}  b{BOS} c <tool> d<tool>e  <think>\n f <s>  g </s> h<|endoftext|> i <unk>j",
    f"{EOS} after",
    "x\u2581y <0xE2>",
]


def files(folder, backend, config=None, **others):
    """The folder of a tokenizer, with the config that is given."""
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def check(folder, texts=WRITTEN):
    """Ids, texts and special tokens are transformers', also those of what we save."""
    ours = Tokenizer.from_file(folder / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    for part in NAMED[1:]:  # BOS we say also where no file names it
        assert ours.named_tokens.get(part) == theirs.special_tokens_map.get(part)
    saved = folder / "saved"
    saved.mkdir()
    (saved / "config.json").write_text('{"model_type": "llama"}')
    ours.save(saved)
    again, reopened = (
        Tokenizer.from_file(saved / "tokenizer.json"),
        AutoTokenizer.from_pretrained(saved),
    )
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text, allow_special=True) == ids, text
        assert again.encode(text, allow_special=True) == ids, text
        assert reopened(text)["input_ids"] == ids, text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, bos=False, allow_special=True) == plain, text
        check_texts(ours, theirs, ids)
    draw = random.Random(0)
    for _ in range(100):
        check_texts(ours, theirs, draw.choices(range(len(theirs)), k=draw.randrange(12)))


def check_texts(ours, theirs, ids):
    assert ours.decode(ids) == theirs.decode(ids), ids
    text = theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special=True) == text, ids
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == text, ids


def processor(backend, first, last):
    names = [*([BOS] if first else []), "$A", *([EOS] if last else [])]
    return processors.TemplateProcessing(
        single=names, special_tokens=[(name, backend.token_to_id(name)) for name in (BOS, EOS)]
    )


GRID = list(
    itertools.product(
        (None, (True, False), (False, True), (True, True), (False, False)),  # post-processor
        ({}, {"bos_token": BOS}, {"bos_token": None}, {"bos_token": EOS}),
        ({}, {"add_bos_token": True}, {"add_bos_token": False}),
        ({}, {"add_eos_token": True, "eos_token": EOS}),
    )
)


@pytest.mark.parametrize("around", [None, (True, False), (False, True), (True, True)])
def test_what_stands_around_a_text_over_the_grid(tmp_path, around):
    for i, (processing, *settings) in enumerate(GRID):
        if processing != around:
            continue
        backend = byte_level(special=(BOS, EOS), size=300)
        if processing is not None:
            backend.post_processor = processor(backend, *processing)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for some in settings:
            config |= some
        check(files(tmp_path / str(i), backend, config), WRITTEN[:3])


OPTIONS = [
    dict(zip(("lstrip", "rstrip", "single_word", "normalized", "special"), some, strict=True))
    for some in itertools.product((False, True), repeat=5)
]


@pytest.mark.parametrize(
    "where", ["tokenizer.json", "decoder", "map", "decoder over tokenizer.json"]
)
@pytest.mark.parametrize("vocabulary", ["byte_level", "sentencepiece"])
def test_options_of_added_tokens(tmp_path, vocabulary, where):
    for i, options in enumerate(OPTIONS):
        backend = (
            byte_level(special=(BOS,), size=300) if vocabulary == "byte_level" else sentencepiece()
        )
        added = [AddedToken(name, **options) for name in (EOS, "<tool>", "<think>")]
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
        others = {}
        if "tokenizer.json" in where:
            backend.add_tokens(added if where == "tokenizer.json" else [EOS, "<tool>", "<think>"])
        if "decoder" in where:
            config["added_tokens_decoder"] = {
                str(500 + n): {"content": name, **options}
                for n, name in enumerate((EOS, "<tool>", "<think>"))
            }
        if where == "map":
            options = {k: v for k, v in options.items() if k != "special"}
            others["special_tokens_map"] = {
                "eos_token": {"content": EOS, **options},
                "pad_token": "<tool>",
            }
        check(files(tmp_path / str(i), backend, config, **others))


CONFIGS = {
    "no config": None,
    "nothing": {},
    "names": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "options": {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": True, "rstrip": True},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    },
    "extra list": {"extra_special_tokens": ["<tool>", "<think>"]},
    "additional": {
        "additional_special_tokens": [
            "<think>",
            {"__type": "AddedToken", "content": "<tool>", "lstrip": True, "special": True},
        ]
    },
    "extra by name": {"extra_special_tokens": {"image_token": "<tool>"}},
    "a part of its own": {"image_token": "<tool>"},
    "added": {
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1": {"content": "<s>", "lstrip": True, "special": True},
            "9": {"content": "<think>", "special": False},
            "7": {"content": "<tool>", "special": False, "rstrip": True},
        },
        "pad_token": "<tool>",
    },
    "space": {"add_prefix_space": True},
    "no space": {"add_prefix_space": False},
    "legacy": {"legacy": True},
    "not legacy": {"legacy": False},
}
CLASSES = [None, "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer"]
VOCABULARIES = {
    "SmolLM": byte_level,
    "a prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "TinyLlama": sentencepiece,
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
    "never": lambda: sentencepiece("never"),
    "Metaspace": lambda: sentencepiece("first", decoder=decoders.Metaspace()),
}
READ = [
    (vocabulary, kind)
    for vocabulary, kind in itertools.product(VOCABULARIES, CLASSES)
    # That class reads others as nonsense.
    if kind != "GPT2Tokenizer" or vocabulary in ("SmolLM", "a prefix")
]


@pytest.mark.parametrize(("vocabulary", "kind"), READ)
def test_other_peoples_llamas(tmp_path, vocabulary, kind):
    for i, (name, config) in enumerate(CONFIGS.items()):
        if kind is not None:
            config = {**(config or {}), "tokenizer_class": kind}
        backend = VOCABULARIES[vocabulary]()
        try:
            check(files(tmp_path / str(i), backend, config))
        except AssertionError as error:
            raise AssertionError(name) from error


def test_tokens_of_older_files(tmp_path):
    older = {"added_tokens": {"<tool>": 420, "<think>": 421}}
    tokens = {"special_tokens_map": {"pad_token": "<think>", "bos_token": "<s>"}}
    check(files(tmp_path / "a", sentencepiece(), {}, **older, **tokens))
    check(files(tmp_path / "b", sentencepiece(), {"tokenizer_class": "LlamaTokenizer"}, **older))
