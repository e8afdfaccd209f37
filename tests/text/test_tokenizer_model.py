"""Meta's `tokenizer.model`: a file of a few hundred ranks, made here, in the same format."""

import base64
import random
import sys

import pytest
import tokenizers

from llama_jax.checkpoint.huggingface import read_tokenizer
from llama_jax.text import TokenError, Tokenizer
from llama_jax.text.meta import SPECIAL_TOKENS, slices

BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [b" t", b"he", b" the", b"er", b"ing", b"in", b"  ", b"    ", b"\xe6\x97", b"\xe6\x97\xa5"]
TOKENS = [*BYTES, *MERGED]
TEXTS = [
    "",
    "the singer  in    the inn\r\n\r\n\tend  ",
    "1234567 isn't I'LL",
    "日本 日月 مرحبا ไทย é 👩🏽‍🚀",
    "\x00\x1f\x85\ufeff\u2028\U0010ffff",
]
EOT = "<|eot_id|>"


def lines(tokens=TOKENS):
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]


def write(path, content):
    path.write_text("".join(f"{line}\n" for line in content))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("meta") / "tokenizer.model", lines())


@pytest.fixture(scope="module")
def tokenizer(file):
    return Tokenizer.from_file(file)


def plain(tokenizer, text):
    return tokenizer.encode(text, bos=False)


def test_the_lowest_rank_merges_first(tokenizer):
    assert tokenizer.pieces(plain(tokenizer, "the then")) == ["t", "he", " the", "n"]
    assert tokenizer.pieces(plain(tokenizer, " sing")) == [" ", "s", "ing"]  # by way of "in"


def test_special_tokens_follow_the_ranks_in_metas_order(tokenizer):
    assert tokenizer.vocab_size == len(TOKENS) + 256
    assert list(tokenizer.special) == list(SPECIAL_TOKENS)
    assert len(set(SPECIAL_TOKENS)) == 256
    assert tokenizer.bos == tokenizer.special["<|begin_of_text|>"] == len(TOKENS)
    assert tokenizer.special[EOT] == len(TOKENS) + 9
    assert tokenizer.special["<|reserved_special_token_245|>"] == tokenizer.vocab_size - 1


def test_special_tokens_in_a_text_stay_text_unless_allowed(tokenizer):
    text = f"the{EOT}<|eot_id |>in"
    assert max(plain(tokenizer, text)) < len(TOKENS)
    assert tokenizer.decode(plain(tokenizer, text)) == text
    allowed = tokenizer.encode(text, allow_special=EOT)
    assert [id for id in allowed if id >= len(TOKENS)] == [tokenizer.bos, tokenizer.special[EOT]]
    assert tokenizer.decode(allowed, skip_special=True) == text.replace(EOT, "")
    with pytest.raises(TokenError, match="'<s>' is no special token"):
        tokenizer.encode(text, allow_special="<s>")


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(plain(tokenizer, text)) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokenizer.encode(text))) + stream.finish() == text


def test_random_bytes_are_what_their_tokens_stand_for(tokenizer):
    draw = random.Random(0)
    for _ in range(100):
        ids = draw.choices(range(len(TOKENS)), k=draw.randrange(20))
        data = b"".join(TOKENS[id] for id in ids)
        assert b"".join(map(tokenizer.token_bytes, ids)) == data
        assert tokenizer.decode(ids) == data.decode(errors="replace")


def test_pieces_that_are_part_of_a_character_say_so(tokenizer):
    assert tokenizer.pieces(plain(tokenizer, "月日")) == [r"\xE6", r"\x9C", r"\x88", "日"]
    assert tokenizer.pieces([TOKENS.index(b"\xe6\x97")]) == [r"\xE6\x97"]


def test_half_a_surrogate_pair_is_an_error(tokenizer):
    with pytest.raises(TokenError, match=r"'\\ud83d' at 1"):
        tokenizer.encode("a\ud83d")


@pytest.mark.parametrize("bad", [-1, len(TOKENS) + 256])
def test_a_token_out_of_range_is_named(tokenizer, bad):
    with pytest.raises(TokenError, match=f"Token {bad} at position 1.*0 to {len(TOKENS) + 255}"):
        tokenizer.decode([0, bad])


def cut_as_meta_does(text):
    """Meta's rule, character by character as in its own tokenizer."""
    for start in range(0, len(text), 400_000):
        part, begin, length = text[start : start + 400_000], 0, 0
        for i, character in enumerate(part):
            changes = i > 0 and character.isspace() != part[i - 1].isspace()
            length = 1 if changes else length + 1
            if length > 25_000:
                yield part[begin:i]
                begin, length = i, 1
        yield part[begin:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "a" * 25_000 + " " * 25_000,
        "a" * 25_001 + " " * 25_001 + "b",
        "to " + "a" * 75_000 + "\n be",
        "\u3000\x85\x1c" * 10_000 + "日" * 30_000,
        "ab " * 140_000 + "c" * 60_000,
    ],
    ids=len,
)
def test_long_texts_are_cut_as_meta_cuts_them(text):
    assert list(slices(text)) == list(cut_as_meta_does(text))


def test_a_long_run_is_encoded_part_by_part(tokenizer):
    text = "h" + "e" * 24_998 + "he"  # Meta's cut is between the last two letters
    assert tokenizer.pieces(plain(tokenizer, text))[-3:] == ["e", "h", "e"]
    assert tokenizer.decode(plain(tokenizer, text)) == text


def test_what_is_saved_is_a_tokenizer_json_with_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (again.bos, again.special) == (tokenizer.bos, tokenizer.special)
    for text in (*TEXTS, f"the{EOT}"):
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs.encode(text).ids == ids == again.encode(text, allow_special=True)
        assert again.encode(text) == tokenizer.encode(text)


def test_the_content_says_which_file_it_is_whatever_its_name(tokenizer, tmp_path):
    named = write(tmp_path / "tokenizer.json", lines())
    assert plain(Tokenizer.from_file(named), TEXTS[1]) == plain(tokenizer, TEXTS[1])


def test_lines_may_come_in_any_order_with_empty_ones_between(tokenizer, tmp_path):
    path = write(tmp_path / "tokenizer.model", ["", *reversed(lines()), ""])
    assert plain(Tokenizer.from_file(path), TEXTS[1]) == plain(tokenizer, TEXTS[1])


def test_bos_can_be_another_special_token(file):
    tokenizer = Tokenizer.from_file(file, bos_token=EOT)
    assert tokenizer.encode("") == [tokenizer.special[EOT]]
    with pytest.raises(TokenError, match="no token '<s>'"):
        Tokenizer.from_file(file, bos_token="<s>")


def test_a_checkpoint_folder_with_only_a_tokenizer_model_has_a_tokenizer(tokenizer, tmp_path):
    assert read_tokenizer(tmp_path) is None
    write(tmp_path / "tokenizer.model", lines())
    assert read_tokenizer(tmp_path).vocab_size == tokenizer.vocab_size
    Tokenizer.from_file(write(tmp_path / "small.model", lines(BYTES))).save(tmp_path)
    assert read_tokenizer(tmp_path).vocab_size == 512  # of the tokenizer.json, which comes first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([*lines()[:-1], lines()[-1][:3]], r"line 266: b'5pe' is no token.*downloaded"),
        ([*lines()[:-1], lines()[-1][:-1]], r"line 266: rank 26 is taken, by b'\\x1a'"),
        ([*lines()[:-1], "5pe 265"], r"line 266: b'5pe 265' is no token in base64"),
        ([*lines()[:9], "Cg== ten", *lines()[10:]], r"line 10: b'Cg== ten'"),
        (lines()[:9] + lines()[10:], r"265 ranks, but none of them is 9\."),
        ([*lines(), f"{lines()[0].split()[0]} 266"], "267 ranks, but 266 different tokens"),
        (lines(TOKENS[2:]), r"2 of the 256 bytes, .*: 0x00, 0x01\."),
        (["version https://git-lfs.github.com/spec/v1", "oid sha256:82e9"], "Git LFS pointer"),
        (["<!DOCTYPE html>", "<html>Access denied</html>"], "web page"),
        (["\x0e", "\x05<unk>\x15\0\0"], "SentencePiece"),
        ([], "is empty"),
    ],
)
def test_what_is_no_tokenizer_model_says_why(tmp_path, content, message):
    path = write(tmp_path / "tokenizer.model", content)
    with pytest.raises(TokenError, match=rf"tokenizer\.model.*{message}"):
        Tokenizer.from_file(path)


def test_without_tiktoken_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ImportError, match=r"pip install 'llama-jax\[meta\]', or tiktoken alone"):
        Tokenizer.from_file(file)
