"""What `Tokenizer` stands on: a vocabulary and its merges, whichever library does them."""

from __future__ import annotations

import json
from typing import Protocol

import tokenizers
from tokenizers import decoders, models

__all__ = ["BYTE_ALPHABET", "Backend", "TokenError", "TokenizersBPE", "cut_short"]


class TokenError(ValueError):
    """A text, a token or a tokenizer file that cannot be used."""


class Backend(Protocol):
    """A byte-level BPE. What it is not asked: BOS, special tokens in a text, whole characters."""

    vocab_size: int  # one more than the highest id
    special: dict[str, int]  # ids of the tokens that are no text, by name

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is whole Unicode; names of special tokens in it are plain text."""

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes of a token, of a special one its name; None where no token has the id.

        `id` is from 0 to `vocab_size - 1`. Called for every token that is decoded: fast.
        """

    def token_id(self, name: str) -> int | None:
        """The id of a token by the name that the file gives it; None where there is none."""

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """The same ids for a text, by `tokenizers`: a copy, without a post-processor.

        Called to write a `tokenizer.json`; it may take seconds.
        """


class TokenizersBPE:
    """The merges of a `tokenizer.json`, done by `tokenizers`.

    `bpe` is taken over: its truncation and padding are switched off, and its post-processor is
    never used, since it would add BOS a second time. Raises `TokenError` where `bpe` is no
    byte-level BPE, or lacks one of the 256 bytes.
    """

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        _check_byte_level(bpe)
        bpe.no_truncation()
        bpe.no_padding()
        bpe.encode_special_tokens = True  # `tokenizers` means by it: as the text they are
        added = bpe.get_added_tokens_decoder()
        self._bpe = bpe
        self._names = {id: token.content.encode() for id, token in added.items()}
        self.vocab_size: int = max(bpe.get_vocab(with_added_tokens=True).values()) + 1
        self.special = {token.content: id for id, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def token_bytes(self, id: int) -> bytes | None:
        if id in self._names:
            return self._names[id]
        token = self._bpe.id_to_token(id)
        return None if token is None else bytes(_BYTE_OF[character] for character in token)

    def token_id(self, name: str) -> int | None:
        return self._bpe.token_to_id(name)

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        content = json.loads(self._bpe.to_str()) | {"post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(content))


def _byte_alphabet() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


#: The printable character that byte-level BPE writes for each byte (GPT-2's `encoder.py`).
BYTE_ALPHABET = _byte_alphabet()

_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


def cut_short(items: list[str], most: int = 10) -> list[str]:
    """The first items, and how many more there are: for what an error lists."""
    return items if len(items) <= most else [*items[:most], f"… {len(items) - most} more"]


def _check_byte_level(bpe: tokenizers.Tokenizer) -> None:
    kind = f"{type(bpe.model).__name__} with the decoder {type(bpe.decoder).__name__}"
    if not isinstance(bpe.model, models.BPE) or not isinstance(bpe.decoder, decoders.ByteLevel):
        raise TokenError(f"This tokenizer is {kind}; Llama 3's is BPE with the decoder ByteLevel.")
    lost = [byte for byte, char in enumerate(BYTE_ALPHABET) if bpe.token_to_id(char) is None]
    if lost:
        some = ", ".join(cut_short([f"0x{byte:02X}" for byte in lost]))
        raise TokenError(
            f"This tokenizer lacks tokens for {len(lost)} of the 256 bytes ({some}), which it "
            "would drop from a text: train it with the whole ByteLevel.alphabet()."
        )
