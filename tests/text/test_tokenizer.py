"""Text to tokens and back, on a byte-level BPE of a few hundred tokens trained here."""

import json
import random

import jax.numpy as jnp
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from llama_jax.text import TokenError, Tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    "When Mary and John went to the shop, John gave a drink to Mary.",
    "Mary, Mary and Mary saw that it wasn't John's; he'd paid 1250 for it.",
]
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
TEXTS = [
    "",
    " ",
    "When Mary went",
    "tabs\tand\r\n\r\nlines  \n",
    "1234567 wasn't",
    "日本語の文章、中文",
    "مرحبا بالعالم",
    "e\u0301 a\u0308\u0323 \u0e19\u0e49\u0e33",  # combining marks
    "👩🏽‍🚀👨‍👩‍👧‍👦🇨🇭 ok",  # ZWJ sequences, skin tone, flag
    "\x00\x1f\x7f\ufeff\u2028 \U0010ffff",
]


def train(alphabet=None, decoder=None, **special):
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoder or decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in (BOS, EOT)])
    # As in Llama 3's own file: a post-processor that puts BOS first.
    backend.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return backend


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train().save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(file):
    return Tokenizer.from_file(file)


def text_ids(tokenizer, text):
    return tokenizer.encode(text, bos=False)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(text_ids(tokenizer, text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_stream_gives_whole_characters_that_join_to_the_text(tokenizer, text):
    stream, ids = tokenizer.stream(), tokenizer.encode(text)
    parts = [stream.push(id) for id in ids]
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + stream.finish() == text


def test_any_tokens_stream_as_they_decode(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        ids = draw.choices(range(tokenizer.vocab_size), k=draw.randrange(20))
        stream = tokenizer.stream()
        streamed = "".join(map(stream.push, ids)) + stream.finish()
        assert streamed == tokenizer.decode(ids, skip_special=True)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace") == (
            tokenizer.decode(ids)
        )


def test_every_byte_has_a_token(tokenizer):
    single = {tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_bos_comes_once_whatever_the_files_post_processor_adds(tokenizer):
    plain = text_ids(tokenizer, "When Mary")
    assert tokenizer.encode("When Mary") == [tokenizer.bos, *plain]
    assert tokenizer.bos == tokenizer.special[BOS]


@pytest.mark.parametrize("allow_special", [False, True])
def test_a_text_that_starts_with_bos_does_not_get_it_twice(tokenizer, allow_special):
    ids = tokenizer.encode(BOS + "When Mary", allow_special=allow_special)
    assert ids == tokenizer.encode("When Mary")


def test_special_tokens_in_a_text_stay_text_unless_allowed(tokenizer):
    text = f"Mary{EOT} and {BOS}"
    bos, eot = tokenizer.special[BOS], tokenizer.special[EOT]
    assert not {bos, eot} & set(text_ids(tokenizer, text))
    assert tokenizer.decode(text_ids(tokenizer, text)) == text
    mary, and_ = text_ids(tokenizer, "Mary"), text_ids(tokenizer, " and ")
    assert tokenizer.encode(text, bos=False, allow_special=True) == [*mary, eot, *and_, bos]
    some = tokenizer.encode(text, bos=False, allow_special={EOT})
    assert some == [*mary, eot, *text_ids(tokenizer, f" and {BOS}")]
    assert some == tokenizer.encode(text, bos=False, allow_special=EOT)


def test_allowing_what_is_no_special_token_is_an_error(tokenizer):
    with pytest.raises(
        TokenError, match=r"'<\|python_tag\|>' is no special token. They are: .*eot"
    ):
        tokenizer.encode("x", allow_special={"<|python_tag|>"})


def test_half_a_surrogate_pair_is_an_error(tokenizer):
    with pytest.raises(TokenError, match=r"'\\ud83d' at 1"):
        tokenizer.encode("a\ud83d")


def test_pieces_are_one_printable_string_a_token(tokenizer):
    assert tokenizer.pieces(tokenizer.encode(" Mary went"))[:2] == [BOS, " Mary"]
    assert tokenizer.pieces(text_ids(tokenizer, "█é")) == [
        r"\xE2",
        r"\x96",
        r"\x88",
        r"\xC3",
        r"\xA9",
    ]


def test_id_is_for_texts_that_are_one_token(tokenizer):
    assert tokenizer.pieces([tokenizer.id(" Mary")]) == [" Mary"]
    assert tokenizer.id(EOT) == tokenizer.special[EOT]
    with pytest.raises(
        TokenError, match=r"' Mary John' is 2 tokens, not one: \[' Mary', ' John'\]"
    ):
        tokenizer.id(" Mary John")
    with pytest.raises(TokenError, match="'' is 0 tokens"):
        tokenizer.id("")


def test_a_word_that_is_a_token_only_after_a_space_says_so(tokenizer):
    with pytest.raises(TokenError, match="' gave' is one, with the space"):
        tokenizer.id("gave")


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_a_token_out_of_range_is_named(tokenizer, bad):
    stream = tokenizer.stream()
    for call in (lambda: tokenizer.decode([0, bad]), lambda: tokenizer.pieces(jnp.array([0, bad]))):
        with pytest.raises(TokenError, match=f"Token {bad} at position 1.*{tokenizer.vocab_size}"):
            call()
    with pytest.raises(TokenError, match=f"Token {bad}"):
        stream.push(bad)


def test_tokens_are_one_row_of_integers(tokenizer):
    assert tokenizer.decode([]) == ""
    for bad in (jnp.zeros((1, 2), int), [0.5]):
        with pytest.raises(TokenError, match="one row of integers"):
            tokenizer.decode(bad)


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path):
    backend = train()
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.decode(text_ids(tokenizer, SENTENCES[0])) == SENTENCES[0]


def test_bos_is_what_the_files_say(file, tmp_path):
    (tmp_path / "tokenizer.json").write_text(file.read_text())
    config = tmp_path / "tokenizer_config.json"
    for content, expected in (
        ({"bos_token": EOT}, EOT),
        ({"bos_token": {"content": EOT, "lstrip": False}}, EOT),
        ({"bos_token": None}, None),
        ({}, BOS),
    ):
        config.write_text(json.dumps(content))
        tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
        assert tokenizer.bos == (None if expected is None else tokenizer.special[expected])
    assert Tokenizer.from_file(file, bos_token=EOT).encode("")[0] == tokenizer.special[EOT]
    with pytest.raises(TokenError, match="no token '<s>'"):
        Tokenizer.from_file(file, bos_token="<s>")


def test_without_bos_none_is_added(file):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    assert tokenizer.encode("Mary") == text_ids(tokenizer, "Mary")


def test_saving_keeps_ids_and_the_rest_of_the_config(file, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.json").write_text(file.read_text())
    config = {"bos_token": BOS, "eos_token": EOT, "chat_template": "{{ messages }}"}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(config))
    before = Tokenizer.from_file(tmp_path / "in" / "tokenizer.json")
    (tmp_path / "out").mkdir()
    before.save(tmp_path / "out")
    after = Tokenizer.from_file(tmp_path / "out" / "tokenizer.json")
    text = f"Mary{EOT}👩🏽‍🚀"
    assert after.encode(text) == before.encode(text)
    saved = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config.items() <= saved.items()


def test_only_byte_level_bpe_with_all_bytes_is_taken(tmp_path):
    with pytest.raises(TokenError, match="BPE with the decoder Metaspace"):
        Tokenizer(train(decoder=decoders.Metaspace()))
    with pytest.raises(TokenError, match=r"lacks tokens for \d+ of the 256 bytes \(0x.*more\)"):
        Tokenizer(train(alphabet=[]))
    for content in ("{", '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenError, match=r"tokenizer.json is not a readable"):
            Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(TokenError, match=r"nowhere.json is not a readable.*No such file"):
        Tokenizer.from_file(tmp_path / "nowhere.json")
