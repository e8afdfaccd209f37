"""Jinja for templates of strangers, who can neither reach out of it nor use up the machine.

jinja2's sandbox keeps a template from Python's insides. What it leaves open is size: one call such
as `'a' | center(2000000000)` fills the memory, and no clock interrupts it. So what an operation
makes is weighed, and where a few characters can make many, as in padding, before it is made.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import re
import string
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import compiler, nodes, runtime, sandbox
from jinja2.exceptions import SecurityError

__all__ = ["MEMORY_LIMIT", "SIZE_LIMIT", "Environment", "metered"]

SIZE_LIMIT = 4_000_000
"""Characters of one text, also of the prompt: several times what a Llama 3 has positions for."""

MEMORY_LIMIT = 2**28
"""Bytes of all that a template makes on its way, taken together."""

_ITEM = 10  # characters that an item of a list counts for besides its own
_WORK = 250  # characters that are compared in the time in which one is made
_LARGEST = 2**61  # from here on integers can be chosen so that a dict of them takes quadratic time
_DIGITS = 400  # that are rounded to: 10 to that power is computed
_TOO_MUCH = SIZE_LIMIT + 1

_OF_JINJA = ("_loop_vars", "_block_vars")  # that it adds to a call's arguments for itself

# Concrete ones: to ask whether something is of an abstract type takes long.
_VIEWS: Any = type({}.keys()) | type({}.values()) | type({}.items())
_COLLECTIONS: Any = list | tuple | set | frozenset | _VIEWS


@dataclasses.dataclass
class _Meter:
    bytes: int = 0


_meter: contextvars.ContextVar[_Meter | None] = contextvars.ContextVar("meter", default=None)


@contextlib.contextmanager
def metered() -> Iterator[None]:
    """Within it, what templates make counts together towards `MEMORY_LIMIT`."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


class Environment(sandbox.ImmutableSandboxedEnvironment):
    """Its templates raise `SecurityError` where they would make something too large.

    Filters that are set later go through `bounded`.
    """

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # Nothing is computed while compiling: not by the optimizer, nor for what is printed.
        super().__init__(optimized=False, finalize=_as_it_is, **options)
        self.filters = {name: bounded(name, f) for name, f in self.filters.items()}
        self.filters["sum"] = bounded("sum", _sum)

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **named: Any) -> Any:
        arguments = [_listed(argument) for argument in args]
        named = {name: _listed(argument) for name, argument in named.items()}
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", None)
        grows = _METHODS.get(name) if isinstance(name, str) else None
        if grows is not None:
            said = {key: value for key, value in named.items() if key not in _OF_JINJA}
            _check(f"{name}()", grows(*([] if owner is None else [owner]), *arguments, **said))
        return made(super().call(__context, __obj, *arguments, **named))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            _check("%", _percent(left, right))
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(sequence, int | float):
                _check("*", _length(sequence) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check("**", _TOO_MUCH if abs(right) * left.bit_length() > 64 else 0)
        return made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def format(*args: Any, **named: Any) -> str:
            _check("format()", _braces(value.__self__, (args, named)))
            return wrapped(*args, **named)

        return format

    @staticmethod
    def made(value: Any) -> Any:
        return made(value)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What a macro or a block has written."""
        texts, size = [], 0
        for piece in pieces:
            texts.append(piece)
            size += len(piece)
            _check("a text", size)
        return made("".join(texts))

    @classmethod
    def joined(cls, parts: tuple[Any, ...]) -> str:
        """The operator `~`."""
        return cls.concat(map(str, parts))


class _Code(compiler.CodeGenerator):
    """Python of a template, in which what an expression makes goes through `made`."""

    def visit_Concat(self, node: nodes.Concat, frame: compiler.Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: compiler.Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: compiler.Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: compiler.Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:  # what is assigned to
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: compiler.Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _made(
        self, visit: Callable[[Any, compiler.Frame], None], node: Any, frame: compiler.Frame
    ) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


Environment.code_generator_class = _Code


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter of this name, which raises `SecurityError` rather than make something large."""
    grows, skipped = _FILTERS.get(name), int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def filtered(*args: Any, **named: Any) -> Any:
        arguments = [_listed(argument) for argument in args]
        if grows is not None:
            _check(f"| {name}", grows(*arguments[skipped:], **named))
        return made(function(*arguments, **named))

    return filtered


def made(value: Any) -> Any:
    """`value`, which a template has just made, if it is not too large."""
    if isinstance(value, str | bytes):
        size, held = len(value), sys.getsizeof(value)
    elif isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise SecurityError(f"it computes a number of {value.bit_length()} bits")
        return value
    elif isinstance(value, dict | _COLLECTIONS):
        size, held = weight(value), 8 * len(value)
    else:
        return value
    _check("a value", size)
    meter = _meter.get()
    if meter is not None:
        meter.bytes += held
        if meter.bytes > MEMORY_LIMIT:
            raise SecurityError(f"it makes more than {MEMORY_LIMIT >> 20} MiB of texts and lists")
    return value


def weight(value: Any) -> int:
    """About as many characters as the value has when it is written; `SecurityError` beyond."""
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        inside: Collection[Any] = ()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, dict):
            inside = [*item.keys(), *item.values()]
        elif isinstance(item, _COLLECTIONS):
            inside = item
        elif isinstance(item, jinja2.utils.Namespace):
            inside = [item._Namespace__attrs]
        size += _ITEM * (len(inside) + 1)
        _check("a value", size)
        waiting.extend(inside)
    return size


def _check(what: str, size: int) -> None:
    if size > SIZE_LIMIT:
        raise SecurityError(f"{what} becomes too large, of more than {SIZE_LIMIT:,} characters")


def _listed(value: Any) -> Any:
    """A list of what comes one by one, so that it can be weighed; anything else as it is."""
    if not hasattr(type(value), "__next__") or isinstance(value, runtime.LoopContext):
        return value
    items, size = [], 0
    for item in value:
        size += weight(item)
        _check("a value", size)
        items.append(item)
    return items


@jinja2.pass_context
def _as_it_is(context: runtime.Context, value: Any) -> Any:
    return value


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    """jinja2's own adds lists in one step, in a time that grows with the square."""
    get = jinja2.filters.make_attrgetter(environment, attribute)
    for item in iterable:
        start = made(start + (item if attribute is None else get(item)))
    return start


# How large what a function can make is, from the arguments that it gets, by jinja2's names for them


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else weight(value)


def _padded(value: Any, width: int = 80, *fill: Any) -> int:
    return max(_length(value), width)


def _tabs(text: str | bytes, tabsize: int = 8) -> int:
    return len(text) + text.count("\t" if isinstance(text, str) else b"\t") * tabsize  # type: ignore


def _indented(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    by = len(width) if isinstance(width, str) else width
    return _length(s) + (len(str(s).splitlines()) + 1) * max(by, 0)


def _replaced(s: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old = (s, old) if isinstance(s, bytes) else (str(s), str(old))
    return len(text) + text.count(old) * _length(new)


def _joined(value: Any, d: Any = "", attribute: Any = None) -> int:
    if isinstance(value, str | bytes) and isinstance(d, str | bytes):
        return (len(value) + 1) * (len(d) + 1)
    items, between = (d, value) if isinstance(value, str | bytes) else (value, d)
    count = len(items) if isinstance(items, dict | range | _COLLECTIONS) else 0
    return weight(items) + count * _length(between)


def _batched(value: Any, count: int, fill_with: Any = None) -> int:
    return weight(value) + count * (1 + _length(fill_with or ""))


def _wrapped(
    s: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> int:
    return _length(s) * (1 + _length(wrapstring or " "))


def _rounded(value: Any, precision: int = 0, method: str = "common") -> int:
    return _TOO_MUCH if abs(precision) > _DIGITS else 0


def _json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> int:
    by = len(indent) if isinstance(indent, str) else max(indent or 0, 0)
    size, between = weight(x), max(map(len, separators), default=0) if separators else 0
    return size + _nodes(x) * (between + by * (_depth(x) if by else 0))


def _linked(
    value: Any,
    trim_url_limit: Any = None,
    nofollow: bool = False,
    target: Any = None,
    rel: Any = None,
    extra_schemes: Any = None,
) -> int:
    return _length(value) * (10 + _length(target or "") + _length(rel or ""))


def _lorem(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> int:
    return n * max * 20


def _translated(text: str, table: Any) -> int:
    values = table.values() if isinstance(table, dict) else table
    return len(text) * max((_length(value) for value in values), default=1)


def _stripped(value: Any, chars: Any = None) -> int:
    return _length(value) * _length(chars or "") // _WORK


def _searched(text: Any, sep: Any = None, *rest: Any, **named: Any) -> int:
    return _length(text) * _length(sep or "") // _WORK


def _percent(text: str | bytes, values: Any) -> int:
    """Of the operator %: with a width, as in `%80s`, and perhaps one value several times."""
    written = text.decode("latin-1") if isinstance(text, bytes) else text
    fields = re.findall(r"%(?:\([^)]*\))?[#0 +-]*(\*|\d*)(?:\.(\*|\d*))?", written)
    if any("*" in field for field in fields) or re.search(r"%\([^)]*\(", written):
        return _TOO_MUCH  # a width that is a value, and a name in which the width can be hidden
    times = len(fields) if isinstance(values, dict) else 1
    return len(text) + sum(map(_number, (n for f in fields for n in f))) + times * weight(values)


def _formatted(value: Any, *args: Any, **kwargs: Any) -> int:
    return _percent(str(value), kwargs or args)


def _braces(text: str, values: Any) -> int:
    """Of `str.format`: with a width, as in `{:80}`."""
    fields = [spec or "" for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    if any("{" in spec for spec in fields):
        return _TOO_MUCH  # a width that is a value
    widths = sum(_number(n) for spec in fields for n in re.findall(r"\d+", spec))
    return len(text) + widths + len(fields) * weight(values)


def _number(digits: str) -> int:
    return int(digits[:10] or 0)  # Python reads no more than some thousand


def _nodes(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(_nodes, inside)) if isinstance(value, _CONTAINERS) else 1


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inside), default=0) if isinstance(value, _CONTAINERS) else 0


_CONTAINERS = (dict, list, tuple)

_METHODS: dict[str, Callable[..., int]] = {
    "expandtabs": _tabs,
    "generate_lorem_ipsum": _lorem,
    "join": _joined,
    "replace": _replaced,
    "strftime": lambda date, format: 256 * len(format),
    "to_bytes": lambda number, length=1, *rest, **named: length,
    "translate": _translated,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _stripped),
    # From the right Python compares each character with each.
    **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), _searched),
}

_FILTERS: dict[str, Callable[..., int]] = {
    "batch": lambda value, linecount, fill_with=None: _batched(value, linecount, fill_with),
    "center": _padded,
    "format": _formatted,
    "indent": _indented,
    "join": _joined,
    "pprint": lambda value: _json(value, indent=1),
    "replace": _replaced,
    "round": _rounded,
    "slice": lambda value, slices, fill_with=None: _batched(value, slices, fill_with),
    "tojson": _json,
    "trim": _stripped,
    "urlize": _linked,
    "wordwrap": _wrapped,
}
