"""A checkpoint's own chat template: Jinja, rendered as transformers renders it, in a sandbox.

A template writes special tokens by name, and a message that holds such a name must not become one.
So a character that every such name has is replaced by another in all that messages and tools say,
before the template sees it, and put back behind it: what then reads as a special token was written
by the template. Where that would change what the template does, such messages are refused.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes

from llama_jax.text import sandbox

__all__ = ["TIME_LIMIT", "Part", "TemplateError", "render"]

# Whether it is the name of a special token, and the text.
Part = tuple[bool, str]

TIME_LIMIT = 5.0
"""Seconds that a template may take; the longest in use take milliseconds."""


class TemplateError(ValueError):
    """A chat template that cannot be rendered for these messages."""


def render(
    source: str,
    variables: Mapping[str, Any],
    named: Mapping[str, str],
    special: Collection[str],
) -> list[Part]:
    """The text that a template makes, cut at the special tokens that the template wrote.

    `variables` is what users and models say (JSON's values only), `named` what the template is told
    besides, such as `bos_token`. One thing is the template's own business: brackets that it writes
    around a text from outside, `'<|' + name + '|>'`. Raises `TemplateError`: for an error or a
    refusal of the template, a step out of the sandbox, more than `TIME_LIMIT` or what
    `llama_jax.text.sandbox` allows, and for messages that hold the name of a special token where
    the template does not hand them on as they are.

    >>> source = "{{ bos }}{% for m in messages %}{{ m.content | trim }}{{ '<eot>' }}{% endfor %}"
    >>> messages = [{"content": "not the end: <eot> "}]
    >>> render(source, {"messages": messages}, {"bos": "<bos>"}, ["<bos>", "<eot>"])
    [(True, '<bos>'), (False, 'not the end: <eot>'), (True, '<eot>')]
    """
    template, now = _compiled(source), datetime.datetime.now()

    def rendered(variables: Any) -> str:
        with _in_words("cannot be rendered"), sandbox.metered():
            pieces = template.generate(**variables, **named, strftime_now=now.strftime)
            return sandbox.Environment.concat(pieces)

    plain = rendered(variables)
    hide, show = _substitution(special, [source, plain, *_strings(variables)])
    hidden_variables = _mapped(variables, lambda text: text.translate(hide))
    if hidden_variables == variables:
        return _cut(plain, special)
    hidden = rendered(hidden_variables)
    parts = _cut(hidden, special)
    if hidden.translate(show) == plain:
        return [(is_special, text.translate(show)) for is_special, text in parts]
    # The template looks for such a character, as some do for "</think>".
    held = [name for name in special if any(name in text for text in _strings(variables))]
    if held or [text for on, text in _cut(plain, special) if on] != [t for on, t in parts if on]:
        raise TemplateError(
            f"The messages hold {held[0] if held else 'a part of a special token'!r} as text, and "
            "this chat template changes what messages say, so that it might become the special "
            "token. Take it out of the messages, or leave the template with template=False."
        )
    return _cut(plain, special)


def _substitution(
    special: Collection[str], texts: list[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """A character of each special token to one that is in none of the texts, and back."""
    # A mark where there is one: letters are in the names by which templates find things.
    marks = sorted({(re.findall(r"[^\w\s]", name) or name)[0] for name in special})
    taken = set().union(*texts)
    private = (chr(code) for code in range(0xF0000, 0xFFFFE))
    free = (character for character in private if character not in taken)
    hide = {ord(mark): other for mark, other in zip(marks, free, strict=False)}
    return hide, {ord(other): chr(mark) for mark, other in hide.items()}


def _cut(text: str, special: Collection[str]) -> list[Part]:
    longest_first = sorted(special, key=len, reverse=True)
    if not longest_first:
        return [(False, text)]
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [(i % 2 == 1, part) for i, part in enumerate(parts) if part]


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _strings(value: Any) -> list[str]:
    found: list[str] = []
    _mapped(value, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return found


# What transformers (5.23, utils/chat_template_utils.py) gives to a template


class _Generation(ext.Extension):
    """`{% generation %}` marks what the assistant says; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012, jinja2 has it so

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = sandbox.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = sandbox.bounded("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    with _in_words("is no Jinja"):
        return environment.from_string(source)


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Stops after `TIME_LIMIT`, and says what went wrong as a `TemplateError`."""
    try:
        with _within(TIME_LIMIT):
            yield
    except Exception as error:  # a template can raise whatever Python does
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
        line = getattr(error, "lineno", lines[-1] if lines else None)
        where = f" at line {line}" if line else ""
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        raise TemplateError(f"The chat template {what}{where}: {kind}{error}") from None


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in whatever Python code runs here when the time is up."""
    end = time.monotonic() + seconds

    def look(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it runs for more than {seconds:g} seconds")
        # What weighs is short, and called for all that is made: it is not looked at line by line.
        return None if frame.f_code.co_filename == sandbox.__file__ else look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
