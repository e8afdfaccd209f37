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

__all__ = ["TIME_LIMIT", "Part", "TemplateError", "reads_parts", "render"]

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
    continued: str | None = None,
) -> tuple[list[Part], str]:
    """The text that a template makes, cut at the special tokens that the template wrote.

    With `continued`, a field of the last message, the text ends where this field does, without the
    white space that the template took away there; also given is as much of the field as it has.

    `variables` is what users and models say (JSON's values only), `named` what the template is told
    besides, such as `bos_token`. One thing is the template's own business: brackets that it writes
    around a text from outside, `'<|' + name + '|>'`. Raises `TemplateError`: for an error or a
    refusal of the template, a step out of the sandbox, more than `TIME_LIMIT` or what
    `llama_jax.text.sandbox` allows, and for messages that hold the name of a special token where
    the template does not hand them on as they are.

    >>> source = "{{ bos }}{% for m in messages %}{{ m.content | trim }}{{ '<eot>' }}{% endfor %}"
    >>> messages = [{"content": "not the end: <eot> "}]
    >>> render(source, {"messages": messages}, {"bos": "<bos>"}, ["<bos>", "<eot>"])
    ([(True, '<bos>'), (False, 'not the end: <eot>'), (True, '<eot>')], '')
    """
    template, now = _compiled(source), datetime.datetime.now()

    def rendered(variables: Any, tag: str) -> str:
        if continued is not None:
            variables = _tagged(variables, continued, tag)
        with _in_words("cannot be rendered"), sandbox.metered():
            pieces = template.generate(**variables, **named, strftime_now=now.strftime)
            text = sandbox.Environment.concat(pieces)
        return text if continued is None else _up_to(tag, text, continued)

    plain = rendered(variables, _TAG)
    begun = "" if continued is None else _begun(variables, continued, plain)
    return _parts(rendered, plain, source, variables, special), begun


def _parts(
    rendered: Callable[[Any, str], str],
    plain: str,
    source: str,
    variables: Mapping[str, Any],
    special: Collection[str],
) -> list[Part]:
    """`plain`, which is `rendered(variables)`, cut at what the template wrote."""
    hide, show = _substitution(special, [source, plain, *_strings(variables)])
    hidden_variables = _mapped(variables, lambda text: text.translate(hide))
    if hidden_variables == variables:
        return _cut(plain, special)
    hidden = rendered(hidden_variables, _TAG.translate(hide))
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


# Where the last message goes on: transformers' tag. Its space tells whether the template trims.
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def _tagged(variables: Mapping[str, Any], field: str, tag: str) -> dict[str, Any]:
    """The variables with the tag behind a field of the last message, or its last part."""
    *others, last = variables["messages"]
    value = last[field]
    if isinstance(value, list):
        *parts, part = value
        marked: Any = [*parts, part | {"text": part["text"] + tag}]
    else:
        marked = value + tag
    return {**variables, "messages": [*others, last | {field: marked}]}


def _up_to(tag: str, text: str, field: str) -> str:
    """The text before the tag, which ends without white space if the tag has lost its own."""
    at = text.rfind(tag.strip())
    if at < 0:
        raise TemplateError(
            f"This chat template does not write the {field} of the last message, or changes it, so "
            "that it cannot go on: leave out continue_final_message, or give template=False."
        )
    return text[:at] if text.startswith(tag, at) else text[:at].rstrip()


def _begun(variables: Mapping[str, Any], field: str, text: str) -> str:
    """What of the field the text ends with."""
    value = variables["messages"][-1][field]
    texts = [value] if isinstance(value, str) else [part["text"] for part in value]
    if texts[-1].strip() not in text:
        raise TemplateError(
            f"This chat template leaves out a part of the {field} of the last message, so that it "
            "cannot go on: leave out continue_final_message, or give template=False."
        )
    whole = "".join(texts)
    ends = [end for end in (whole, whole.rstrip(), whole.strip()) if text.endswith(end)]
    return ends[0] if ends else texts[-1].strip()


def reads_parts(source: str) -> bool:
    """Whether a template reads contents in parts: it then says "text", where the text of one is."""
    with _in_words("is no Jinja"):
        tree = _compiled(source).environment.parse(source)
    said = [node.attr for node in tree.find_all(nodes.Getattr)]
    said += [node.value for node in tree.find_all(nodes.Const)]
    return "text" in said


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
