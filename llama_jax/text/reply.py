"""What the assistant said: the tokens of a reply read as content and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_jax.text.calls import ToolCall
from llama_jax.text.parsing import parse_calls
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.text.tools import Tool, read_tools

if TYPE_CHECKING:
    from llama_jax.generate import Generation

__all__ = ["ENDS", "Ended", "Reply", "read_reply"]

Ended = Literal["eot", "eom", "length"]
ENDS: dict[str, Ended] = {"<|eot_id|>": "eot", "<|eom_id|>": "eom", "<|end_of_text|>": "eot"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the assistant said. Its calls are there to be looked at: nothing has executed them."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    ended: Ended = "eot"
    """"eot": the turn is over; "eom": a tool's result is expected; "length": it was cut off."""
    problem: str | None = None
    """Why a part of the content that looks like calls is none."""
    generation: Generation | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message, in JSON's values, to be appended to the others."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.ended == "eom" or (self.tool_calls and self.ended == "eot"):
            message["ended"] = self.ended
        return message


def read_reply(
    tokenizer: Tokenizer,
    tokens: Iterable[int],
    tools: Sequence[Tool] | None = None,
    text: str | None = None,
    begun: str = "",
    stops: Collection[int] = (),
) -> Reply:
    """The reply that these tokens are: content, calls in whatever form, and how it ended.

    `text` is the text of the reply where a text stopped it before its last token; `begun` is what
    stands before the tokens in the same message, for a reply that was prefilled. `stops` are end
    tokens besides those of Llama 3.1, as other formats have. Calls that are
    malformed are left in the content, and `problem` says what is wrong (`parse_calls`). Raises
    `TokenError` for tokens that are none, and `ToolError` for tools.

    >>> from llama_jax import Llama
    >>> tokenizer = Llama.from_pretrained("cria").tokenizer
    >>> written = '<|python_tag|>brave_search.call(query="llamas")<|eom_id|>'
    >>> read_reply(tokenizer, tokenizer.encode(written, bos=False, allow_special=True))
    Reply(content='', tool_calls=(ToolCall(name='brave_search', arguments={'query': 'llamas'}),),
          ended='eom', problem=None)
    """
    ids = [int(id) for id in tokens]
    parameters = read_tools(tools).parameters
    ends: dict[int | None, Ended] = dict.fromkeys(stops, "eot")
    ends |= {tokenizer.special.get(name): end for name, end in ENDS.items()}
    ended = ends.get(ids[-1], "length") if ids else "length"
    # The first piece is what is said, each other one stood after <|python_tag|>.
    pieces = [
        tokenizer.decode(part, skip_special=True)
        for part in _split(ids, tokenizer.special.get(_PYTHON_TAG))
    ]
    if text is not None:
        pieces = _first_characters(pieces, len(text))
    pieces[0] = begun + pieces[0]
    parsed = [
        parse_calls(piece, tagged, parameters, cut_off=ended == "length")
        for piece, tagged in zip(pieces, [False] + [True] * len(pieces), strict=False)
    ]
    problems = [part.problem for part in parsed if part.problem is not None]
    if problems:
        return Reply("".join(pieces), ended=ended, problem=problems[0])
    calls = tuple(call for part in parsed for call in part.calls)
    return Reply("".join(part.content for part in parsed), calls, ended)


_PYTHON_TAG = "<|python_tag|>"


def _split(ids: list[int], separator: int | None) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for id in ids:
        if id == separator:
            pieces.append([])
        else:
            pieces[-1].append(id)
    return pieces


def _first_characters(pieces: list[str], count: int) -> list[str]:
    starts = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    return [piece[: max(count - start, 0)] for piece, start in zip(pieces, starts, strict=True)]
