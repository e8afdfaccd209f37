"""What may lie in a folder of tokenizer files: other vocabularies, odd fields, damage."""

import json
import random
import tempfile
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, processors

from llama_jax.text import ChatError, TemplateError, TokenError, Tokenizer, encode_chat
from llama_jax.text.backends import no_panic
from tests.text.vocabularies import byte_level, sentencepiece

TEXTS = ["When Mary went", " John's  1250\n", "日本 👩🏽‍🚀 ünï", "", " ", "  x"]
VOCABULARIES = {
    "byte-level": byte_level,
    "normalizer": sentencepiece,
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
    "never": lambda: sentencepiece("never"),
    "Metaspace": lambda: sentencepiece("first", decoder=decoders.Metaspace()),
}


def opened(folder, backend, config=None, **others):
    """The tokenizer of these files."""
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": config, **others}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_file(folder / "tokenizer.json")


@pytest.fixture(scope="module", params=VOCABULARIES)
def both(request):
    """A vocabulary of ours and as `tokenizers` has it."""
    return Tokenizer(VOCABULARIES[request.param]()), VOCABULARIES[request.param]()


# Other people's vocabularies


def test_ids_and_texts_are_those_of_the_library(both):
    ours, theirs = both
    for text in (*TEXTS, "a <s>b"):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids)


def test_any_tokens_stream_as_the_library_decodes(both):
    ours, theirs = both
    draw = random.Random(0)
    for _ in range(300):
        ids = draw.choices(range(ours.vocab_size), k=draw.randrange(12))
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == theirs.decode(ids)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_a_stream_holds_bytes_back_until_they_are_characters():
    tokenizer = Tokenizer(sentencepiece("first"))
    stream, ids = tokenizer.stream(), tokenizer.encode("Mary é日 x")
    parts = [stream.push(id) for id in ids]
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + stream.finish() == "Mary é日 x"
    assert [stream.push(id) for id in ids] == parts  # begins anew, without the first space


def test_a_space_before_a_word_is_seen_in_pieces_and_asked_for_by_id(both):
    ours, _ = both
    piece = " Mary"
    assert ours.pieces([ours.id(piece)]) == [piece]
    assert ours.decode([*ours.encode("x", bos=False), ours.id(piece)]) == "x Mary"


def test_pieces_of_bytes_are_written_as_bytes():
    tokenizer = Tokenizer(sentencepiece("first"))
    assert tokenizer.pieces(tokenizer.encode("é")) == [" ", r"\xC3", r"\xA9"]


def test_parts_of_a_chat_are_read_as_the_whole_is(both):
    ours, theirs = both
    parts = [(True, "<s>"), (False, "Mary  went "), (True, "</s>"), (False, "John")]
    if "<s>" in ours.special:
        whole = theirs.encode("".join(text for _, text in parts), add_special_tokens=False)
        assert ours.encode_parts(parts) == whole.ids
    hostile = ours.encode_parts([(False, "a<s>b")])
    assert ours.special.get("<s>") not in hostile


def test_what_is_saved_opens_the_same(both, tmp_path):
    ours, _ = both
    ours.save(tmp_path)
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert all(again.encode(text) == ours.encode(text) for text in TEXTS)


def test_a_decoder_that_is_not_known_is_named():
    for decoder in (decoders.WordPiece(), decoders.CTC(), None):
        backend = tokenizers.Tokenizer(models.BPE())
        if decoder is not None:
            backend.decoder = decoder
        with pytest.raises(TokenError, match=f"BPE with the decoder {type(decoder).__name__}"):
            Tokenizer(backend)


# What the files say


def test_what_stands_around_a_text_is_what_the_post_processor_says(tmp_path):
    backend = byte_level(special=("<a>", "<b>"))
    backend.post_processor = processors.TemplateProcessing(
        single=["<a>", "$A", "<b>"], special_tokens=[("<a>", 0), ("<b>", 1)]
    )
    for i, config in enumerate(({"bos_token": None}, {"bos_token": "<b>", "add_bos_token": False})):
        tokenizer = opened(tmp_path / str(i), backend, config)
        inner = tokenizer.encode("Mary", bos=False)
        assert tokenizer.encode("Mary") == [0, *inner, 1]
        assert tokenizer.encode("<a>Mary") == [0, *inner, 1]
    backend.post_processor = processors.ByteLevel()
    tokenizer = opened(tmp_path / "none", backend, {"bos_token": "<a>", "add_bos_token": True})
    assert tokenizer.encode("Mary") == inner and tokenizer.bos == 0


def test_tokens_are_added_and_take_the_space_beside_them(tmp_path):
    added = {"400": {"content": "<tool>", "lstrip": True, "rstrip": True, "special": True}}
    tokenizer = opened(tmp_path, byte_level(), {"added_tokens_decoder": added})
    tool = tokenizer.special["<tool>"]
    mary = tokenizer.encode("Mary")
    assert tokenizer.encode("Mary  <tool>\nMary", allow_special=True) == [*mary, tool, *mary]
    parts = [(False, "Mary  "), (True, "<tool>"), (False, "\nMary")]
    assert tokenizer.encode_parts(parts) == [*mary, tool, *mary]


def test_a_tokenizer_of_llama_2s_class_is_read_as_that_class_reads_it(tmp_path):
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    tokenizer = opened(tmp_path, sentencepiece("normalizer"), config)
    ids = tokenizer.encode("a<s>b", allow_special=True)
    assert tokenizer.pieces(ids)[-1] == "b"  # no space behind a special token


# Damage


def test_a_byte_order_mark_is_passed_over(tmp_path):
    tokenizer = opened(tmp_path, byte_level(), {"bos_token": "<|endoftext|>"})
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.encode("Mary") == tokenizer.encode("Mary") and again.bos == tokenizer.bos


def test_a_template_that_is_not_utf8_is_named(tmp_path):
    opened(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(TokenError, match=r"chat_template.jinja is not UTF-8: byte 0xE9 at 4"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer_config", "[]", r"tokenizer_config.json holds a list; it must be settings"),
        ("tokenizer_config", "{", "tokenizer_config.json is .* no JSON"),
        ("tokenizer_config", '{"bos_token": {}}', "bos_token is dict; it must be a token or null"),
        ("tokenizer_config", '{"eos_token": 3}', "eos_token is 3; it must be a token or null"),
        ("tokenizer_config", '{"pad_token": {"content": "x", "lstrip": 1}}', "pad_token is dict"),
        ("tokenizer_config", '{"tokenizer_class": ["x"]}', "tokenizer_class is list; .* text"),
        ("tokenizer_config", '{"legacy": "false"}', "legacy is 'false'; it must be true or false"),
        ("tokenizer_config", '{"add_prefix_space": 1}', "add_prefix_space is 1; it must be"),
        ("tokenizer_config", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder is dict"),
        ("tokenizer_config", '{"added_tokens_decoder": []}', "added_tokens_decoder is list"),
        ("tokenizer_config", '{"extra_special_tokens": [3]}', "extra_special_tokens is list"),
        ("tokenizer_config", '{"additional_special_tokens": "x"}', "additional_special_tokens"),
        ("tokenizer_config", '{"chat_template": 3}', "chat_template"),
        ("special_tokens_map", '{"bos_token": [1]}', "special_tokens_map.json: bos_token is list"),
        ("special_tokens_map", "3", "special_tokens_map.json holds a int"),
        ("added_tokens", '{"x": "3"}', "added_tokens.json: x is '3'; it must be a whole number"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, name, content, why):
    opened(tmp_path, byte_level())
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(TokenError, match=why):
        _ = Tokenizer.from_file(tmp_path / "tokenizer.json").chat_templates


NAMES = ("tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deep", [100_000 * "[", '{"a":' * 100_000])
def test_what_is_nested_too_deeply_is_an_error(tmp_path, name, deep):
    opened(tmp_path, byte_level())
    (tmp_path / f"{name}.json").write_text(deep)
    with pytest.raises(TokenError, match=f"{name}.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_where_the_library_panics_an_error_says_so():
    class PanicException(BaseException):  # as its is, whose class cannot be imported
        pass

    said = "A text of 5 characters is too much for the tokenizer"
    with pytest.raises(TokenError, match=said), no_panic("Mary!"):
        raise PanicException("stack overflow")


def test_a_message_that_is_nested_too_deeply_is_an_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    message = {"role": "user", "content": "Hi", "more": deep}
    with pytest.raises(ChatError, match="nested too deeply"):
        encode_chat(Tokenizer(byte_level()), [message], template="{{ messages }}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "special", "0", "3", "default", "name"])
            | st.text(max_size=4),
            inside,
            max_size=4,
        )
    ),
    max_leaves=9,
)
FIELDS = st.sampled_from(
    [
        *("bos_token", "eos_token", "pad_token", "image_token", "tokenizer_class", "legacy"),
        *("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
        *("chat_template", "add_prefix_space", "added_tokens"),
    ]
)
TOKEN = st.fixed_dictionaries(
    {"content": st.text(max_size=5)},
    optional={name: st.booleans() for name in ("lstrip", "rstrip", "special", "normalized")},
)
CONFIG = st.dictionaries(
    FIELDS,
    JSON
    | TOKEN
    | st.dictionaries(st.integers(0, 500).map(str), TOKEN, max_size=3)
    | st.sampled_from(["LlamaTokenizer", "GPT2Tokenizer", "{{ messages }}{{ bos_token }}"]),
    max_size=4,
)
FUZZED = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
BACKENDS = [byte_level().to_str(), sentencepiece().to_str()]


@FUZZED
@given(st.sampled_from(BACKENDS), CONFIG | JSON, st.none() | CONFIG, st.none() | JSON)
def test_files_that_say_anything_open_or_are_refused_in_words(backend, config, tokens, added):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(backend)
        others = {"special_tokens_map": tokens, "added_tokens": added}
        for file, content in {"tokenizer_config": config, **others}.items():
            if content is not None:
                (folder / f"{file}.json").write_text(json.dumps(content))
        try:
            tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
            ids = tokenizer.encode("Mary é <s>", allow_special=True)
            stream = tokenizer.stream()
            streamed = "".join(map(stream.push, ids)) + stream.finish()
            assert streamed == tokenizer.decode(ids, skip_special=True)
            assert len(tokenizer.pieces(range(tokenizer.vocab_size))) == tokenizer.vocab_size
            (folder / "saved").mkdir()
            tokenizer.save(folder / "saved")
            again = Tokenizer.from_file(folder / "saved" / "tokenizer.json")
            assert again.encode("Mary é <s>", allow_special=True) == ids
            encode_chat(tokenizer, [{"role": "user", "content": "Hi"}])
        except (TokenError, ChatError, TemplateError):
            pass


@FUZZED
@given(st.sampled_from(BACKENDS), st.lists(st.tuples(st.integers(0), JSON), max_size=3), st.data())
def test_a_damaged_tokenizer_opens_or_is_refused_in_words(backend, changes, data):
    said = json.loads(backend)
    for _, value in changes:
        part = said
        while isinstance(part, dict | list) and part:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
                part[key] = value
                break
            part = part[key]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "tokenizer.json"
        file.write_text(json.dumps(said))
        try:
            tokenizer = Tokenizer.from_file(file)
            ids = tokenizer.encode("Mary é", allow_special=True)
            assert isinstance(tokenizer.decode(ids), str)
            tokenizer.pieces(range(tokenizer.vocab_size))
        except TokenError:
            pass
