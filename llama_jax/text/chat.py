"""Chats: messages to the tokens of a prompt.

A checkpoint's own chat template is used where it brings one. Else this is the format of Llama 3.1:

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello!<|eot_id|><|start_header_id|>assistant<|end_header_id|>

`<|eot_id|>` ends a turn; `<|eom_id|>` ends a message after which a tool's result is expected.

Meta's encoder (`llama_models`) and Hugging Face's template for Llama 3.1 differ, and here:

- Content stays as it is, as Meta has it; Hugging Face trims it, and writes a tool's result that is
  text as JSON, in quotes.
- A system message is written where one is given, or tools or dates are; Hugging Face always writes
  one, with the dates December 2023 and 26 Jul 2024.
- Functions are described in a user message of their own, as in Meta's prompts; Hugging Face puts
  them into the first user message, in other words.
- What stands after `<|python_tag|>` in Meta's prompts stands after it here. Meta's encoder writes
  it before code alone, Hugging Face's template before built-in tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.text.calls import ToolCall, ToolError, ToolFormat, has_own_form, write_calls
from llama_jax.text.reply import Reply
from llama_jax.text.template import Part, reads_parts, render
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.text.tools import Tool, Tools, instructions, read_tools, system_header

__all__ = ["ChatError", "ChatPrompt", "chat_prompt", "encode_chat"]

ROLES = ("system", "user", "assistant", "ipython", "tool")  # "tool" is written as ipython


class ChatError(ValueError):
    """Messages that make no chat, or a vocabulary that has no tokens for it."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] | None = None,
    *,
    tool_format: ToolFormat = "json",
    knowledge_cutoff: str | None = None,
    today: str | None = None,
    template: bool | str = True,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | str = False,
) -> list[int]:
    """The tokens of a chat, up to the header of the assistant's reply.

    A message is `{"role": …, "content": text}` with the roles system, user, assistant, and ipython
    or tool for a tool's result. The content may be in parts, `[{"type": "text", "text": …}, …]`: a
    template that knows parts gets them, all else the text that they make. An assistant's may have
    `tool_calls` (`ToolCall`, or dicts as `ToolCall.from_dict` reads them) and say how it `ended`,
    "eot" or "eom"; without that, calls after `<|python_tag|>` end in eom, and all else in eot.
    Special tokens come from the format alone: their names in a message, a tool or a call stay
    plain text.

    `tools` are names of built-in ones and functions as JSON schemas. `tool_format` says how
    functions are described and called: `"json"` and `"function_tag"` are of Llama 3.1,
    `"pythonic"` of 3.2 and 3.3. `knowledge_cutoff` and `today` are texts such as "26 July 2024";
    no date is written that is not given.

    `template` is True for the checkpoint's own template if it has one, False for Llama 3.1's
    format, or the name of one of several, or the text of one. A template gets what transformers
    gives it, with built-in tools as `builtin_tools` and `today` as `date_string`; whether it writes
    BOS is its own business.

    `add_generation_prompt` says whether the header of a reply follows. With
    `continue_final_message` none does, and the last message is left open, so that what is written
    goes on from it; as in transformers' `apply_chat_template` white space at its end stays unless
    the template takes it away, and a name is that of another field to continue than "content".
    Raises `ChatError`, `ToolError`, `TemplateError`, `TokenError`.

    >>> from llama_jax import Llama
    >>> tokenizer = Llama.from_pretrained("cria").tokenizer
    >>> tokenizer.pieces(encode_chat(tokenizer, [{"role": "user", "content": "<|eot_id|>"}]))
    ['<|begin_of_text|>', '<|start_header_id|>', 'user', ..., '<', '|', 'e', 'ot', '_', 'id', '|',
     '>', '<|eot_id|>', '<|start_header_id|>', 'assistant', '<|end_header_id|>', '\\n\\n']
    """
    return chat_prompt(
        tokenizer,
        messages,
        tools,
        tool_format=tool_format,
        knowledge_cutoff=knowledge_cutoff,
        today=today,
        template=template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    ).tokens


class ChatPrompt(NamedTuple):
    """The tokens of a chat, and what of the final message is written already, where it goes on."""

    tokens: list[int]
    begun: str = ""


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] | None,
    *,
    tool_format: ToolFormat,
    knowledge_cutoff: str | None,
    today: str | None,
    template: bool | str,
    add_generation_prompt: bool | None,
    continue_final_message: bool | str,
) -> ChatPrompt:
    """See `encode_chat`."""
    for name, date in (("knowledge_cutoff", knowledge_cutoff), ("today", today)):
        if date is not None and not isinstance(date, str):
            raise ChatError(f'{name} is {date!r}; it must be text, such as "26 July 2024".')
    turns, offered = _turns(messages), read_tools(tools)
    field, opens = _continued(turns, messages, continue_final_message, add_generation_prompt)
    told = instructions(offered, tool_format)
    source = _template(tokenizer, template, offered)
    if source is None:
        if field not in (None, "content"):
            raise ChatError(
                f"continue_final_message is {field!r}: the format of Llama 3.1 has content only; "
                "give True, or a template that has more."
            )
        turns = _with_tools(turns, offered, told, tool_format, knowledge_cutoff, today)
        parts = list(_dialog(turns, tool_format, opens, field is not None))
        begun = turns[-1].content if field else ""
    else:
        if knowledge_cutoff is not None or (told and tool_format != "json"):
            what = "knowledge_cutoff" if knowledge_cutoff is not None else "tool_format"
            raise ChatError(
                f"{what}: this checkpoint's chat template has its own way; leave it out, or give "
                "template=False for the format of Llama 3.1."
            )
        variables = _variables(messages, offered, today, opens)
        if not reads_parts(source):
            for message, turn in zip(variables["messages"], turns, strict=True):
                if isinstance(message.get("content"), list):
                    message["content"] = turn.content
        parts, begun = render(source, variables, tokenizer.named_tokens, tokenizer.special, field)
    for is_special, text in parts:
        if is_special and text not in tokenizer.special:
            raise ChatError(
                f"This vocabulary has no {text}, which this chat needs: is it one of Llama 3.1 or "
                "later? Another format can be given as template=, a Jinja text."
            )
    return ChatPrompt(tokenizer.encode_parts(parts), begun)


def _continued(
    turns: list[_Turn],
    messages: Sequence[Mapping[str, Any]],
    wanted: bool | str,
    add_generation_prompt: bool | None,
) -> tuple[str | None, bool]:
    """The field of the final message that goes on, or None; and whether a reply's header follows.

    Only the final message can be left open.
    """
    if not isinstance(wanted, bool | str):
        raise ChatError(
            f"continue_final_message is {wanted!r}; it must be True, False or a field's name."
        )
    if not wanted:
        return None, add_generation_prompt is None or bool(add_generation_prompt)
    if add_generation_prompt:
        raise ChatError(
            "continue_final_message goes on from the last message, add_generation_prompt begins a "
            "new one: give one of them."
        )
    field = "content" if wanted is True else wanted
    place = f"messages[{len(turns) - 1}]"
    if turns[-1].calls:
        raise ChatError(f"{place} has tool_calls, behind which its {field} cannot go on.")
    value = messages[-1].get(field)
    if not (isinstance(value, str) or (field == "content" and value)):
        raise ChatError(f"{place} has no {field} to go on from.")
    return field, False


class _Turn(NamedTuple):
    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    ended: str | None = None


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[_Turn]:
    if isinstance(messages, str | Mapping) or not messages:
        raise ChatError(
            'Messages are a list, [{"role": "user", "content": "…"}], of at least one; these are '
            f"{messages!r}."
        )
    return [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _turn(message: Any, place: str) -> _Turn:
    if not isinstance(message, Mapping):
        hint = ": append its .message" if isinstance(message, Reply) else ""
        raise ChatError(
            f"{place} is a {type(message).__name__}{hint}; a message is "
            '{"role": "user", "content": "…"}.'
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ChatError(f"{place} has the role {role!r}; roles are {', '.join(ROLES)}.")
    calls = message.get("tool_calls") or ()
    if calls and role != "assistant":
        raise ChatError(
            f"{place} is of the {role} and has tool_calls, which only an assistant has."
        )
    if content is None and calls:
        content = ""
    if isinstance(content, list | tuple):
        content = "".join(_text_of(part, f"{place}, part {i}") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise ChatError(
            f"{place} has content of type {type(content).__name__}; it must be text, or parts "
            '[{"type": "text", "text": "…"}].'
        )
    ended = message.get("ended")
    if ended not in (None, "eot", "eom"):
        raise ChatError(f'{place} ended with {ended!r}; a message ends with "eot" or "eom".')
    try:
        read = [c if isinstance(c, ToolCall) else ToolCall.from_dict(c) for c in calls]
    except ToolError as error:
        raise ToolError(f"{place}: {error}") from None
    return _Turn(role, content, tuple(read), ended)


def _text_of(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or kind != "text":
        raise ChatError(f'{place} is of type {kind!r}; this model reads {{"type": "text"}} only.')
    if not isinstance(part.get("text"), str):
        raise ChatError(f"{place} has a text of type {type(part.get('text')).__name__}.")
    return part["text"]


# The format of Llama 3.1

_PYTHON_TAG = "<|python_tag|>"


def _with_tools(
    turns: list[_Turn],
    tools: Tools,
    told: str,
    format: ToolFormat,
    knowledge_cutoff: str | None,
    today: str | None,
) -> list[_Turn]:
    """The turns, with what the model is told of tools and dates."""
    system = [turns[0]] if turns[0].role == "system" else []
    in_system, apart = (told, "") if format == "pythonic" else ("", told)
    texts = [system_header(tools, format, knowledge_cutoff, today), in_system]
    text = "\n\n".join(filter(None, [*texts, *(turn.content for turn in system)]))
    first = [_Turn("system", text)] if text or system else []
    return [*first, *([_Turn("user", apart)] if apart else []), *turns[len(system) :]]


def _dialog(
    turns: list[_Turn], format: ToolFormat, add_generation_prompt: bool, left_open: bool
) -> Iterator[Part]:
    ipython = any(
        turn.role == "system" and "Environment: ipython" in turn.content.splitlines()
        for turn in turns
    )
    yield True, "<|begin_of_text|>"
    for i, turn in enumerate(turns):
        yield from _header("ipython" if turn.role == "tool" else turn.role)
        yield False, turn.content
        if left_open and i == len(turns) - 1:
            return
        tagged = has_own_form(turn.calls) or (turn.calls and format == "json" and ipython)
        if tagged:
            yield True, _PYTHON_TAG
        if turn.calls:
            yield False, write_calls(turn.calls, format)
        waits = tagged if turn.ended is None else turn.ended == "eom"
        yield True, "<|eom_id|>" if waits else "<|eot_id|>"
    if add_generation_prompt:
        yield from _header("assistant")


def _header(role: str) -> Iterator[Part]:
    yield True, "<|start_header_id|>"
    yield False, role
    yield True, "<|end_header_id|>"
    yield False, "\n\n"  # by itself: a content that begins with a line feed does not join it


# A checkpoint's own template


def _template(tokenizer: Tokenizer, wanted: bool | str, tools: Tools) -> str | None:
    """The text of the template that is wanted; None for the format of Llama 3.1."""
    if wanted is False or (wanted is True and not tokenizer.chat_templates):
        return None
    templates = tokenizer.chat_templates
    if wanted is True:
        wanted = "tool_use" if tools.functions and "tool_use" in templates else "default"
    if wanted in templates:
        return templates[wanted]
    if "{" in wanted:
        return wanted
    known = ", ".join(map(repr, templates)) or "none"
    raise ChatError(
        f"There is no chat template {wanted!r} in the tokenizer's files; there are: {known}."
    )


def _variables(
    messages: Sequence[Mapping[str, Any]],
    tools: Tools,
    today: str | None,
    add_generation_prompt: bool,
) -> dict[str, Any]:
    """What transformers gives to a template, as far as it is said by users and models."""
    data: dict[str, Any] = {
        "messages": [{k: v for k, v in _data(m).items() if v is not None} for m in messages],
        "tools": [{"type": "function", "function": _data(f)} for f in tools.functions] or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    if tools.builtin:
        data["builtin_tools"] = list(tools.builtin)
    if today is not None:
        data["date_string"] = today
    return data


def _data(value: Any) -> Any:
    """A copy in JSON's values, which have no method that a template could misuse."""

    def known(value: Any) -> Any:
        if isinstance(value, ToolCall):
            return value.to_dict()
        if isinstance(value, Mapping):
            return dict(value)
        raise ChatError(f"A message holds a {type(value).__name__}, which is no value of JSON.")

    try:
        return json.loads(json.dumps(value, default=known))
    except ChatError:
        raise
    except RecursionError:
        raise ChatError("A message is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise ChatError(f"A message is no JSON: {error}.") from None
