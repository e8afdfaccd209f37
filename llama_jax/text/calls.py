"""Tool calls and how Llama 3 writes them. Nothing is ever executed here.

| form | example |
|---|---|
| built-in tools, after `<|python_tag|>` | `brave_search.call(query="the price of gold")` |
| code, after `<|python_tag|>` | `print(7 ** 2)` |
| `"json"` | `{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}` |
| `"function_tag"` | `<function=weather>{"city": "Rome"}</function>` |
| `"pythonic"` | `[weather(city="Rome"), weather(city="Oslo")]` |

Several calls are a list in the pythonic form, follow each other in function tags, and are separated
by `; ` in the others. An argument may be a call itself: `[mail(text=weather(city="Rome"))]`; in
JSON it is an object of exactly `type` ("function"), `name` and `parameters`.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

__all__ = [
    "BUILTIN_TOOLS",
    "CODE_INTERPRETER",
    "TAG_NAME",
    "ToolCall",
    "ToolError",
    "ToolFormat",
    "call_in",
    "has_own_form",
    "json_at_start",
    "short",
    "writable",
    "write_calls",
]

CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", CODE_INTERPRETER)

ToolFormat = Literal["json", "function_tag", "pythonic"]

TAG_NAME = r"[^\s<>{}]+"  # what may stand in <function=…>


class ToolError(ValueError):
    """A tool, or a call of one, that cannot be written or read."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for. Arguments are JSON's values, and other calls.

    >>> inner = ToolCall("weather", {"city": "Rome"})
    >>> write_calls([ToolCall("mail", {"to": "Ada", "text": inner})], "pythonic")
    '[mail(to="Ada", text=weather(city="Rome"))]'
    """

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ToolCall:
        """Reads `{"name": …, "arguments": …}`, also with "parameters" or inside "function".

        Arguments may be JSON text, as OpenAI has them. Raises `ToolError`.
        """
        call = call_in(value)
        if call is None:
            raise ToolError(f"{short(value)} is no tool call: it lacks a name or arguments.")
        return call

    def to_dict(self) -> dict[str, Any]:
        """The call as messages hold it, in JSON's values only. Raises `ToolError`."""
        arguments = json.loads(_json(self.arguments))
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


def write_calls(calls: Sequence[ToolCall], format: ToolFormat = "json") -> str:
    """The text of calls, without `<|python_tag|>`; strings are escaped, so that they read back.

    Code, and built-in tools among themselves, have a form of their own (`has_own_form`); together
    with others they are written like any function. Raises `ToolError`.
    """
    if format not in get_args(ToolFormat):
        known = ", ".join(map(repr, get_args(ToolFormat)))
        raise ToolError(f"The tool format is {format!r}; there are {known}.")
    if has_own_form(calls):
        if calls[0].name == CODE_INTERPRETER:
            return calls[0].arguments["code"]
        return "; ".join(f"{call.name}.call({_keywords(call.arguments)})" for call in calls)
    if format == "pythonic":
        return f"[{', '.join(map(_python, calls))}]"
    if format == "json":
        return "; ".join(map(_json, calls))
    return "".join(map(_function_tag, calls))


def has_own_form(calls: Sequence[ToolCall]) -> bool:
    """Whether these are code, or built-in tools only: those stand after `<|python_tag|>`."""
    if len(calls) == 1 and calls[0].name == CODE_INTERPRETER:
        return list(calls[0].arguments) == ["code"] and isinstance(calls[0].arguments["code"], str)
    return bool(calls) and {call.name for call in calls} <= set(BUILTIN_TOOLS) - {CODE_INTERPRETER}


def _function_tag(call: ToolCall) -> str:
    if not re.fullmatch(TAG_NAME, call.name):
        raise ToolError(f"{call.name!r} cannot stand in <function=…>: it has a bracket or a space.")
    return f"<function={call.name}>{_json(call.arguments)}</function>"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ToolError:
        raise
    except (TypeError, ValueError) as error:
        raise ToolError(f"{short(value)} cannot be written as JSON: {error}.") from None


def _as_json(value: Any) -> dict[str, Any]:
    if isinstance(value, ToolCall):
        return {"type": "function", "name": value.name, "parameters": value.arguments}
    if isinstance(value, Mapping):
        return dict(value)
    raise ToolError(
        f"{short(value)} is a {type(value).__name__}; an argument is text, a number, True, False, "
        "None, a list or dict of these, or a ToolCall."
    )


def _python(value: Any) -> str:
    if isinstance(value, ToolCall):
        if not all(map(_is_name, value.name.split("."))):
            raise ToolError(f"{value.name!r} is no name of a Python function; try another format.")
        return f"{value.name}({_keywords(value.arguments)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_python(k)}: {_python(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_python, value))}]"
    if value is None or isinstance(value, bool):
        return str(value)
    return _json(value)  # numbers and strings of JSON are Python's


def _keywords(arguments: Mapping[str, Any]) -> str:
    """`a=1, b=2`; what Python takes for no name comes behind as `**{"is-not": 3}`."""
    named = [f"{name}={_python(value)}" for name, value in arguments.items() if _is_name(name)]
    others = {name: value for name, value in arguments.items() if not _is_name(name)}
    return ", ".join([*named, f"**{_python(others)}"] if others else named)


def _is_name(text: str) -> bool:
    # ASCII: Python reads other letters in their normal form, which may be other characters.
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)) and not keyword.iskeyword(text)


def call_in(value: Any) -> ToolCall | None:
    """The call that a JSON value is, or None. Raises `ToolError` where it should be one."""
    if not isinstance(value, Mapping):
        return None
    inner = value["function"] if isinstance(value.get("function"), Mapping) else value
    name = inner.get("name")
    arguments = inner.get("parameters", inner.get("arguments"))
    if value.get("type") == "function":
        if not isinstance(name, str) or not name:
            raise ToolError(f"The call {short(value)} has no name.")
        arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or arguments is None:
        return None
    if isinstance(arguments, str):
        arguments, rest = json_at_start(arguments)
        if rest.strip():
            raise ToolError(f"The arguments of {name} have text behind them: {short(rest)}.")
    if not isinstance(arguments, Mapping):
        raise ToolError(f"The arguments of {name} are {short(arguments)}; they are named ones.")
    return ToolCall(writable(name), {writable(k): _with_calls(v) for k, v in arguments.items()})


def _with_calls(value: Any) -> Any:
    """`value` with the calls that are nested in it."""
    if isinstance(value, Mapping):
        if value.keys() == {"type", "name", "parameters"} and value["type"] == "function":
            return call_in(value)
        return {writable(name): _with_calls(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_calls(item) for item in value]
    return writable(value)


def json_at_start(text: str) -> tuple[Any, str]:
    """The JSON value that a text starts with, and the text behind it. Raises `ToolError`."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise ToolError(f"This is no JSON: {error.msg} at character {error.pos}.") from None
    except ToolError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise ToolError(f"This is no JSON: {error}.") from None
    return value, text[end:]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ToolError(f"An object has a name twice: {short([name for name, _ in pairs])}.")
    return found


def _no_number(name: str) -> float:
    raise ToolError(f"{name} is no number of JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def writable(value: Any) -> Any:
    """A string or number, if it is one that can be written again. Raises `ToolError`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError(f"The number {value} is not finite.")
    if isinstance(value, int) and value.bit_length() > 10_000:
        raise ToolError(f"An integer of {value.bit_length():,} bits is too long.")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ToolError(f"{short(value)} has half of a surrogate pair, which is no character.")
    return value


def short(value: Any) -> str:
    """A value for an error's text."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"
