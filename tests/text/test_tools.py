"""Tool calls to text and back, by syntax alone."""

import builtins
import json
import math
import random
import re
import subprocess

import pytest

from llama_jax.text import ToolCall, ToolError, parse_calls, write_calls
from llama_jax.text.tools import read_tools

FORMATS = ("json", "function_tag", "pythonic")


def parsed(text, **arguments):
    content, calls, problem = parse_calls(text, **arguments)
    assert problem is None and content == ""
    return calls


def problem(text, **arguments):
    content, calls, problem = parse_calls(text, **arguments)
    assert problem is not None and calls == () and content == text
    return problem


def is_plain(text):
    return parse_calls(text) == (text, (), None)


# Writing


def test_each_format_writes_several_calls():
    calls = [ToolCall("weather", {"city": "Rome", "days": 2}), ToolCall("now")]
    assert write_calls(calls, "json") == (
        '{"type": "function", "name": "weather", "parameters": {"city": "Rome", "days": 2}}; '
        '{"type": "function", "name": "now", "parameters": {}}'
    )
    assert write_calls(calls, "function_tag") == (
        '<function=weather>{"city": "Rome", "days": 2}</function><function=now>{}</function>'
    )
    assert write_calls(calls, "pythonic") == '[weather(city="Rome", days=2), now()]'


@pytest.mark.parametrize("format", FORMATS)
def test_builtin_tools_and_code_have_a_form_of_their_own(format):
    search = ToolCall("brave_search", {"query": 'a "b"'})
    assert write_calls([search], format) == r'brave_search.call(query="a \"b\"")'
    both = [search, ToolCall("wolfram_alpha", {"query": "2+2"})]
    assert parsed(write_calls(both, format)) == tuple(both)
    code = ToolCall("code_interpreter", {"code": 'print("a")\n'})
    assert write_calls([code], format) == 'print("a")\n'
    # Among others they are functions like any:
    mixed = [search, code, ToolCall("weather", {})]
    assert parsed(write_calls(mixed, format)) == tuple(mixed)


@pytest.mark.parametrize("value", [math.inf, math.nan, {1, 2}, b"x", object(), [10**5000]])
@pytest.mark.parametrize("format", FORMATS)
def test_what_json_has_no_word_for_cannot_be_written(value, format):
    with pytest.raises(ToolError):
        write_calls([ToolCall("f", {"x": value})], format)


def test_names_that_a_format_cannot_hold_are_errors():
    with pytest.raises(ToolError, match="'a b' is no name of a Python function"):
        write_calls([ToolCall("a b")], "pythonic")
    with pytest.raises(ToolError, match="'a>b' cannot stand in <function=…>"):
        write_calls([ToolCall("a>b")], "function_tag")
    with pytest.raises(ToolError, match="'yaml'; there are 'json', 'function_tag', 'pythonic'"):
        write_calls([ToolCall("f")], "yaml")


# Round trips

PIECES = [
    *"[](){}<>;,.:=#'\"\\/ \n\t\r\x00\x7f\u2028",
    *(
        "é",
        "日本",
        "👩🏽‍🚀",
        "ﬁ",
        "\\n",
        "\\'",
        "'''",
        '"""',
        "f(x=1)",
        "</function>",
        "<function=g>",
    ),
    *("<|eot_id|>", "<|python_tag|>", "null", "True", "{'a': 1}", '{"name": "f"}', "; ", "**"),
    *("\ufeff", "\ud7ff", "\U0010ffff", "a", "b", "word "),
]


def text(draw):
    return "".join(draw.choices(PIECES, k=draw.randrange(8)))


def value(draw, depth=0):
    kind = draw.randrange(6 if depth > 2 else 9)
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {text(draw): value(draw, depth + 1) for _ in range(draw.randrange(4))}
    if kind == 8:
        return tool_call(draw, depth + 1)
    scalars = (None, draw.random() < 0.5, draw.randrange(-(10**20), 10**20), draw.gauss(0, 1e9))
    return scalars[kind] if kind < 4 else text(draw)


def tool_call(draw, depth=0):
    names = ["x", "query", "class", "is-not", "日本", "ﬁ", "None", "", text(draw)]
    arguments = {draw.choice(names): value(draw, depth) for _ in range(draw.randrange(4))}
    return ToolCall(draw.choice(["f", "get_weather", "math.sin", "_x1"]), arguments)


@pytest.mark.parametrize("format", FORMATS)
def test_any_calls_read_back_as_they_were_written(format):
    draw = random.Random(0)
    for _ in range(400):
        calls = tuple(tool_call(draw) for _ in range(draw.randrange(1, 4)))
        written = write_calls(calls, format)
        assert parsed(written) == calls, written
        assert parsed(f" \n{written}\n", tagged=True) == calls, written


def test_any_query_of_a_builtin_tool_reads_back():
    draw = random.Random(1)
    for _ in range(400):
        calls = (ToolCall("brave_search", {"query": text(draw)}),) * draw.randrange(1, 3)
        assert parsed(write_calls(calls), tagged=True) == calls


def test_any_call_reads_back_from_a_message():
    draw = random.Random(2)
    for _ in range(400):
        call = tool_call(draw)
        message = json.loads(json.dumps(call.to_dict()))
        assert ToolCall.from_dict(message) == call


# Reading


def test_nested_calls_are_calls_in_the_arguments():
    inner = ToolCall("weather", {"city": "Rome"})
    [call] = parsed("[mail(to=['Ada'], text=summary(of=weather(city='Rome')))]")
    assert call == ToolCall("mail", {"to": ["Ada"], "text": ToolCall("summary", {"of": inner})})
    [call] = parsed(
        '{"name": "mail", "parameters": {"text": '
        '{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}}}'
    )
    assert call.arguments["text"] == inner


def test_literals_of_python_and_the_names_of_json_are_values():
    [call] = parsed(
        "[f(a=-1, b=-2.5e3, c=(1, 'x'), d={'k': [True, None]}, e=true, f=null, g='a' 'b')]"
    )
    assert call.arguments == {
        "a": -1,
        "b": -2500.0,
        "c": [1, "x"],
        "d": {"k": [True, None]},
        "e": True,
        "f": None,
        "g": "ab",
    }


def test_a_positional_argument_takes_its_name_from_the_tool():
    tools = read_tools([{"name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}])
    assert parsed("[f(1, b=2)]", parameters=tools.parameters) == (ToolCall("f", {"a": 1, "b": 2}),)
    assert problem("[f(1)]") == "Argument 1 of f has no name."
    assert problem("[f(1, a=2)]", parameters=tools.parameters) == "'a' is given twice."
    assert parsed('wolfram_alpha.call("2+2")') == (ToolCall("wolfram_alpha", {"query": "2+2"}),)


@pytest.mark.parametrize(
    "json_call",
    [
        '{"name": "f", "parameters": {"x": {"y": {"z": 1}}}}',
        '{"parameters": {"x": {"y": {"z": 1}}}, "name": "f"}',
        '{"type": "function", "function": {"name": "f", "parameters": {"x": {"y": {"z": 1}}}}}',
        '{"name": "f", "arguments": "{\\"x\\": {\\"y\\": {\\"z\\": 1}}}"}',
    ],
)
def test_json_calls_come_in_several_shapes(json_call):
    call = ToolCall("f", {"x": {"y": {"z": 1}}})
    assert parsed(json_call) == (call,)
    assert parsed(f"[{json_call}, {json_call}]") == (call, call)
    assert parsed(f"{json_call}; {json_call}") == parsed(f"{json_call}\n{json_call}") == (call,) * 2


def test_content_may_stand_before_function_tags():
    content, calls, _ = parse_calls('Let me look.\n<function=f>{"x": "}</function>"}</function>\n')
    assert content == "Let me look.\n" and calls == (ToolCall("f", {"x": "}</function>"}),)
    assert parsed('<function=f>{"x": {"y": 1}}') == (ToolCall("f", {"x": {"y": 1}}),)


def test_what_stands_after_the_tag_and_is_no_other_call_is_code():
    for code in (
        "print(1)",
        "[print(i) for i in range(3)]",
        "import os\nos.getcwd()",
        "{1: 2}",
        "x",
    ):
        assert parsed(code, tagged=True) == (ToolCall("code_interpreter", {"code": code}),)
        assert is_plain(code)


def test_code_may_write_of_function_tags():
    code = "print('<function=f>{}')"
    assert parsed(code, tagged=True) == (ToolCall("code_interpreter", {"code": code}),)


def test_code_that_was_cut_off_is_no_call():
    assert problem("rm('/tmp/", tagged=True, cut_off=True) == "The code is cut off."
    assert problem("", tagged=True) == "The code is empty."
    whole = 'brave_search.call(query="x")'
    assert parsed(whole, tagged=True, cut_off=True) == (ToolCall("brave_search", {"query": "x"}),)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Rome is sunny.",
        "[1, 2, 3]",
        "[]",
        '{"city": "Rome"}',
        '{"name": "Rosa", "age": 3}',
        '{"type": "person", "name": "Rosa"}',
        "f(x=1)",
        "[see](https://example.org)",
        "I would use brave_search.call(query=…).",
        "[f(x=1)][0]",
    ],
)
def test_other_answers_are_content(answer):
    assert is_plain(answer)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{'name': 'f', 'parameters': {}}", "no JSON: Expecting property name enclosed in double"),
        ('{"name": "f", "parameters": {"x": "it\'s}', "no JSON: Unterminated string"),
        ('{"name": "f", "parameters": {"x": NaN}}', "NaN is no number of JSON"),
        ('{"name": "f", "parameters": {"x": 1e999}}', "inf is not finite"),
        ('{"name": "f", "parameters": {"x": 1, "x": 2}}', "a name twice"),
        ('{"name": "f", "parameters": [1]}', r"arguments of f are \[1\]"),
        ('{"name": "f", "parameters": {}} Done.', "no JSON: Expecting value"),
        ('{"name": "f", "parameters": {}}; {"x": 1}', r"\{'x': 1\} among the calls is none"),
        ('{"type": "function", "parameters": {}}', "has no name"),
        ('{"name": "f", "parameters": {"x": "\\ud83d"}}', "half of a surrogate pair"),
        ("[f(x=1", r"no Python: '\(' was never closed at line 1"),
        ("[f(x=1), 42]", "42 among the calls is none"),
        ("[f(x=1 + 1)]", r"1 \+ 1 is neither a value nor a call"),
        ("[f(x=y)]", "y is neither"),
        ("[f(x=lambda: 1)]", "lambda: 1 is neither"),
        ("[f(x=f'{1}')]", "is neither"),
        ("[f(x=[*y])]", "is neither"),
        ("[f(x=-True)]", "-True is neither"),
        ("[f(x=1, **y)]", r"\*\*y names no arguments"),
        ("[f(**{**y})]", r"\*\* is no key"),
        ("[f(x={[1]: 1})]", r"\[1\] is no key"),
        ("[f(x=1, x=2)]", "'x' is given twice"),
        ("[f(x=1)(y=2)]", r"f\(x=1\) is no name of a function"),
        ("[f(x=1e999)]", "inf is not finite"),
        (f"[f(x=0x{'f' * 9999})]", "too long"),
        ("[f(x=1)\x00]", "no Python: source code string cannot contain null bytes"),
        (f"[f(x={'-' * 10**5}1)]", "nested too deeply"),
        (f"[f(x={'1+' * 10**5}1)]", "nested too deeply"),
        ('{"name": ' + "[" * 10**5, "nested too deeply"),
        ('brave_search.call(query="a "b" c")', "no Python"),
        ('brave_search.call(query="a"); import os', "among other statements"),
        ('brave_search.call(query="a"); f(x=1)', "f among the calls of built-in tools"),
        ("<function=f>{'x': 1}</function>", "no JSON"),
        ('<function=f>{"x": 1}</function> and', "Here should be <function=name>"),
        ('<function=f>{"x": 1} and', "Here should be </function>"),
        ("<function=f>1</function>", "arguments of f are 1"),
    ],
)
@pytest.mark.parametrize("tagged", [False, True])
def test_a_malformed_call_is_content_and_says_why(text, why, tagged):
    assert re.search(why, problem(text, tagged=tagged))


def test_any_text_is_parsed_without_an_error():
    draw = random.Random(3)
    starts = [
        "",
        "[f(",
        "[",
        '{"name": ',
        "{'name': ",
        "<function=",
        "brave_search.call(",
        "<function=f>",
    ]
    for _ in range(3000):
        reply = draw.choice(starts) + text(draw) + draw.choice(["", ")]", "}", "</function>", '")'])
        content, calls, why = parse_calls(reply, draw.random() < 0.5, cut_off=draw.random() < 0.5)
        assert calls == () if why else True
        assert content == reply if not calls else reply.startswith(content)


def test_nothing_is_executed(monkeypatch):
    def never(*_, **__):
        raise AssertionError("executed")

    for name in ("eval", "exec", "open"):
        monkeypatch.setattr(builtins, name, never)
    monkeypatch.setattr(subprocess, "Popen", never)
    for reply in (
        "[f(x=__import__('os').system('id'))]",
        "[__import__('os').system('id')]",
        "[open(file='/etc/passwd')]",
        "__import__('os').system('id')",
    ):
        parse_calls(reply)
        parse_calls(reply, tagged=True)


# What is offered


def test_functions_come_bare_or_as_openai_has_them():
    bare = {"name": "f", "parameters": {"properties": {"a": {}}}}
    wrapped = {"type": "function", "function": bare}
    assert read_tools([bare]) == read_tools([wrapped]) == read_tools(bare)
    assert read_tools(["brave_search"] * 2).builtin == ("brave_search",)
    assert read_tools(None) == read_tools([]) == ((), ())


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ("search", "'search'; built-in are brave_search, wolfram_alpha, code_interpreter"),
        ({"description": "?"}, r"tools\[1\] has no name"),
        (3, r"tools\[1\] is a int; a tool is"),
        (print, "is a builtin_function_or_method; a tool is the name of a built-in one, or a JSON"),
        ({"name": "brave_search"}, "'brave_search' is built in: give its name alone"),
        ({"name": "f"}, "'f' is given twice"),
        ({"name": "g", "parameters": {"properties": []}}, "the parameters of 'g' are"),
    ],
)
def test_a_tool_that_is_none_is_named(tool, why):
    with pytest.raises(ToolError, match=why):
        read_tools([{"name": "f"}, tool])
