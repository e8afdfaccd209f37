"""Meta's `tokenizer.model`: a line of "base64 rank" for each token, which `tiktoken` merges.

The file does not say how a text is cut into words, nor which special tokens follow the ranks: that
is Llama 3.1's, from `llama_models/llama3/tokenizer.py`.
"""

from __future__ import annotations

import binascii
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from llama_jax.text.backends import BYTE_ALPHABET, Place, TokenError, cut_short, no_panic
from llama_jax.text.decoding import UTF8, Decoder

__all__ = ["LLAMA3_SPLIT", "SPECIAL_TOKENS", "TiktokenBPE", "read_ranks", "slices"]

#: The 256 special tokens in the order of their ids, by Meta's names.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2, 246)),
)

#: How a text is cut into words before the merges: with the space before them, up to three digits.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TiktokenBPE:
    """The vocabulary of `tokens`, in the order of their ranks, and after it the special tokens.

    The ids of a text are those of Meta's own tokenizer. Raises `ImportError` without tiktoken.

    >>> bpe = TiktokenBPE([*(bytes([byte]) for byte in range(256)), b"he", b"hello"])
    >>> bpe.encode("hello he")
    [257, 32, 256]
    >>> bpe.special["<|begin_of_text|>"]
    258
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.special = {name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.skipped = set(self.special.values())
        self.vocab_size = len(tokens) + len(SPECIAL_TOKENS)
        self.around: tuple[list[int], list[int]] = ([self.special[SPECIAL_TOKENS[0]]], [])
        self._ranks = {token: rank for rank, token in enumerate(tokens)}
        self._bytes = [*tokens, *(name.encode() for name in SPECIAL_TOKENS)]
        self._bpe = _tiktoken().Encoding(
            "tokenizer.model",
            pat_str=LLAMA3_SPLIT,
            mergeable_ranks=self._ranks,
            special_tokens=self.special,
        )

    def encode(self, text: str, allowed: Collection[str] = (), at: Place = "start") -> list[int]:
        ids: list[int] = []
        with no_panic(text):
            for is_special, part in _cut(text, allowed):
                if is_special:
                    ids.append(self.special[part])
                else:
                    ids += (id for some in slices(part) for id in self._bpe.encode_ordinary(some))
        return ids

    def stripped(self, name: str) -> tuple[bool, bool]:
        return False, False

    def token_bytes(self, id: int) -> bytes:
        return self._bytes[id]

    def token_id(self, name: str) -> int | None:
        return self.special.get(name)

    def decoder(self) -> Decoder:
        return UTF8(self.token_bytes)

    def to_ranks(self) -> bytes:
        """The content of a `tokenizer.model`."""
        tokens = self._bytes[: len(self._ranks)]
        lines = (binascii.b2a_base64(token, newline=False) for token in tokens)
        return b"".join(b"%b %d\n" % (line, rank) for rank, line in enumerate(lines))

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """The same ids by `tokenizers`, except in texts that `slices` cuts: it knows no cuts.

        The merges are those of transformers' `TikTokenConverter`.
        """
        names = {token: _name(token) for token in self._ranks}
        vocabulary = {names[token]: rank for token, rank in self._ranks.items()}
        merges = [(names[left], names[right]) for left, right in self._merges()]
        bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
        words = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        bpe.decoder = decoders.ByteLevel()
        bpe.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
        return bpe

    def _merges(self) -> Iterator[tuple[bytes, bytes]]:
        """Every pair of tokens that is a token: `tiktoken` merges by what a pair becomes."""
        ranks = self._ranks
        for token in ranks:
            halves = ((token[:i], token[i:]) for i in range(1, len(token)))
            pairs = [(left, right) for left, right in halves if left in ranks and right in ranks]
            yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def read_ranks(content: bytes, name: str = "tokenizer.model") -> list[bytes]:
    """The tokens of a `tokenizer.model` in the order of their ranks; errors call the file `name`.

    Raises `TokenError` for what is no such file, or not all of one.

    >>> read_ranks(b"version https://git-lfs.github.com/spec/v1")
    Traceback (most recent call last):
    llama_jax.text.backends.TokenError: tokenizer.model, line 1: ... This is a Git LFS pointer: ...
    """
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, digits = line.split()
            token, rank = binascii.a2b_base64(text, strict_mode=True), int(digits)
        except ValueError:
            raise TokenError(
                f"{name}, line {number:,}: {line[:60]!r} is no token in base64 and its rank, as in "
                f"Llama 3's tokenizer.model. {_instead(content)}"
            ) from None
        if rank in tokens:
            raise TokenError(
                f"{name}, line {number:,}: rank {rank} is taken, by {tokens[rank]!r}. {_AGAIN}"
            )
        tokens[rank] = token
    _check_complete(tokens, name)
    return [tokens[rank] for rank in range(len(tokens))]


def slices(text: str) -> Iterator[str]:
    """The parts that Meta's encoder gives to `tiktoken` one by one, whose regex would overflow.

    Cuts come every 400,000 characters, and within those after each 25,000 that are all spaces or
    all not.

    >>> [len(part) for part in slices("to " + 60_000 * "a" + " be")]
    [25003, 25000, 10003]
    """
    for start in range(0, len(text), 400_000):
        part = text[start : start + 400_000]
        runs = (match.span() for match in _LONG_RUN.finditer(part))
        cuts = [cut for first, last in runs for cut in range(first + 25_000, last, 25_000)]
        for begin, end in itertools.pairwise([0, *cuts, len(part)]):
            yield part[begin:end]


# Only from where a run starts: trying at each of its characters would take quadratic time.
_LONG_RUN = re.compile(r"(?<!\S)\S{25001,}|(?<!\s)\s{25001,}")

_AGAIN = "Was all of the file downloaded? Llama 3's has 128,000 lines: get it again."


def _check_complete(tokens: dict[int, bytes], name: str) -> None:
    if not tokens:
        raise TokenError(f"{name} is empty. {_AGAIN}")
    gap = next((rank for rank in range(len(tokens)) if rank not in tokens), None)
    if gap is not None:
        raise TokenError(f"{name}: {len(tokens):,} ranks, but none of them is {gap}. {_AGAIN}")
    known = set(tokens.values())
    if len(known) < len(tokens):
        raise TokenError(
            f"{name}: {len(tokens):,} ranks, but {len(known):,} different tokens. {_AGAIN}"
        )
    lost = [f"0x{byte:02X}" for byte in range(256) if bytes([byte]) not in known]
    if lost:
        raise TokenError(
            f"{name} lacks tokens for {len(lost)} of the 256 bytes, so that it cannot write every "
            f"text: {', '.join(cut_short(lost))}. {_AGAIN}"
        )


def _instead(content: bytes) -> str:
    """What a file is that was taken for a tokenizer's, and what to do about it."""
    start = content[:1000].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "This is a Git LFS pointer: `git lfs pull` gets the file that it stands for."
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "This is a web page, as a download without permission gives: get the file again."
    if b"\0" in start or b"<unk>" in start:
        return "This is binary, as Llama 2's SentencePiece model; convert that to tokenizer.json."
    return _AGAIN


def _cut(text: str, names: Collection[str]) -> Iterator[tuple[bool, str]]:
    """`(is special, part)`, cut at the special tokens of these names."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = f"({'|'.join(map(re.escape, longest_first))})"
    for i, part in enumerate(re.split(pattern, text) if names else [text]):
        yield i % 2 == 1, part


def _name(token: bytes) -> str:
    return "".join(BYTE_ALPHABET[byte] for byte in token)


def _tiktoken() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise ImportError(
            "Meta's tokenizer.model is read by tiktoken: pip install 'llama-jax[meta]', or "
            "tiktoken alone. A tokenizer.json needs neither."
        ) from None
    return tiktoken
