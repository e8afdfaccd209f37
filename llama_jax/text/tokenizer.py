"""Text to tokens and back.

The merges are done by `tokenizers`, for a `tokenizer.json`, or by `tiktoken`, for Meta's
`tokenizer.model`. What is decided here: special tokens in a text stay plain text unless they are
allowed, BOS comes once, and an id that stands for nothing has a label and no text.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from llama_jax.text.backends import Backend, Place, TokenError, TokenizersBPE, cut_short
from llama_jax.text.meta import TiktokenBPE
from llama_jax.text.opening import NAMED, open_tokenizer, token_name

__all__ = ["TextStream", "TokenError", "Tokenizer"]

_DEFAULT_BOS = "<|begin_of_text|>"


class Tokenizer:
    """A vocabulary, and the way from text to its token ids and back.

    `backend` is one of `tokenizers`, which is taken over and must be byte-level or written as
    SentencePiece's are (else `TokenError`), or a `Backend` of ours. `bos` is the id that `encode`
    puts first, or None. In all, `encode` puts the ids `before` and `behind` around a text.

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
        self.vocab_size: int = backend.vocab_size
        self._ids = self.vocab_size
        self.bos = None if bos is None else self._tokens([bos])[0][0]
        self.before: list[int] = [] if self.bos is None else [self.bos]
        self.behind: list[int] = []

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], bos_token: str | None = None) -> Tokenizer:
        """Reads a `tokenizer.json`, or Meta's `tokenizer.model` with Llama 3.1's special tokens.

        The ids of a `tokenizer.json` are transformers', with `tokenizer_config.json`,
        `special_tokens_map.json`, `added_tokens.json` and `chat_template.jinja` beside it: what is
        put around a text, as BOS, is what its post-processor says. `bos_token` puts another token
        first. `bos` is the id of what the files name so, else of `<|begin_of_text|>` where the
        vocabulary has it, which comes first too where no `tokenizer_config.json` lies beside.

        The ids of a `tokenizer.model` are Meta's own, with BOS. They are transformers' too, except
        where Meta cuts a text of more than 400,000 characters, or 25,000 without a space. Raises
        `TokenError`, and `ImportError` where a `tokenizer.model` needs tiktoken.
        """
        path = pathlib.Path(path)
        backend, config = open_tokenizer(path)
        name = bos_token or token_name(config.get("bos_token", _DEFAULT_BOS))
        bos = backend.token_id(name) if name else None
        if bos is None and name and (bos_token or "bos_token" in config):
            raise TokenError(f"{path} has no token {name!r}: give another bos_token.")
        tokenizer = cls(backend, bos)
        tokenizer._config = config
        before, tokenizer.behind = backend.around
        # A tokenizer.json alone that says nothing may have lost what says it: Llama 3 begins so.
        alone = not before and not path.with_name("tokenizer_config.json").is_file()
        if not (bos_token or alone or isinstance(backend, TiktokenBPE)):
            tokenizer.before = before
        return tokenizer

    def padded(self, size: int) -> Tokenizer:
        """The same for a model whose vocabulary of `size` ids is larger than the tokenizer's.

        What is no token has a label, as `<unused 128300>`, no bytes and no text.
        """
        padded = copy.copy(self)
        padded._ids = max(size, self.vocab_size)
        return padded

    def encode(
        self, text: str, bos: bool = True, allow_special: bool | str | Collection[str] = False
    ) -> list[int]:
        """The token ids of a text, after BOS unless `bos=False`.

        With BOS comes what else the tokenizer's file puts around a text, as EOS behind it. A text
        that starts with the name of BOS does not get it twice. Names of special tokens in the text
        stay plain text, unless `allow_special` is True or names those that count.
        Raises `TokenError` for a name that is no special token, and for text that is not Unicode.
        """
        allowed = self._allowed(allow_special)
        if not bos:
            return self._encode(text, allowed)
        first = b"".join(data or b"" for _, data in self._tokens(self.before))
        ids = self._encode(text.removeprefix(first.decode("utf-8", "surrogateescape")), allowed)
        return [*self.before, *ids, *self.behind]

    def encode_parts(self, parts: Iterable[tuple[bool, str]]) -> list[int]:
        """The ids of a text in parts, `(is special, text)`; the names in the others stay text.

        They are those of the whole text as transformers reads it. Raises `TokenError` for a name
        that is no special token.
        """
        parts = [*parts]
        ids: list[int] = []
        at: Place = "start"
        for i, (is_special, part) in enumerate(parts):
            if is_special:
                self._allowed({part})
                ids.append(self.special[part])
                at = "special"
                continue
            if i and parts[i - 1][0] and self._backend.stripped(parts[i - 1][1])[1]:
                part = part.lstrip()
            if (
                i + 1 < len(parts)
                and parts[i + 1][0]
                and self._backend.stripped(parts[i + 1][1])[0]
            ):
                part = part.rstrip()
            ids += self._encode(part, at=at)
            at = "text" if part else at
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of tokens `[T]`; bytes that form no whole character become U+FFFD."""
        stream = TextStream(self, skip_special)
        return "".join(stream._push(*token) for token in self._tokens(ids)) + stream.finish()

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its name."""
        return self._tokens([id])[0][1] or b""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""The text of each token; bytes that are only part of a character as `\xE2\x96`.

        Of an id that stands for nothing, as `padded` has, it is `<unused 128300>`.
        """
        return [
            f"<unused {id}>" if data is None else _readable(data) for id, data in self._tokens(ids)
        ]

    def stream(self) -> TextStream:
        """Turns tokens that come one at a time into text."""
        return TextStream(self)

    def id(self, text: str) -> int:
        """The id of a text that is exactly one token, as `" Mary"` may be, or a special token's.

        Raises `TokenError` that says which tokens the text is where it is not one.
        """
        if text in self.special:
            return self.special[text]
        ids = self._encode(text, at="text")
        if len(ids) != 1:
            parts = ", ".join(repr(piece) for piece in cut_short(self.pieces(ids)))
            near = self._encode(" " + text, at="text")
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
        named = {part: token_name(self._config.get(part)) for part in NAMED}
        if self.bos is not None:
            named["bos_token"] = self._tokens([self.bos])[0][1].decode()  # type: ignore[union-attr]
        return {part: token for part, token in named.items() if token is not None}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers opens.

        Its ids for a text are then those of `encode(text, allow_special=True)`, with what stands
        around the text.
        """
        directory = pathlib.Path(directory)
        backend = self._backend.to_tokenizers()
        if self.before or self.behind:
            name: Any = backend.id_to_token
            backend.post_processor = _puts_around(
                [(name(id), id) for id in self.before], [(name(id), id) for id in self.behind]
            )
        backend.save(os.fspath(directory / "tokenizer.json"))
        config = {
            "clean_up_tokenization_spaces": False,
            **self._config,
            "bos_token": None if self.bos is None else backend.id_to_token(self.bos),
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text + "\n", "utf-8")

    def to_ranks(self) -> bytes | None:
        """The content of Meta's `tokenizer.model`; None where it did not come from one."""
        return self._backend.to_ranks() if isinstance(self._backend, TiktokenBPE) else None

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} tokens, {len(self.special)} of them special)"

    def _encode(self, text: str, allowed: Collection[str] = (), at: Place = "start") -> list[int]:
        return self._backend.encode(_unicode(text), allowed, at) if text else []

    def _allowed(self, allow: bool | str | Collection[str]) -> set[str]:
        if isinstance(allow, bool):
            return set(self.special) if allow else set()
        names = {allow} if isinstance(allow, str) else set(allow)
        unknown = sorted(names - set(self.special))
        if unknown:
            known = ", ".join(cut_short(list(self.special)))
            raise TokenError(f"{unknown[0]!r} is no special token. They are: {known}.")
        return names

    def _tokens(self, ids: Iterable[int]) -> list[tuple[int, bytes | None]]:
        """Each token as an integer, with its bytes, None where there are none.

        An error for an id that the vocabulary does not reach to.
        """
        array = np.asarray(ids if hasattr(ids, "shape") else list(ids))
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise TokenError(
                f"Tokens are {array.dtype} of shape {list(array.shape)}; give one row of integers."
            )
        tokens = []
        for position, id in enumerate(array.tolist()):
            if not 0 <= id < self._ids:
                raise TokenError(
                    f"Token {id} at position {position}: this tokenizer knows {self.vocab_size} "
                    f"tokens, 0 to {self.vocab_size - 1}."
                )
            known = id < self.vocab_size
            tokens.append((id, self._backend.token_bytes(id) if known else None))
        return tokens


class TextStream:
    """Text out of tokens that come one at a time: `push` each, and `finish` at the end.

    What was returned, joined, is `decode(ids, skip_special=True)`. Special tokens give "".
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._backend.skipped if skip_special else set()
        self._decoder = tokenizer._backend.decoder()

    def push(self, id: int) -> str:
        """The characters that this token completes; "" while one is still in its middle."""
        return self._push(*self._tokenizer._tokens([id])[0])

    def finish(self) -> str:
        """U+FFFD where the tokens end within a character; and what was held back, else ""."""
        return self._decoder.finish()

    def _push(self, id: int, data: bytes | None) -> str:
        return "" if data is None or id in self._skipped else self._decoder.push(id)


def _puts_around(
    before: list[tuple[str, int]], behind: list[tuple[str, int]]
) -> processors.PostProcessor:
    """The post-processor of Llama 3's own `tokenizer.json`, which puts BOS first."""
    first, last = ([name for name, _ in tokens] for tokens in (before, behind))
    second = [[f"{name}:1" for name in names] for names in (first, last)]
    template = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *second[0], "$B:1", *second[1]],
        special_tokens=[*{*before, *behind}],
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
