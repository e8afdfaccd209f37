"""Meta's `tokenizer.model` read by us, against Meta's own tokenizer reading the same file."""

import pathlib
import random
import textwrap

import llama_models
import pytest
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import AutoTokenizer

from llama_jax.text import Tokenizer

FILE = pathlib.Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
WRITTEN = {
    "prose": [
        "Hello, world! It's 1234567890 o'clock\n\n\tand I'LL go; they'Ve DON'T, it'ſ.",
        "  leading,   several   and trailing spaces  \r\n\r\n",
        "A naïve café, ½ of ﬁve; Ωmega… “quotes” – and — dashes\u00a0nbsp\u200bzero\ufeff",
        "e\u0301 a\u0308\u0323 \u0130 ı ß ẞ ŉ ǰ",
    ],
    "code": [
        "def f(x: int) -> int:\n    return x ** 2  # ünïcode\n\n\n" * 3,
        "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * 0x1F;\r\n\t}\r\n",
        '{"key": [1, 2.5e-10, null, "\\u00e9\\n"], "k_2": {}}',
        "SELECT * FROM t WHERE a='x''y' AND b >= 10000; -- ok",
        '<div class="a">&amp; &lt;b&gt;</div><!-- c --><script>x=>x||{}</script>',
        "\\frac{\\partial f}{\\partial x}_{i,j} $$ \\sum_{k=0}^{\\infty} $$",
        "git commit -m 'x' && ls -la ~/dir | grep -E '^[a-z]+$' > /dev/null 2>&1",
        "λx.x ∀ε>0 ∃δ: |x−y|<δ ⇒ ∥f(x)−f(y)∥≤ε",
    ],
    "emoji": [
        "👩🏽‍🚀👨‍👩‍👧‍👦🇨🇭 ok 👍🏿!! ❤️‍🔥",
        "🧑‍🧑‍🧒\U0001fae8\U0001f9ff1️⃣🏴\U000e0067\U000e0062\U000e007f",
    ],
    "scripts": [
        "日本語の文章、中文。한국어 ｶﾀｶﾅ 㐀𠀀𪜶 「引用」１２３",
        "مرحبا بالعالم، كيف حالك؟ ٠١٢٣٤٥٦٧٨٩ ﷽ شُكْرًا",
        "ภาษาไทยไม่มีวรรค น้ำ ๑๒๓๔๕ กำลัง",
        "שלום עולם हिन्दी में ১২৩ தமிழ் ქართული ᏣᎳᎩ ꙮ 𐍈 𓂀",
        "Привет, мир! Γειά σου Κόσμε xin chào thế giới",
    ],
    "controls": ["\x00\x07\x1b[0m\x1c\x1d\x85\u2028\u2029\u3000\u180e", "\ufffd\uffff\U0010ffff"],
    "look-alikes": [
        "<|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|>",
        "twice <|begin_of_text|> and broken <|eot_id |><| eot_id|><|eot_id|",
        "<<|eot_id|>> <|eot_id|><|eot_id|> <|EOT_ID|> <|reserved_special_token_246|>",
        "<|image|><|video|><|python_tag|>print()<|eom_id|><|step_id|><|end_of_text|>",
        "<|reserved_special_token_1|>7|> <|finetune_right_pad_id|>\t<|reserved_special_token_245|>",
    ],
}
RANGES = {
    "ASCII": (0x00, 0x80),
    "Latin": (0xA0, 0x250),
    "Cyrillic": (0x400, 0x530),
    "Arabic": (0x600, 0x700),
    "Devanagari": (0x900, 0x980),
    "Thai": (0xE00, 0xE5C),
    "Hangul": (0xAC00, 0xAD00),
    "CJK": (0x4E00, 0x4F00),
    "emoji": (0x1F600, 0x1F650),
    "all": (0x00, 0xD800),
    "astral": (0x10000, 0x110000),
}


def generated():
    draw = random.Random(0)
    for low, high in RANGES.values():
        for length in range(1, 61, 3):
            letters = [chr(draw.randrange(low, high)) for _ in range(length)]
            yield "".join(letters)
            yield "".join(
                letter + draw.choice(["", "", " ", "'s", "\n", "1"]) for letter in letters
            )
    for unit in (" ", "\n", "\t", "\r\n", " \n", "\u3000", "=", "-", "ab", "日", "7", "👍"):
        for count in (1, 2, 3, 7, 16, 83, 500):
            yield "x" + unit * count
            yield unit * count + "y"
    source = textwrap.dedent(pathlib.Path(__file__).read_text("utf-8"))
    for _ in range(40):
        start = draw.randrange(len(source))
        yield source[start : start + draw.randrange(400)]
    for length in range(0, 200, 10):
        yield draw.randbytes(length).decode("latin-1")
        yield draw.randbytes(length).decode("utf-8", "replace")


SHORT = [text for texts in WRITTEN.values() for text in texts] + list(generated())


def long():
    """Texts that Meta's encoder cuts, or only just does not; tokens go across where it does."""
    draw = random.Random(1)
    letters = "".join(draw.choices("etaoinshrdlu", k=120_000))
    words = " ".join(draw.choices(["the", "lamp", "mill", "日本", "I'll", "42"], k=250_000))
    yield from (letters[:count] for count in (24_999, 25_000, 25_001, 60_000))
    yield "word " + letters + " word " + letters[:30_000]
    yield from (" " * count + "x" for count in (24_999, 25_000, 25_001, 60_000))
    yield "x" + "\n " * 20_000 + "\t" * 30_000
    yield "日本語" * 20_000
    yield "\x1c\x85\u3000" * 10_000 + "a\u200b" * 15_000
    yield words
    yield words[:399_990] + letters
    yield letters[:24_990] + "<|eot_id|>"


@pytest.fixture(scope="module")
def meta():
    return MetaTokenizer.get_instance()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(FILE)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """What we save of it, as a checkpoint."""
    directory = tmp_path_factory.mktemp("saved")
    tokenizer.save(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def test_vocabulary_and_special_tokens_are_metas(tokenizer, meta):
    assert (tokenizer.vocab_size, tokenizer.bos) == (meta.n_words, meta.bos_id) == (128256, 128000)
    assert tokenizer.special == meta.special_tokens
    assert [tokenizer.id(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")] == (
        meta.stop_tokens
    )
    assert tokenizer.id("<|finetune_right_pad_id|>") == meta.pad_id
    assert all(tokenizer.token_bytes(i) == meta.model.decode_bytes([i]) for i in range(128256))


def test_ids_and_texts_are_metas(tokenizer, meta):
    assert len(set(SHORT)) >= 200
    for text in SHORT:
        ids = meta.encode(text, bos=False, eos=False)
        assert tokenizer.encode(text, bos=False) == ids, text
        assert tokenizer.encode(text) == meta.encode(text, bos=True, eos=False), text
        assert tokenizer.decode(ids) == meta.decode(ids) == text


@pytest.mark.parametrize("allow", ["all", {"<|eot_id|>", "<|image|>"}], ids=["all", "two"])
def test_ids_are_metas_where_special_tokens_are_allowed(tokenizer, meta, allow):
    for text in WRITTEN["look-alikes"]:
        ids = meta.encode(text, bos=True, eos=False, allowed_special=allow)
        assert max(ids[1:]) >= 128000 or allow != "all"
        assert tokenizer.encode(text, allow_special=allow == "all" or allow) == ids, text
        assert tokenizer.decode(ids) == meta.decode(ids)


@pytest.mark.parametrize("text", list(long()), ids=lambda text: f"{text[:1]!a}-{len(text)}")
def test_ids_of_long_texts_are_metas(tokenizer, meta, text):
    ids = meta.encode(text, bos=True, eos=False)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids, skip_special=True) == text


def test_random_bytes_round_trip(tokenizer, meta):
    draw = random.Random(2)
    one_byte = {meta.model.decode_single_token_bytes(id)[0]: id for id in range(256)}
    for length in range(100):
        data = draw.randbytes(length)
        ids = [one_byte[byte] for byte in data]
        assert b"".join(map(tokenizer.token_bytes, ids)) == data
        assert tokenizer.decode(ids) == meta.decode(ids) == data.decode("utf-8", "replace")
        any_ids = draw.choices(range(128256), k=length)
        assert tokenizer.decode(any_ids) == meta.decode(any_ids)


def test_pieces_that_are_part_of_a_character_say_so(tokenizer, meta):
    for text in SHORT:
        ids = tokenizer.encode(text, bos=False)
        parts = meta.model.decode_tokens_bytes(ids)
        for piece, data in zip(tokenizer.pieces(ids), parts, strict=True):
            try:
                assert piece == data.decode()
            except UnicodeDecodeError:
                assert "\\x" in piece
    assert tokenizer.pieces(tokenizer.encode("🧿", bos=False)) == [
        "\\xF0\\x9F",
        "\\xA7",
        "\\xBF",
    ]


def test_the_file_we_save_has_the_same_ids_for_us_and_for_transformers(tokenizer, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    again = Tokenizer.from_file(folder / "tokenizer.json")
    assert again.special == tokenizer.special
    for text in SHORT:
        ids = tokenizer.encode(text, allow_special=True)
        assert again.encode(text, allow_special=True) == ids == theirs(text)["input_ids"], text
        assert again.encode(text) == tokenizer.encode(text), text
        assert again.decode(ids) == theirs.decode(ids) == tokenizer.decode(ids)
