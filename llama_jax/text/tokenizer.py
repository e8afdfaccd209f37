"""Text to tokens and back: byte-level BPE as Llama 3 has it.

The merges are done by `tokenizers`, for a `tokenizer.json`, or by `tiktoken`, for Meta's
`tokenizer.model`. What is decided here: special tokens in a text stay plain text unless they are
allowed, BOS comes once, and bytes become text only where characters are whole.
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
from tokenizers import processors

from llama_jax.text.backends import Backend, TokenError, TokenizersBPE, cut_short
from llama_jax.text.meta import TiktokenBPE, read_ranks

__all__ = ["TextStream", "TokenError", "Tokenizer"]

_DEFAULT_BOS = "<|begin_of_text|>"


class Tokenizer:
    """A vocabulary, and the way from text to its token ids and back.

    `backend` is one of `tokenizers`, which is taken over and must be a byte-level BPE (else
    `TokenError`), or a `Backend` of ours. `bos` is the id that `encode` puts first, or None.

    >>> from llama_jax.cria.vocabulary import train_tokenizer
    >>> backend = train_tokenizer(["the mill by the lake, the lamp in the mill"], vocab_size=528)
    >>> tokenizer = Tokenizer(backend, bos=backend.token_to_id("<|begin_of_text|>"))
    >>> tokenizer.pieces(tokenizer.encode("the lamp"))
    ['<|begin_of_text|>', 'the', ' la', 'mp']
    """

    def __init__(self, backend: tokenizers.Tokenizer | Backend, bos: int | None = None) -> None:
        if isinstance(backend, tokenizers.Tokenizer):
            backend = TokenizersBPE(backend)
        self._backend = backend
        self._config: dict[str, Any] = {}
        self.special: dict[str, int] = backend.special
        self._special_ids = set(self.special.values())
        self.vocab_size: int = backend.vocab_size
        self.bos = None if bos is None else self._tokens([bos])[0][0]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], bos_token: str | None = None) -> Tokenizer:
        """Reads a `tokenizer.json`, or Meta's `tokenizer.model` with Llama 3.1's special tokens.

        BOS is `bos_token`, else what a `tokenizer_config.json` beside it names, else
        `<|begin_of_text|>` where the vocabulary has it. The ids are transformers' for the one and
        Meta's own for the other. They are the same, except where Meta cuts a text of more than
        400,000 characters, or 25,000 without a space. Raises `TokenError`, and `ImportError` where
        a `tokenizer.model` needs tiktoken.
        """
        path = pathlib.Path(path)
        backend = _read(path)
        config = _read_json(path.with_name("tokenizer_config.json"))
        template = path.with_name("chat_template.jinja")  # counts before one in the config
        if template.is_file():
            config["chat_template"] = template.read_text("utf-8")
        name = bos_token or config.get("bos_token", _DEFAULT_BOS)
        if isinstance(name, dict):  # transformers writes it so where a token has options
            name = name["content"]
        bos = backend.token_id(name) if name else None
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
            text = text.removeprefix(self._join([self.bos]).decode("utf-8", "surrogateescape"))
        for is_special, part in self._split(text, allow_special):
            if is_special:
                ids.append(self.special[part])
            elif part:
                ids += self._backend.encode(_unicode(part))
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of tokens `[T]`; bytes that form no whole character become U+FFFD."""
        return self._join(ids, skip_special).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its name."""
        return self._join([id])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""The text of each token; bytes that are only part of a character as `\xE2\x96`."""
        return [_readable(data) for _, data in self._tokens(ids)]

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
            parts = ", ".join(repr(piece) for piece in cut_short(self.pieces(ids)))
            near = self.encode(" " + text, bos=False)
            hint = f" {' ' + text!r} is one, with the space." if len(near) == 1 else ""
            raise TokenError(f"{text!r} is {len(ids)} tokens, not one: [{parts}].{hint}")
        return ids[0]

    @property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates of the tokenizer's files, by name; a single one is "default".

        They are Jinja, for `llama_jax.text.encode_chat`. Raises `TokenError` where
        `tokenizer_config.json` has something else in their place.
        """
        found = self._config.get("chat_template") or {}
        try:
            if isinstance(found, list):
                found = {item["name"]: item["template"] for item in found}
            found = {"default": found} if isinstance(found, str) else dict(found)
        except (KeyError, TypeError, ValueError):
            found = {"": None}
        if not all(isinstance(template, str) for template in found.values()):
            raise TokenError(
                "chat_template in tokenizer_config.json is neither a template nor a list of "
                '{"name": …, "template": …}.'
            )
        return found

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that the files give a part, as in `{"bos_token": "<|begin_of_text|>"}`."""
        named = {"bos_token": None if self.bos is None else self.decode([self.bos])}
        for part in ("eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
            token = self._config.get(part)
            named[part] = token["content"] if isinstance(token, dict) else token
        return {part: token for part, token in named.items() if token is not None}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers opens.

        Its ids for a text are then those of `encode(text, allow_special=True)`, BOS included.
        """
        directory = pathlib.Path(directory)
        backend = self._backend.to_tokenizers()
        bos = None
        if self.bos is not None:
            bos = backend.id_to_token(self.bos)
            assert bos is not None, self.bos  # `_tokens` has seen it
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

    def to_ranks(self) -> bytes | None:
        """The content of Meta's `tokenizer.model`; None where it did not come from one."""
        return self._backend.to_ranks() if isinstance(self._backend, TiktokenBPE) else None

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
            known = ", ".join(cut_short(list(self.special)))
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
            data for id, data in self._tokens(ids) if not (skip_special and id in self._special_ids)
        )

    def _tokens(self, ids: Iterable[int]) -> list[tuple[int, bytes]]:
        """Each token as an integer, with its bytes; an error for one that there is not."""
        array = np.asarray(ids if hasattr(ids, "shape") else list(ids))
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise TokenError(
                f"Tokens are {array.dtype} of shape {list(array.shape)}; give one row of integers."
            )
        tokens = []
        for position, id in enumerate(array.tolist()):
            data = self._backend.token_bytes(id) if 0 <= id < self.vocab_size else None
            if data is None:
                raise TokenError(
                    f"Token {id} at position {position}: this tokenizer knows {self.vocab_size} "
                    f"tokens, 0 to {self.vocab_size - 1}."
                )
            tokens.append((id, data))
        return tokens


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


def _read(path: pathlib.Path) -> Backend:
    """What the file holds, whatever its name: a `tokenizer.json` starts with a brace."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenError(f"{path} is not a readable tokenizer: {error.strerror}.") from None
    if not content.lstrip().startswith(b"{"):
        return TiktokenBPE(read_ranks(content, os.fspath(path)))
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # `tokenizers` raises nothing more special
        raise TokenError(f"{path} is not a readable tokenizer.json: {error}.") from None
    return TokenizersBPE(backend)


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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenError(f"{path} is not JSON: {error}.") from None
