"""Tool calls read from a reply, in whatever form it has them, by their syntax alone."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.text.calls import (
    BUILTIN_TOOLS,
    CODE_INTERPRETER,
    TAG_NAME,
    ToolCall,
    ToolError,
    call_in,
    json_at_start,
    short,
    writable,
)

__all__ = ["Parsed", "parse_calls"]

# The parameters of functions in their order, for arguments that have no name.
Parameters = Mapping[str, Sequence[str]]

_BUILTIN_PARAMETERS = dict.fromkeys(BUILTIN_TOOLS, ("query",)) | {CODE_INTERPRETER: ("code",)}


class Parsed(NamedTuple):
    """What a reply says, and what it calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    problem: str | None = None
    """Why what looks like calls is none; then all of it is content."""


def parse_calls(
    text: str,
    tagged: bool = False,
    parameters: Parameters | None = None,
    cut_off: bool = False,
) -> Parsed:
    """The calls in a reply (`llama_jax.text.calls` shows the forms). Never raises.

    The reply must be calls and nothing else, except that content may stand before `<function=…>`.
    What looks like calls and is none stays content, and `problem` says why: no quote is repaired
    and nothing is guessed. `tagged` says that the text stood after `<|python_tag|>`: there, what is
    no other call is code, unless it was `cut_off`. `parameters` names the arguments of functions in
    their order; without it an argument that has no name is a problem.

    >>> parse_calls("[mail(to='Ada', text=weather(city='Rome'))]").calls[0].arguments["text"]
    ToolCall(name='weather', arguments={'city': 'Rome'})
    >>> parse_calls("{'name': 'weather', 'parameters': {}}").problem
    'This is no JSON: Expecting property name enclosed in double quotes at character 1.'
    """
    body = text.strip()
    try:
        for looks_so, read in _FORMS:
            calls = read(body, parameters or {}) if looks_so.match(body) else ()
            if calls:
                return Parsed("", calls)
        content, tag, behind = text.partition("<function=")
        if tag and not (tagged and content.strip()):  # code may write such a text
            calls = _read_function_tags(tag + behind)
            return Parsed(content if content.strip() else "", calls)
    except ToolError as error:
        return Parsed(text, problem=str(error))
    except RecursionError:
        return Parsed(text, problem="This is nested too deeply to be a call.")
    if not tagged:
        return Parsed(text)
    if cut_off or not body:
        return Parsed(text, problem=f"The code is {'cut off' if cut_off else 'empty'}.")
    return Parsed("", (ToolCall(CODE_INTERPRETER, {"code": text}),))


def _read_json(body: str, _: Parameters) -> tuple[ToolCall, ...]:
    values: list[Any] = []
    while body:
        value, body = json_at_start(body)
        values += value if isinstance(value, list) else [value]
        body = body.lstrip(" \t\r\n;")
    calls = [call_in(value) for value in values]
    if None in calls and any(calls):
        raise ToolError(f"{short(values[calls.index(None)])} among the calls is none.")
    return tuple(call for call in calls if call is not None)  # none: an answer that is JSON


def _read_function_tags(text: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    while text:
        opening = re.match(rf"<function=({TAG_NAME})>\s*", text)
        if opening is None:
            raise ToolError(f"Here should be <function=name>{{…}}</function>: {short(text)}.")
        arguments, text = json_at_start(text[opening.end() :])
        # Meta's own test lacks the last closing tag.
        closing = re.match(r"\s*(</function>|$)[\s;,]*", text)
        if closing is None:
            raise ToolError(f"Here should be </function>: {short(text)}.")
        call = call_in({"type": "function", "name": opening[1], "parameters": arguments})
        assert call is not None
        calls.append(call)
        text = text[closing.end() :]
    return tuple(calls)


def _read_list(body: str, parameters: Parameters) -> tuple[ToolCall, ...]:
    expressions = _expressions(body)
    if len(expressions) != 1 or not isinstance(expressions[0], ast.List):
        return ()
    calls = [_value(item, parameters) for item in expressions[0].elts]
    return _all_calls(calls)


def _read_builtin(body: str, parameters: Parameters) -> tuple[ToolCall, ...]:
    expressions = _expressions(body)
    if not expressions:
        raise ToolError("The calls of built-in tools stand among other statements.")
    calls = _all_calls([_value(item, parameters) for item in expressions])
    for call in calls:
        if call.name not in BUILTIN_TOOLS:
            raise ToolError(f"{call.name} among the calls of built-in tools is none of them.")
    return calls


def _all_calls(values: list[Any]) -> tuple[ToolCall, ...]:
    for value in values:
        if not isinstance(value, ToolCall):
            raise ToolError(f"{short(value)} among the calls is none.")
    return tuple(values)


def _expressions(source: str) -> list[ast.expr]:
    """The expressions that Python source consists of; none where it has other statements."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = ast.parse(source)
    except SyntaxError as error:
        where = f" at line {error.lineno}, character {error.offset}" if error.lineno else ""
        raise ToolError(f"This is no Python: {error.msg}{where}.") from None
    except MemoryError:  # what the parser says when its stack is full, whatever the message
        raise ToolError("This is no Python: it is nested too deeply.") from None
    except ValueError as error:
        raise ToolError(f"This is no Python: {error}.") from None
    found = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    return found if len(found) == len(tree.body) else []


def _value(node: ast.expr, parameters: Parameters) -> Any:
    """What a literal, a list, a dict or a call says; nothing is evaluated."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as constant):
            return writable(constant)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=number)) if type(number) in (
            int,
            float,
        ):
            return -writable(number)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, parameters) for item in items]
        case ast.Dict(keys=keys, values=values):
            named = [(_key(key), value) for key, value in zip(keys, values, strict=True)]
            return _unique(named, parameters)
        case ast.Call():
            name = _function(node.func)
            return ToolCall(name, _unique(_arguments(node, name, parameters), parameters))
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
    raise ToolError(f"{_source(node)} is neither a value nor a call.")


_JSON_NAMES = {"true": True, "false": False, "null": None}  # models mix them in


def _function(node: ast.expr) -> str:
    name = _source(node)
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ToolError(f"{name} is no name of a function.")
    tool, _, method = name.rpartition(".")
    return tool if method == "call" and tool in BUILTIN_TOOLS else name


def _arguments(
    node: ast.Call, function: str, parameters: Parameters
) -> Iterator[tuple[Any, ast.expr]]:
    names = parameters.get(function, _BUILTIN_PARAMETERS.get(function, ()))
    for position, value in enumerate(node.args):
        if position >= len(names):
            raise ToolError(f"Argument {position + 1} of {function} has no name.")
        yield names[position], value
    for argument in node.keywords:
        if argument.arg is not None:
            yield argument.arg, argument.value
        elif isinstance(argument.value, ast.Dict):
            for key, value in zip(argument.value.keys, argument.value.values, strict=True):
                name = _key(key)
                if not isinstance(name, str):
                    raise ToolError(f"{function} has an argument named {name!r}, which is no text.")
                yield name, value
        else:
            raise ToolError(f"**{_source(argument.value)} names no arguments of {function}.")


def _key(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as constant):
            return writable(constant)
    raise ToolError(f"{_source(node) if node else '**'} is no key of a dict.")


def _unique(items: Any, parameters: Parameters) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, node in items:
        if name in found:
            raise ToolError(f"{name!r} is given twice.")
        found[name] = _value(node, parameters)
    return found


def _source(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 80 else f"{text[:79]}…"


_NAMES = "name|type|function|parameters|arguments"

# By how each begins; a form that gives no calls leaves the text to what follows.
_FORMS: tuple[tuple[re.Pattern[str], Callable[[str, Parameters], tuple[ToolCall, ...]]], ...] = (
    (re.compile(rf"""\[?\s*\{{\s*["']({_NAMES})["']\s*:"""), _read_json),
    (re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\("), _read_list),
    (re.compile(rf"({'|'.join(BUILTIN_TOOLS)})\.call\s*\("), _read_builtin),
)
