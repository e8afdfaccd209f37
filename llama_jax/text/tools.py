"""The tools that a chat offers to the model, and what Llama 3 is told of them.

The texts are Meta's own, as the models were trained on them: `llama_models` 0.3.0,
`llama3_1/prompt_format.md` (`"json"`, `"function_tag"`) and `llama3_2/text_prompt_format.md`
(`"pythonic"`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from llama_jax.text.calls import BUILTIN_TOOLS, CODE_INTERPRETER, ToolError, ToolFormat, short

__all__ = ["Tool", "Tools", "instructions", "read_tools", "system_header"]

# The name of a built-in tool, or a function as a JSON schema.
Tool = str | Mapping[str, Any]


class Tools(NamedTuple):
    """What may be called."""

    builtin: tuple[str, ...] = ()
    functions: tuple[dict[str, Any], ...] = ()  # {"name": …, "description": …, "parameters": …}

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The parameters of each function in their order."""
        return {
            function["name"]: tuple(function.get("parameters", {}).get("properties", {}))
            for function in self.functions
        }


def read_tools(tools: Sequence[Tool] | None) -> Tools:
    """Tools as everybody writes them: names of built-in ones, and functions as JSON schemas.

    A function is `{"name": …, "description": …, "parameters": …}`, by itself or as OpenAI and
    transformers have it, `{"type": "function", "function": {…}}`. Raises `ToolError`.

    >>> read_tools(["brave_search", {"type": "function", "function": {"name": "weather"}}])
    Tools(builtin=('brave_search',), functions=({'name': 'weather'},))
    """
    builtin: list[str] = []
    functions: dict[str, dict[str, Any]] = {}
    for position, tool in enumerate([tools] if isinstance(tools, str | Mapping) else tools or ()):
        if isinstance(tool, str):
            if tool not in BUILTIN_TOOLS:
                raise ToolError(
                    f"tools[{position}] is {tool!r}; built-in are {', '.join(BUILTIN_TOOLS)}, and "
                    "other functions are given as JSON schemas."
                )
            builtin.append(tool)
            continue
        function = _function(tool, f"tools[{position}]")
        name = function["name"]
        if name in functions or name in BUILTIN_TOOLS:
            kind = "given twice" if name in functions else "built in: give its name alone"
            raise ToolError(f"tools[{position}]: {name!r} is {kind}.")
        functions[name] = function
    return Tools(tuple(dict.fromkeys(builtin)), tuple(functions.values()))


def system_header(
    tools: Tools, format: ToolFormat, knowledge_cutoff: str | None, today: str | None
) -> str:
    """What the system message begins with: the environment, and dates where they are given.

    Where a tool is offered in a form of Llama 3.1 the environment is ipython, as in Meta's prompts
    and in Hugging Face's template; this alone also lets the model write code. The pythonic form
    has it for built-in tools only.
    """
    lines = []
    if tools.builtin or (tools.functions and format != "pythonic"):
        named = [name for name in tools.builtin if name != CODE_INTERPRETER]
        # Meta leaves the line empty where there is none to name.
        lines += ["Environment: ipython", f"Tools: {', '.join(named)}" if named else ""]
    if knowledge_cutoff is not None:
        lines.append(f"Cutting Knowledge Date: {knowledge_cutoff}")
    if today is not None:
        lines.append(f"Today Date: {today}")
    return "\n".join(lines).rstrip("\n")


def instructions(tools: Tools, format: ToolFormat) -> str:
    """What the model is told of the functions; "" where there are none. Raises `ToolError`.

    `"pythonic"` puts it into the system message, the others into a user message of its own.
    """
    if format not in get_args(ToolFormat):
        known = ", ".join(map(repr, get_args(ToolFormat)))
        raise ToolError(f"tool_format is {format!r}; it must be one of {known}.")
    if not tools.functions:
        return ""
    if format == "pythonic":
        return _PYTHONIC.replace("{functions}", _schema(tools.functions, indent=4))
    if format == "json":
        schemas = [_schema({"type": "function", "function": f}, indent=4) for f in tools.functions]
        return _JSON.replace("{functions}", "\n".join(schemas))
    uses = [
        f"Use the function '{f['name']}' to '{f.get('description', '')}':\n{_schema(f)}\n"
        for f in tools.functions
    ]
    return _FUNCTION_TAG.replace("{functions}", "\n".join(uses))


def _function(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise ToolError(
            f"{place} is a {type(tool).__name__}; a tool is the name of a built-in one, or a JSON "
            'schema, {"name": …, "description": …, "parameters": …}.'
        )
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ToolError(f"{place} has no name: {short(tool)}.")
    parameters = function.get("parameters", {})
    if not isinstance(parameters, Mapping) or not isinstance(
        parameters.get("properties", {}), Mapping
    ):
        raise ToolError(
            f"{place}: the parameters of {function['name']!r} are {short(parameters)}; they are a "
            'JSON schema, {"type": "object", "properties": {…}}.'
        )
    return dict(function)


def _schema(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ToolError(f"The schema {short(value)} is no JSON: {error}.") from None


_JSON = """\
Answer the user's question by making use of the following functions if needed.
If none of the function can be used, please say so.
Here is a list of functions in JSON format:
{functions}

Return function calls in JSON format."""

_FUNCTION_TAG = """\
You have access to the following functions:

{functions}
Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{"example_name": "example_value"}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""

_PYTHONIC = """\
You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters \
required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.

{functions}"""
