"""Chat templates as checkpoints bring them, and chats to render with them."""

# In the manner of Llama 3.1's own: a system message always, tools in the first user message,
# built-in tools after <|python_tag|>, results of tools as JSON, everything trimmed.
LLAMA31 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and tools is not none %}
    {%- if messages | length == 0 %}
        {{- raise_exception("There is no first user message to put the tools into") }}
    {%- endif %}
    {%- set first_user_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {{- "Given these functions, answer in JSON.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' + arg_val + '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {{- "<|eom_id|>" if builtin_tools is defined else "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson if message.content is string else message.content }}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# In the manner of Llama 3's: one loop, trimmed.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# What transformers' environment has beside plain Jinja: blocks trimmed, loops that break and go on,
# `generation`, `namespace`, `tojson` with its options, and a date.
EXTRAS = """\
{%- macro turn(role, text) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ text }}{% endmacro %}
{{ bos_token }}{{ pad_token }}
{% set seen = namespace(count=0, last={}) %}
{% for message in messages %}
    {% if message.role == 'tool' %}
        {% continue %}
    {% endif %}
    {% if loop.index > 5 %}
        {% break %}
    {% endif %}
    {% set seen.count = seen.count + 1 %}
    {% if message.role == 'assistant' %}
{% generation %}
{{ turn(message.role, message.content) }}<|eot_id|>
{% endgeneration %}
    {% else %}
{{ turn(message.role, message.content[:40]) }}<|eot_id|>
    {% endif %}
{% endfor %}
{% if tools %}
{{ tools | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}
{% endif %}
{{ '-' * 8 }}{{ seen.count ** 2 }} {{ strftime_now('%Y') }} {{ documents is none }}
"""

# In the manner of reasoning models: what was thought is left out of the history.
THINKING = """\
{{- bos_token }}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1] %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>' + content + '<|eot_id|>' }}
{%- endfor %}
"""

TEMPLATES = {"llama31": LLAMA31, "llama3": LLAMA3, "extras": EXTRAS, "thinking": THINKING}

WEATHER = {
    "name": "weather",
    "description": "The weather in a city, in °C <or °F>",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "days": {"type": "integer", "description": "How many days ahead"},
        },
        "required": ["city"],
    },
}
FUNCTION = {"type": "function", "function": WEATHER}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


# As [messages, the arguments besides].
CHATS = {
    "one": ([{"role": "user", "content": "  Hello, wörld!\n"}], {}),
    "system": (
        [
            {"role": "system", "content": "You are a little llama.\n"},
            {"role": "user", "content": "Who are you? 1 < 2 & 3"},
            {"role": "assistant", "content": "\n\nA llama. 👩🏽‍🚀"},
            {"role": "user", "content": ""},
        ],
        {"today": "1 May 2025"},
    ),
    "function": (
        [
            {"role": "user", "content": "Weather in Rome?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [call("weather", city="Röm", n=[1])],
            },
            {"role": "tool", "content": '{"sky": "blue"}'},
            {"role": "assistant", "content": "Blue."},
        ],
        {"tools": [FUNCTION]},
    ),
    "built in": (
        [
            {"role": "user", "content": "The price of gold?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [call("brave_search", query="gold price")],
            },
            {"role": "ipython", "content": "42"},
        ],
        {"tools": ["brave_search", "code_interpreter"]},
    ),
    "thoughts": (
        [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "<think>easy</think>4"},
            {"role": "user", "content": "And 3 + 3?"},
        ],
        {},
    ),
}
