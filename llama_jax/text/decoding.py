"""Tokens to text, one at a time: what a tokenizer's decoder does, without waiting for the end.

`tokenizers` decodes all tokens of a text at once. Here each stage of its decoder takes a token's
text and gives out what is certain; all together they give the same.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import Any, Protocol

import tokenizers

__all__ = ["UTF8", "Decoder", "Stages", "fallback_byte", "stages_of"]


class Decoder(Protocol):
    """Turns tokens that come one at a time into text."""

    def push(self, id: int) -> str:
        """The text that is certain with this token."""

    def finish(self) -> str:
        """The text that is left when no token comes any more."""


class UTF8:
    """Of tokens that are bytes, whole characters; U+FFFD for bytes that are none."""

    def __init__(self, token_bytes: Callable[[int], bytes | None]) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._bytes(id) or b"")

    def finish(self) -> str:
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Stages:
    """The stages of a decoder, one behind the other; `names` gives the text of a token."""

    def __init__(self, names: Callable[[int], str | None], made: list[Stage]) -> None:
        self._names, self._stages = names, made

    def push(self, id: int) -> str:
        name = self._names(id)
        return "" if name is None else self._through(self._stages, [name])

    def finish(self) -> str:
        stages = self._stages
        return "".join(
            self._through(stages[i + 1 :], stage.finish()) for i, stage in enumerate(stages)
        )

    def _through(self, stages: list[Stage], pieces: list[str]) -> str:
        for stage in stages:
            pieces = [made for piece in pieces for made in stage.push(piece)]
        return "".join(pieces)


class Stage:
    """A stage takes the pieces of a text in their order, and gives out pieces."""

    def push(self, piece: str) -> list[str]:
        raise NotImplementedError

    def finish(self) -> list[str]:
        return []


class _Replace(Stage):
    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content

    def push(self, piece: str) -> list[str]:
        return [piece.replace(self._pattern, self._content)]


class _ByteFallback(Stage):
    """`<0xE2>` is a byte. Bytes in a row are text if all of them are, else each is U+FFFD."""

    def __init__(self) -> None:
        self._row = b""

    def push(self, piece: str) -> list[str]:
        byte = fallback_byte(piece)
        if byte is None:
            return [*self.finish(), piece]
        self._row += byte
        return []

    def finish(self) -> list[str]:
        row, self._row = self._row, b""
        try:
            return [row.decode()]
        except UnicodeDecodeError:
            return ["\ufffd" * len(row)]


class _Strip(Stage):
    """Takes away up to `start` of a character before the text, or before each piece."""

    def __init__(self, content: str, start: int, once: bool) -> None:
        self._content, self._start, self._once = content, start, once
        self._left = start

    def push(self, piece: str) -> list[str]:
        bare = piece.lstrip(self._content)
        taken = min(len(piece) - len(bare), self._left)
        if self._once:  # goes on only while there was nothing else
            self._left = 0 if len(piece) > taken else self._left - taken
        return [piece[taken:]]

    def finish(self) -> list[str]:
        self._left = self._start
        return []


class _Metaspace(Stage):
    """A mark is a space; in the first token it is none, if one is put before a text."""

    def __init__(self, replacement: str, prepends: bool) -> None:
        self._mark, self._prepends = replacement, prepends
        self._first = prepends

    def push(self, piece: str) -> list[str]:
        space = "" if self._first else " "
        self._first = False
        return [piece.replace(self._mark, space)]

    def finish(self) -> list[str]:
        self._first = self._prepends
        return []


def fallback_byte(piece: str) -> bytes | None:
    """The byte that a piece as `<0xE2>` is, else None."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            pass
    return None


def stages_of(decoder: tokenizers.decoders.Decoder | None) -> list[Stage] | None:
    """New stages that do what a decoder does; None for one that is not known here.

    Known are SentencePiece's as `tokenizers` writes them: Metaspace, or a sequence of Replace,
    ByteFallback, Fuse and Strip on the left.
    """
    if decoder is None:
        return None
    said = json.loads(decoder.__getstate__())
    made: list[Stage] = []
    fused = False
    for item in said["decoders"] if said["type"] == "Sequence" else [said]:
        fused = fused or item["type"] == "Fuse"
        stage = _stage(item, fused)
        if stage is None:
            return None
        made += stage
    return made


def _stage(said: dict[str, Any], fused: bool) -> list[Stage] | None:
    match said:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return [_Replace(pattern, content)]
        case {"type": "ByteFallback"}:
            return [_ByteFallback()]
        case {"type": "Strip", "content": content, "start": start, "stop": 0}:
            return [_Strip(content, start, fused)]
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme} if not fused:
            return [_Metaspace(mark, scheme != "never")]
        case {"type": "Fuse"}:
            return []  # only Strip tells the difference
    return None
