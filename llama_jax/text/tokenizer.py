"""Text to tokens and back: byte-level BPE as Llama 3 has it, from a `tokenizer.json`.

The merges are done by `tokenizers`. What is decided here: special tokens in a text stay plain text
unless they are allowed, BOS comes once, and bytes become text only where characters are whole.
"""

from __future__ import annotations

import codecs
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, processors

__all__ = ["TextStream", "TokenError", "Tokenizer"]

_DEFAULT_BOS = "<|begin_of_text|>"


class TokenError(ValueError):
    """A text, a token or a tokenizer file that cannot be used."""


class Tokenizer:
    """A vocabulary, and the way from text to its token ids and back.

    `backend` is taken over: its truncation and padding are switched off, and its post-processor
    is never used, since it would add BOS a second time. `bos` is the id that `encode` puts first,
    or None. Raises `TokenError` where `backend` is no byte-level BPE.

    >>> from llama_jax.cria.vocabulary import train_tokenizer
    >>> backend = train_tokenizer(["the mill by the lake, the lamp in the mill"], vocab_size=528)
    >>> tokenizer = Tokenizer(backend, bos=backend.token_to_id("<|begin_of_text|>"))
    >>> tokenizer.pieces(tokenizer.encode("the lamp"))
    ['<|begin_of_text|>', 'the', ' la', 'mp']
    """

    def __init__(self, backend: tokenizers.Tokenizer, bos: int | None = None) -> None:
        _check_byte_level(backend)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # `tokenizers` means by it: as the text they are
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._added = {id: token.content.encode() for id, token in added.items()}
        self._config: dict[str, Any] = {}
        self.special: dict[str, int] = {t.content: id for id, t in added.items() if t.special}
        self._special_ids = set(self.special.values())
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos = None if bos is None else self._known([bos])[0]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], bos_token: str | None = None) -> Tokenizer:
        """Reads a `tokenizer.json`.

        BOS is `bos_token`, else what a `tokenizer_config.json` beside it names, else
        `<|begin_of_text|>` where the vocabulary has it. Raises `TokenError`.
        """
        path = pathlib.Path(path)
        try:
            backend = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # `tokenizers` raises nothing more special
            raise TokenError(f"{path} is not a readable tokenizer.json: {error}.") from None
        config = _read_json(path.with_name("tokenizer_config.json"))
        name = bos_token or config.get("bos_token", _DEFAULT_BOS)
        if isinstance(name, dict):  # transformers writes it so where a token has options
            name = name["content"]
        bos = backend.token_to_id(name) if name else None
        if bos is None and name and (bos_token or "bos_token" in config):
            raise TokenError(f"{path} has no token {name!r}: give another bos_token.")
        tokenizer = cls(backend, bos)
        tokenizer._config = config
        return tokenizer

    def encode(
        self, text: str, bos: bool = True, allow_special: bool | str | Collection[str] = False
    ) -> list[int]:
        """The token ids of a text, after BOS unless `bos=False`.

        A text that starts with the name of BOS does not get it twice. Names of special tokens in
        the text stay plain text, unless `allow_special` is True or names those that count.
        Raises `TokenError` for a name that is no special token, and for text that is not Unicode.
        """
        ids: list[int] = []
        if bos and self.bos is not None:
            ids.append(self.bos)
            text = text.removeprefix(self._added.get(self.bos, b"").decode())
        for is_special, part in self._split(text, allow_special):
            if is_special:
                ids.append(self.special[part])
            elif part:
                ids += self._backend.encode(_unicode(part), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of tokens `[T]`; bytes that form no whole character become U+FFFD."""
        return self._join(ids, skip_special).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its name."""
        return self._join([id])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""The text of each token; bytes that are only part of a character as `\xE2\x96`."""
        return [_readable(self._join([id])) for id in self._known(ids)]

    def stream(self) -> TextStream:
        """Turns tokens that come one at a time into text."""
        return TextStream(self)

    def id(self, text: str) -> int:
        """The id of a text that is exactly one token, as `" Mary"` may be, or a special token's.

        Raises `TokenError` that says which tokens the text is where it is not one.
        """
        if text in self.special:
            return self.special[text]
        ids = self.encode(text, bos=False)
        if len(ids) != 1:
            parts = ", ".join(repr(piece) for piece in _cut(self.pieces(ids)))
            near = self.encode(" " + text, bos=False)
            hint = f" {' ' + text!r} is one, with the space." if len(near) == 1 else ""
            raise TokenError(f"{text!r} is {len(ids)} tokens, not one: [{parts}].{hint}")
        return ids[0]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers opens.

        Its ids for a text are then those of `encode(text, allow_special=True)`, BOS included.
        """
        directory = pathlib.Path(directory)
        content = json.loads(self._backend.to_str()) | {"post_processor": None}
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        bos = None
        if self.bos is not None:
            bos = self._name(self.bos)
            backend.post_processor = _adds_bos(bos, self.bos)
        backend.save(os.fspath(directory / "tokenizer.json"))
        config = {
            "clean_up_tokenization_spaces": False,
            **self._config,
            "bos_token": bos,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text + "\n", "utf-8")

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} tokens, {len(self.special)} of them special)"

    def _split(self, text: str, allow: bool | str | Collection[str]) -> Iterator[tuple[bool, str]]:
        """`(is special, part)`, cut at the special tokens that are allowed."""
        if isinstance(allow, bool):
            names = set(self.special) if allow else set()
        else:
            names = {allow} if isinstance(allow, str) else set(allow)
        unknown = sorted(names - set(self.special))
        if unknown:
            known = ", ".join(_cut(list(self.special)))
            raise TokenError(f"{unknown[0]!r} is no special token. They are: {known}.")
        if not names:
            yield False, text
            return
        longest_first = sorted(names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        for i, part in enumerate(parts):
            yield i % 2 == 1, part

    def _join(self, ids: Iterable[int], skip_special: bool = False) -> bytes:
        return b"".join(
            self._bytes(id)
            for id in self._known(ids)
            if not (skip_special and id in self._special_ids)
        )

    def _bytes(self, id: int) -> bytes:
        if id in self._added:
            return self._added[id]
        return bytes(_BYTE_OF[character] for character in self._name(id))

    def _name(self, id: int) -> str:
        name = self._backend.id_to_token(id)
        assert name is not None, id  # `_known` has seen it
        return name

    def _known(self, ids: Iterable[int]) -> list[int]:
        """`ids` as integers, each of which is in the vocabulary."""
        array = np.asarray(ids if hasattr(ids, "shape") else list(ids))
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise TokenError(
                f"Tokens are {array.dtype} of shape {list(array.shape)}; give one row of integers."
            )
        for position, id in enumerate(array.tolist()):
            if not 0 <= id < self.vocab_size or self._backend.id_to_token(id) is None:
                raise TokenError(
                    f"Token {id} at position {position}: this tokenizer knows {self.vocab_size} "
                    f"tokens, 0 to {self.vocab_size - 1}."
                )
        return array.tolist()


class TextStream:
    """Text out of tokens that come one at a time: `push` each, and `finish` at the end.

    What was returned, joined, is `decode(ids, skip_special=True)`. Special tokens give "".
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that this token completes; "" while one is still in its middle."""
        return self._decoder.decode(self._tokenizer._join([id], skip_special=True))

    def finish(self) -> str:
        """U+FFFD where the tokens end within a character, else ""."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's `encoder.py`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_alphabet()


def _check_byte_level(backend: tokenizers.Tokenizer) -> None:
    kind = f"{type(backend.model).__name__} with the decoder {type(backend.decoder).__name__}"
    if not isinstance(backend.model, models.BPE) or not isinstance(
        backend.decoder, decoders.ByteLevel
    ):
        raise TokenError(f"This tokenizer is {kind}; Llama 3's is BPE with the decoder ByteLevel.")
    lost = [byte for char, byte in _BYTE_OF.items() if backend.token_to_id(char) is None]
    if lost:
        some = ", ".join(_cut([f"0x{byte:02X}" for byte in lost]))
        raise TokenError(
            f"This tokenizer lacks tokens for {len(lost)} of the 256 bytes ({some}), which it "
            "would drop from a text: train it with the whole ByteLevel.alphabet()."
        )


def _adds_bos(token: str, id: int) -> processors.PostProcessor:
    """The post-processor of Llama 3's own `tokenizer.json`."""
    template = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, id)]
    )
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenError(
            f"The text has {text[error.start]!r} at {error.start}, half of a surrogate pair, "
            "which is no character. Was it decoded as UTF-8?"
        ) from None
    return text


def _readable(data: bytes) -> str:
    text = data.decode("utf-8", "surrogateescape")  # a byte b that does not fit is U+DC00 + b
    return re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02X}", text)


def _cut(items: list[str], most: int = 10) -> list[str]:
    return items if len(items) <= most else [*items[:most], f"… {len(items) - most} more"]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenError(f"{path} is not JSON: {error}.") from None
