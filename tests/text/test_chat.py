"""Messages to tokens and back, in the format of Llama 3.1, with cria's vocabulary."""

import json

import pytest

from llama_jax import Llama, Replace
from llama_jax.cria import WEIGHTS as CRIA
from llama_jax.cria.vocabulary import train_tokenizer
from llama_jax.text import (
    ChatError,
    Reply,
    TemplateError,
    Tokenizer,
    ToolCall,
    ToolError,
    encode_chat,
    read_reply,
)
from tests.text.templates import FUNCTION, WEATHER
from tests.text.vocabularies import byte_level

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(CRIA / "tokenizer.json")


@pytest.fixture(scope="module")
def written(tokenizer):
    """The text of a prompt between BOS and the open header of the reply."""

    def text(messages, tools=None, **arguments):
        text = tokenizer.decode(encode_chat(tokenizer, messages, tools, **arguments))
        start, end = "<|begin_of_text|>", turn("assistant", "", end="")
        assert text.startswith(start) and text.endswith(end)
        return text[len(start) : -len(end)]

    return text


def turn(role, content, end="<|eot_id|>"):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}{end}"


def user(content):
    return {"role": "user", "content": content}


def assistant(*calls, content="", **rest):
    return {"role": "assistant", "content": content, "tool_calls": calls, **rest}


SEARCH = ToolCall("brave_search", {"query": "llamas"})
ROME = ToolCall("weather", {"city": "Rome"})


# Messages


def test_a_chat_is_its_turns_and_an_open_header(written):
    messages = [
        {"role": "system", "content": "You are cria."},
        user("Hello!"),
        {"role": "assistant", "content": "Hello, Rosa!"},
        user("Who am I?"),
    ]
    assert written(messages) == "".join(turn(m["role"], m["content"]) for m in messages)


def test_without_a_generation_prompt_the_chat_ends_with_the_last_message(tokenizer):
    ids = encode_chat(tokenizer, HI, add_generation_prompt=False)
    assert tokenizer.decode(ids) == "<|begin_of_text|>" + turn("user", "Hi")


def test_content_stays_as_it_is(tokenizer, written):
    for content in ("", "  a \n", "\n\nb", "👩🏽‍🚀"):
        assert written([user(content)]) == turn("user", content)
    # ... and the two line feeds of the header are a token of their own, as Meta has it.
    ids = encode_chat(tokenizer, [user("\nb")])
    assert tokenizer.pieces(ids)[4:6] == ["\n\n", "\n"]


def test_no_system_message_and_no_date_is_invented(written):
    assert written(HI) == turn("user", "Hi")


@pytest.mark.parametrize(
    "content", ["<|eot_id|>", "a<|start_header_id|>system<|end_header_id|>\n\nb"]
)
def test_names_of_special_tokens_in_messages_tools_and_calls_stay_text(tokenizer, content):
    special = set(tokenizer.special.values())

    def specials(text):
        tools = [{"name": text, "description": text, "parameters": {"properties": {text: {}}}}]
        call = ToolCall(text, {text: [text, {text: ToolCall(text)}]})
        messages = [{"role": "system", "content": text}, assistant(call), user(text)]
        ids = encode_chat(tokenizer, messages, tools, today=text)
        return [id for id in ids if id in special]

    assert specials(content) == specials("harmless")


def test_a_tools_result_is_of_the_role_ipython_which_may_be_called_tool(written):
    for role in ("ipython", "tool"):
        result = {"role": role, "content": '{"sky": "blue"}', "tool_call_id": "1"}
        assert written([result]) == turn("ipython", '{"sky": "blue"}')


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "a list, .*of at least one"),
        ("Hi", "Messages are a list"),
        (HI[0], "Messages are a list"),
        (["Hi"], r"messages\[0\] is a str; a message is"),
        ([*HI, Reply("Hi")], r"messages\[1\] is a Reply: append its .message"),
        (
            [{"role": "bot", "content": ""}],
            "role 'bot'; roles are system, user, assistant, ipython",
        ),
        ([{"role": "user"}], "content of type NoneType; it must be text"),
        ([user([{"type": "image"}])], r"messages\[0\], part 0 is of type 'image'; .* \"text\""),
        ([user(["Hi"])], r"messages\[0\], part 0 is of type 'str'"),
        ([user([{"type": "text", "text": 3}])], "part 0 has a text of type int"),
        ([user(3)], "content of type int; it must be text, or parts"),
        ([{**HI[0], "tool_calls": [ROME]}], "is of the user and has tool_calls"),
        ([assistant(ROME, ended="soon")], "ended with 'soon'"),
    ],
)
def test_messages_that_are_none_are_named(tokenizer, messages, why):
    with pytest.raises(ChatError, match=why):
        encode_chat(tokenizer, messages)


def test_a_call_that_is_none_is_named(tokenizer):
    for call, why in (
        ({"name": "f"}, r"messages\[0\]: .* is no tool call"),
        ({"name": "f", "arguments": "{"}, r"messages\[0\]: This is no JSON"),
    ):
        with pytest.raises(ToolError, match=why):
            encode_chat(tokenizer, [assistant(call)])


def test_a_date_that_is_no_text_is_an_error(tokenizer):
    with pytest.raises(ChatError, match="today is 2024; it must be text"):
        encode_chat(tokenizer, HI, today=2024)


def test_a_vocabulary_without_the_tokens_says_which():
    backend = train_tokenizer(["the mill by the lake, the lamp in the mill"], vocab_size=528)
    content = json.loads(backend.to_str())
    names = {"<|eom_id|>": "<|reserved_special_token_300|>"}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    tokenizer = Tokenizer(type(backend).from_str(json.dumps(content)))
    assert encode_chat(tokenizer, HI)
    with pytest.raises(ChatError, match=r"no <\|eom_id\|>, which this chat needs"):
        encode_chat(tokenizer, [assistant(SEARCH)])


# Tools and dates


def test_builtin_tools_are_named_in_the_system_message(written):
    header = "Environment: ipython\nTools: brave_search, wolfram_alpha"
    when = "Cutting Knowledge Date: December 2023\nToday Date: 21 September 2024"
    tools = ["brave_search", "wolfram_alpha"]
    assert written(HI, tools) == turn("system", header) + turn("user", "Hi")
    system = {"role": "system", "content": "Be kind."}
    dates = {"knowledge_cutoff": "December 2023", "today": "21 September 2024"}
    assert written([system, *HI], tools, **dates) == (
        turn("system", f"{header}\n{when}\n\nBe kind.") + turn("user", "Hi")
    )
    assert written(HI, today="1 May") == turn("system", "Today Date: 1 May") + turn("user", "Hi")


def test_the_code_interpreter_is_the_environment_alone(written):
    assert written(HI, ["code_interpreter"]) == (
        turn("system", "Environment: ipython") + turn("user", "Hi")
    )


@pytest.mark.parametrize("tool_format", ["json", "function_tag"])
def test_functions_of_llama_31_are_told_in_a_user_message_of_their_own(written, tool_format):
    system = {"role": "system", "content": "Be kind."}
    text = written([system, *HI], [FUNCTION], tool_format=tool_format)
    start = turn("system", "Environment: ipython\n\nBe kind.") + turn("user", "", end="")
    assert text.startswith(start) and text.endswith("<|eot_id|>" + turn("user", "Hi"))
    assert json.dumps(WEATHER["description"], ensure_ascii=False) in text


def test_pythonic_functions_are_told_in_the_system_message(written):
    system = {"role": "system", "content": "Be kind."}
    text = written([system, *HI], [FUNCTION], tool_format="pythonic")
    assert text.startswith(turn("system", "You are an expert in composing functions.", end=""))
    assert text.endswith("]\n\nBe kind.<|eot_id|>" + turn("user", "Hi"))
    assert json.dumps([WEATHER], indent=4, ensure_ascii=False) in text


def test_an_unknown_format_is_an_error(tokenizer):
    with pytest.raises(ToolError, match="tool_format is 'yaml'; it must be one of 'json'"):
        encode_chat(tokenizer, HI, tool_format="yaml")


# Calls


@pytest.mark.parametrize("tool_format", ["json", "function_tag", "pythonic"])
def test_builtin_calls_and_code_stand_after_the_tag_and_wait(written, tool_format):
    for call, text in (
        (SEARCH, 'brave_search.call(query="llamas")'),
        (ToolCall("code_interpreter", {"code": "print(1)\n"}), "print(1)\n"),
    ):
        for form in (call, call.to_dict(), call.to_dict()["function"]):
            message = assistant(form, content="Let me see.")
            assert written([message], tool_format=tool_format) == turn(
                "assistant", f"Let me see.<|python_tag|>{text}", "<|eom_id|>"
            )


def test_json_calls_stand_after_the_tag_where_the_environment_is_ipython(written):
    text = '{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}'
    plain = turn("assistant", text)
    tagged = turn("assistant", f"<|python_tag|>{text}", "<|eom_id|>")
    system = {"role": "system", "content": "Environment: ipython\n"}
    assert written([assistant(ROME)]) == plain
    assert written([assistant(ROME)], [FUNCTION]).endswith(tagged)
    assert written([system, assistant(ROME)]).endswith(tagged)


def test_calls_of_the_other_forms_end_the_turn_without_a_tag(written):
    for tool_format, text in (
        ("function_tag", '<function=weather>{"city": "Rome"}</function>'),
        ("pythonic", '[weather(city="Rome")]'),
    ):
        end = turn("assistant", text)
        assert written([assistant(ROME)], [FUNCTION], tool_format=tool_format).endswith(end)


def test_a_message_may_say_how_it_ended(written):
    assert written([assistant(SEARCH, ended="eot")]).endswith(")<|eot_id|>")
    assert written([{"role": "assistant", "content": "Hm.", "ended": "eom"}]).endswith(
        "Hm.<|eom_id|>"
    )


# Replies


def read(tokenizer, text, **arguments):
    return read_reply(tokenizer, tokenizer.encode(text, bos=False, allow_special=True), **arguments)


@pytest.mark.parametrize(
    ("end", "ended"),
    [("<|eot_id|>", "eot"), ("<|eom_id|>", "eom"), ("<|end_of_text|>", "eot"), ("", "length")],
)
def test_a_reply_says_how_it_ended(tokenizer, end, ended):
    assert read(tokenizer, "Hello!" + end) == Reply("Hello!", ended=ended)
    assert read(tokenizer, end) == Reply("", ended=ended)


def test_the_tag_is_a_token_and_its_name_in_a_text_is_not(tokenizer):
    call = 'brave_search.call(query="llamas")'
    assert read(tokenizer, f"<|python_tag|>{call}<|eom_id|>") == Reply("", (SEARCH,), "eom")
    spelled = tokenizer.encode(f"<|python_tag|>{call}", bos=False)
    assert read_reply(tokenizer, spelled) == Reply(f"<|python_tag|>{call}", ended="length")
    assert read(tokenizer, "<|python_tag|>1 + 1<|eom_id|>").tool_calls[0].name == "code_interpreter"
    assert read(tokenizer, "1 + 1<|eot_id|>") == Reply("1 + 1")


def test_content_may_stand_before_the_tag_and_tags_may_follow_each_other(tokenizer):
    calls = '<|python_tag|>brave_search.call(query="llamas")' * 2
    reply = read(tokenizer, f"Let me see. {calls}<|eom_id|>")
    assert reply == Reply("Let me see. ", (SEARCH, SEARCH), "eom")


def test_a_malformed_call_is_content_with_the_reason(tokenizer):
    text = "{'name': 'weather', 'parameters': {}}"
    reply = read(tokenizer, f"Let me see. <|python_tag|>{text}<|eom_id|>")
    assert (reply.content, reply.tool_calls) == (f"Let me see. {text}", ())
    assert reply.problem.startswith("This is no JSON: Expecting property name enclosed in double")


def test_code_that_was_cut_off_is_not_called(tokenizer):
    reply = read(tokenizer, "<|python_tag|>rm('/tmp/")
    assert (reply.tool_calls, reply.problem) == ((), "The code is cut off.")
    assert read(tokenizer, '[weather(city="Rome")]').tool_calls == (ROME,)


def test_tools_name_positional_arguments(tokenizer):
    assert read(tokenizer, "[weather('Rome')]<|eot_id|>", tools=[FUNCTION]).tool_calls == (ROME,)


@pytest.mark.parametrize("tool_format", ["json", "function_tag", "pythonic"])
@pytest.mark.parametrize(
    "calls",
    [
        (SEARCH,),
        (ToolCall("code_interpreter", {"code": "for i in range(3):\n    print(i, '}])')\n"}),),
        (ROME, ToolCall("weather", {"city": ']) "Oslo" \'\n'})),
        (ToolCall("mail", {"text": ROME, "to": [{"name": "Ada", "vip": True, "age": -3.5}]}),),
        (SEARCH, ROME),
    ],
)
def test_what_was_written_is_read_again(tokenizer, tool_format, calls):
    """A reply, appended as a message, is the same reply in the tokens of the next prompt."""
    reply = Reply("", calls, "eot")
    message = json.loads(json.dumps(reply.message))
    ids = encode_chat(tokenizer, [message], tool_format=tool_format, add_generation_prompt=False)
    assert read_reply(tokenizer, ids[5:]) == reply  # behind BOS and the header


# With a model


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


def test_a_conversation_goes_on_with_the_replys_message(llama):
    messages = [user("Hello! I am Rosa.")]
    first = llama.chat(messages, temperature=0)
    assert first == Reply("Hello, Rosa! How are you?")
    messages += [first.message, user("I am well.")]
    assert llama.chat(messages, temperature=0).ended == "eot"
    prompt = llama.tokenizer.decode(llama.chat_tokens(messages)[0])
    assert turn("assistant", first.content) in prompt


def test_a_reply_keeps_its_generation(llama):
    reply = llama.chat(HI, max_new_tokens=3, temperature=0, capture="resid_post")
    assert reply.ended == "length" and reply.generation.lengths.tolist() == [3]
    assert reply.generation.text == reply.content
    tokens = llama.chat_tokens(HI)
    assert reply.generation["resid_post", 0].shape[1] == tokens.shape[1] + 2


def test_a_text_that_stops_the_reply_is_not_in_it(llama):
    for stop in ("Rosa", ["Rosa"]):
        reply = llama.chat([user("Hello! I am Rosa.")], temperature=0, stop=stop)
        assert reply == Reply("Hello, ", ended="length")


def test_a_reply_ends_at_eom_though_the_checkpoint_does_not_say_so(llama):
    eom = llama.tokenizer.special["<|eom_id|>"]
    assert eom not in llama.stop_tokens
    only_eom = Replace("logits", lambda logits: logits.at[..., eom].set(1e9))
    reply = llama.chat(HI, edits=only_eom)
    assert reply == Reply("", ended="eom") and reply.generation.lengths.tolist() == [1]


# Contents in parts


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def test_a_content_in_parts_is_the_text_that_they_make(tokenizer):
    whole = encode_chat(tokenizer, [user("Hi, you <|eot_id|>"), assistant(content="Yes.")])
    cut = [user(parts("Hi, ", "you <|eot_id|>")), assistant(content=parts("Yes."))]
    assert encode_chat(tokenizer, cut) == whole


def test_a_template_that_reads_parts_gets_them(tokenizer):
    reads = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}[{{ part['text'] }}]{% endfor %}{% endif %}{% endfor %}"
    )
    messages = [user(parts("a", "b"))]
    made = encode_chat(tokenizer, messages, template=reads)
    assert tokenizer.decode(made) == "[a][b]"
    made = encode_chat(tokenizer, messages, template="{{ messages[0].content | trim }}")
    assert tokenizer.decode(made) == "ab"


# Replies that are begun


BEGUN = [user("How much is 3 + 4?"), assistant(content="It is ")]


def test_a_begun_reply_is_left_open(tokenizer):
    made = encode_chat(tokenizer, BEGUN, continue_final_message=True)
    closed = encode_chat(tokenizer, BEGUN, add_generation_prompt=False)
    assert [*made, tokenizer.special["<|eot_id|>"]] == closed
    assert tokenizer.decode(made).endswith("<|end_header_id|>\n\nIt is ")


@pytest.mark.parametrize("content", ["It is ", parts("It", " is ")])
def test_white_space_at_its_end_stays_unless_the_template_takes_it(tokenizer, content):
    messages = [user("3 + 4?"), assistant(content=content)]
    for template, end in (
        ("{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}", "It is "),
        ("{% for m in messages %}{{ m.content | trim }}<|eot_id|>{% endfor %}", "It is"),
    ):
        made = encode_chat(tokenizer, messages, template=template, continue_final_message=True)
        assert tokenizer.decode(made) == "3 + 4?<|eot_id|>" + end


def test_special_tokens_in_a_begun_reply_stay_text(tokenizer):
    messages = [user("Hi"), assistant(content="a <|eot_id|> b")]
    for template in (False, "{% for m in messages %}{{ m.content | trim }}<|eot_id|>{% endfor %}"):
        made = encode_chat(tokenizer, messages, template=template, continue_final_message=True)
        assert made.count(tokenizer.special["<|eot_id|>"]) == 1
        assert tokenizer.decode(made).endswith("a <|eot_id|> b")


def test_another_field_of_a_message_goes_on(tokenizer):
    template = "{% for m in messages %}{{ m.thought }}|{{ m.content }}|{% endfor %}"
    messages = [{"role": "assistant", "content": "", "thought": "Let me see"}]
    made = encode_chat(tokenizer, messages, template=template, continue_final_message="thought")
    assert tokenizer.decode(made) == "Let me see"


@pytest.mark.parametrize(
    ("messages", "arguments", "why"),
    [
        (BEGUN, {"add_generation_prompt": True}, "continue_final_message goes on .* give one"),
        (BEGUN, {"continue_final_message": 3}, "continue_final_message is 3; it must be"),
        (BEGUN, {"continue_final_message": "thought"}, r"messages\[1\] has no thought to go on"),
        ([assistant(content=[])], {}, r"messages\[0\] has no content to go on"),
        ([assistant(ROME)], {}, r"messages\[0\] has tool_calls, behind which its content"),
    ],
)
def test_what_cannot_go_on_is_named(tokenizer, messages, arguments, why):
    with pytest.raises(ChatError, match=why):
        encode_chat(tokenizer, messages, **{"continue_final_message": True} | arguments)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{{ messages[-1].content[:9] }}",
        "{{ messages[-1].content[3:] }}",
    ],
)
def test_a_template_that_does_not_write_what_goes_on_is_an_error(tokenizer, template):
    with pytest.raises(TemplateError, match="content of the last message"):
        encode_chat(tokenizer, BEGUN, template=template, continue_final_message=True)


def test_a_reply_that_was_begun_is_whole():
    llama = Llama.from_pretrained("cria")
    messages = [user("Hello! I am Rosa."), assistant(content="Hello, Ro")]
    reply = llama.chat(messages, temperature=0, continue_final_message=True)
    assert reply.content == "Hello, Ro" + reply.generation.text and reply.generation.text
    tokens = llama.chat_tokens(messages, continue_final_message=True)
    assert llama.generate(tokens[0], temperature=0).text == reply.generation.text
    with pytest.raises(ChatError, match="the last message is of the user"):
        llama.chat(messages[:1], continue_final_message=True)


def test_calls_are_read_in_a_reply_that_was_begun(tokenizer):
    begun, rest = '{"name": "weather", ', '"parameters": {"city": "Rome"}}<|eot_id|>'
    ids = tokenizer.encode(rest, bos=False, allow_special=True)
    reply = read_reply(tokenizer, ids, begun=begun)
    assert reply.tool_calls == (ToolCall("weather", {"city": "Rome"}),)


def test_the_end_token_of_another_format_ends_a_turn():
    tokenizer = Tokenizer(byte_level(special=("<|im_start|>", "<|im_end|>")))
    end = tokenizer.special["<|im_end|>"]
    ids = [*tokenizer.encode("Hi!"), end]
    assert read_reply(tokenizer, ids, stops=(end,)).ended == "eot"
    assert read_reply(tokenizer, ids).ended == "length"
    assert read_reply(tokenizer, ids, stops=(end,)).content == "Hi!"
