"""What `Tokenizer` stands on: a vocabulary and its merges, whichever library does them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Collection, Iterator
from typing import Any, Literal, Protocol

import tokenizers
from tokenizers import decoders

from llama_jax.text.decoding import UTF8, Decoder, Stages, fallback_byte, stages_of

__all__ = [
    "BYTE_ALPHABET",
    "Backend",
    "Place",
    "TokenError",
    "TokenizersBPE",
    "cut_short",
    "no_panic",
]

# What a text stands behind: nothing, a special token, or other text.
Place = Literal["start", "special", "text"]


class TokenError(ValueError):
    """A text, a token or a tokenizer file that cannot be used."""


class Backend(Protocol):
    """A vocabulary and its merges. What it is not asked: special tokens by names, BOS once."""

    vocab_size: int  # one more than the highest id
    special: dict[str, int]  # ids of the tokens that are no text, by name
    skipped: set[int]  # ids of those that are left out of a text where special ones are
    around: tuple[list[int], list[int]]  # what its file puts before and behind a text

    def encode(self, text: str, allowed: Collection[str] = (), at: Place = "start") -> list[int]:
        """The ids of a text that is whole Unicode.

        The names of special tokens that are `allowed` are these; those of others are plain text.
        `at` says what is before the text: nothing, a special token, or other text.
        """

    def stripped(self, name: str) -> tuple[bool, bool]:
        """Whether a special token takes the white space before it, and behind it, in a text."""

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes of a token, of a special one its name; None where no token has the id.

        `id` is from 0 to `vocab_size - 1`. Called for every token that is shown: fast.
        """

    def token_id(self, name: str) -> int | None:
        """The id of a token by the name that the file gives it; None where there is none."""

    def decoder(self) -> Decoder:
        """A new one, which gives the text of tokens; it is pushed ids that have a token."""

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """The same ids for a text, by `tokenizers`: a copy, without a post-processor.

        Called to write a `tokenizer.json`; it may take seconds.
        """


class TokenizersBPE:
    """What a `tokenizer.json` holds, done by `tokenizers`: byte-level, or as SentencePiece has it.

    `bpe` is taken over: its truncation and padding are switched off. Raises `TokenError` where its
    decoder is another one, or where a byte-level one lacks a byte of which texts are made.
    """

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        self._byte_level = _is_byte_level(bpe)
        bpe.no_truncation()
        bpe.no_padding()
        self._bpe = bpe
        self._added = bpe.get_added_tokens_decoder()
        self._options = {token.content: token for token in self._added.values()}
        self._readers: dict[Any, tokenizers.Tokenizer] = {}
        self.vocab_size: int = max(bpe.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.special = {token.content: id for id, token in self._added.items() if token.special}
        # `tokenizers` keeps some whose name it normalizes.
        self.skipped = {id for id in self.special.values() if not bpe.decode([id])}
        self.around = self._around()

    def encode(self, text: str, allowed: Collection[str] = (), at: Place = "start") -> list[int]:
        everything = bool(self.special) and self.special.keys() <= set(allowed)
        reader = self._reader(frozenset() if everything else frozenset(allowed), at)
        with no_panic(text), _READING:
            reader.encode_special_tokens = not everything  # `tokenizers` means by it: as text
            return reader.encode(text, add_special_tokens=False).ids

    def stripped(self, name: str) -> tuple[bool, bool]:
        return self._options[name].lstrip, self._options[name].rstrip

    def token_bytes(self, id: int) -> bytes | None:
        name = self._bpe.id_to_token(id)
        if name is None or id in self._added:
            return None if name is None else name.encode()
        if self._byte_level:
            return b"".join(_BYTE_OF.get(character) or character.encode() for character in name)
        return fallback_byte(name) or name.replace("\u2581", " ").encode()

    def token_id(self, name: str) -> int | None:
        return self._bpe.token_to_id(name)

    def decoder(self) -> Decoder:
        if self._byte_level:
            return UTF8(self.token_bytes)
        stages = stages_of(self._bpe.decoder)
        assert stages is not None  # `_is_byte_level` has looked
        return Stages(self._bpe.id_to_token, stages)

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        content = json.loads(self._bpe.to_str()) | {"post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    def _around(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts around a text: seen on one, since there are many kinds."""
        seen = self._bpe.encode("a")
        text = [at for at, added in enumerate(seen.special_tokens_mask) if not added]
        first, last = (text[0], text[-1]) if text else (len(seen.ids), len(seen.ids))
        return seen.ids[:first], seen.ids[last + 1 :]

    def _reader(self, allowed: frozenset[str], at: Place) -> tokenizers.Tokenizer:
        """One that reads some special tokens, there: a copy, which takes seconds to make."""
        at = at if self._prefixes(at) else "start"
        if not allowed and at == "start":
            return self._bpe
        if (allowed, at) not in self._readers:
            content = json.loads(self._bpe.to_str()) | {"post_processor": None}
            for token in content["added_tokens"]:
                # What is not special is found in a text, whatever `encode_special_tokens` says.
                token["special"] = token["special"] and token["content"] not in allowed
            for part in ("normalizer", "pre_tokenizer"):
                content[part] = _without_prefix(content[part], at)
            reader = tokenizers.Tokenizer.from_str(json.dumps(content))
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            self._readers[allowed, at] = reader
        return self._readers[allowed, at]

    def _prefixes(self, at: Place) -> bool:
        """Whether a text that stands there is read otherwise than at the start."""
        parts = (self._bpe.normalizer, self._bpe.pre_tokenizer)
        said = [None if part is None else json.loads(part.__getstate__()) for part in parts]
        return any(_without_prefix(part, at) != part for part in said)


_MOST_READERS = 8

# One at a time: whether special tokens are read is no argument of `tokenizers`, but a switch.
_READING = threading.Lock()


def _without_prefix(said: Any, at: Place) -> Any:
    """A normalizer or pre-tokenizer that puts no space before a text that stands there.

    Behind a special token only the Metaspace of the scheme "first" does not.
    """
    match said:
        case {"type": "Sequence"}:
            [(name, parts)] = [(k, v) for k, v in said.items() if k != "type"]
            kept = [_without_prefix(part, at) for part in parts]
            return said | {name: [part for part in kept if part is not None]}
        case {"type": "Metaspace", "prepend_scheme": "first"} if at != "start":
            return said | {"prepend_scheme": "never"}
        case {"type": "Metaspace"} if at == "text":
            return said | {"prepend_scheme": "never"}
        case {"type": "Prepend"} if at == "text":
            return None
        case {"type": "ByteLevel", "add_prefix_space": True} if at == "text":
            return said | {"add_prefix_space": False}
    return said


def _byte_alphabet() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


#: The printable character that byte-level BPE writes for each byte (GPT-2's `encoder.py`).
BYTE_ALPHABET = _byte_alphabet()

_BYTE_OF = {character: bytes([byte]) for byte, character in enumerate(BYTE_ALPHABET)}


def cut_short(items: list[str], most: int = 10) -> list[str]:
    """The first items, and how many more there are: for what an error lists."""
    return items if len(items) <= most else [*items[:most], f"… {len(items) - most} more"]


@contextlib.contextmanager
def no_panic(text: str) -> Iterator[None]:
    """Makes a `TokenError` of the end that a library in Rust comes to with a text that is too much.

    Its `PanicException` is no `Exception`, so that whoever catches errors would not.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenError(
            f"A text of {len(text):,} characters is too much for the tokenizer's library: "
            f"{str(error)[:200]}. Cut it into parts."
        ) from None


def _is_byte_level(bpe: tokenizers.Tokenizer) -> bool:
    """Whether its tokens are written in bytes; `TokenError` where it cannot be used."""
    decoder = type(bpe.decoder).__name__
    parts = [part for part in (bpe.normalizer, bpe.pre_tokenizer) if part is not None]
    reads_bytes = any(b'"ByteLevel"' in part.__getstate__() for part in parts)
    writes_bytes = isinstance(bpe.decoder, decoders.ByteLevel)
    if reads_bytes != writes_bytes or not (writes_bytes or stages_of(bpe.decoder) is not None):
        reads = (
            "" if reads_bytes == writes_bytes else f" and {'' if reads_bytes else 'no '}ByteLevel"
        )
        raise TokenError(
            f"This tokenizer is {type(bpe.model).__name__} with the decoder {decoder}{reads} "
            "before it; what is read is ByteLevel on both sides, as Llama 3's, or the decoder of "
            "SentencePiece (Metaspace, or Replace, ByteFallback, Fuse, Strip on the left)."
        )
    lost = [
        byte
        for byte, character in enumerate(BYTE_ALPHABET)
        if byte not in _NEVER and bpe.token_to_id(character) is None
    ]
    if writes_bytes and lost:
        some = ", ".join(cut_short([f"0x{byte:02X}" for byte in lost]))
        raise TokenError(
            f"This tokenizer lacks tokens for {len(lost)} of the 256 bytes ({some}), which it "
            "would drop from a text: train it with the whole ByteLevel.alphabet()."
        )
    return writes_bytes


_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that are in no text
