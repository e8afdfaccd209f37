"""Begun replies, contents in parts and other vocabularies against transformers' chat templates."""

import itertools
import json
import logging

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from llama_jax.text import TemplateError, Tokenizer, encode_chat
from tests.text.templates import LLAMA3, LLAMA31
from tests.text.vocabularies import byte_level, sentencepiece

ZEPHYR = (  # TinyLlama's
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (  # SmolLM's
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {% if m.content is string %}"
    "{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
)
TEMPLATES = {
    "zephyr": ZEPHYR,
    "llama2": LLAMA2,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama31": LLAMA31,
    "parts": PARTS,
}
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def with_tokens(backend, **options):
    names = (*LLAMA3_TOKENS, "<|im_start|>", "<|im_end|>", "<s>", "</s>")
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True, **options) for name in names]
    )
    return backend


VOCABULARIES = {
    "byte-level": lambda: with_tokens(byte_level()),
    "strips left": lambda: with_tokens(byte_level(), lstrip=True),
    "strips right": lambda: with_tokens(byte_level(), rstrip=True),
    "normalizer": lambda: with_tokens(sentencepiece()),
    "first": lambda: with_tokens(sentencepiece("first")),
    "always": lambda: with_tokens(sentencepiece("always")),
    "SentencePiece strips": lambda: with_tokens(sentencepiece("first"), lstrip=True, rstrip=True),
}
CONTENTS = ["It is", "It is ", " It\n\n", "\n ", "", "a  b\t", "日本 ünï", "3 + 4 is \u2007"]


@pytest.fixture(scope="module", params=VOCABULARIES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    VOCABULARIES[request.param]().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return Tokenizer.from_file(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)


def compare(both, messages, template, **arguments):
    ours, theirs = both
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=template, return_dict=False, **arguments
        )
    except ValueError:
        with pytest.raises(TemplateError, match="content of the last message"):
            encode_chat(ours, messages, template=template, **arguments)
        return
    assert encode_chat(ours, messages, template=template, **arguments) == expected, messages


@pytest.mark.parametrize("template", TEMPLATES)
def test_begun_replies_are_transformers(both, template):
    for question, content in itertools.product((" Mary? ", "John\n"), CONTENTS):
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": content},
        ]
        compare(both, messages, TEMPLATES[template], continue_final_message=True)
        compare(both, messages, TEMPLATES[template], add_generation_prompt=False)
        compare(both, messages[:1], TEMPLATES[template], continue_final_message=True)
        compare(both, messages[:1], TEMPLATES[template], add_generation_prompt=True)


def test_contents_in_parts_are_transformers(both):
    for texts in itertools.product(CONTENTS[:4], repeat=2):
        content = [{"type": "text", "text": text} for text in texts]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        compare(both, messages, PARTS, add_generation_prompt=True)
        compare(both, messages, PARTS, continue_final_message=True)


def test_another_field_goes_on_as_in_transformers(both):
    template = "{% for m in messages %}{{ bos_token }}{{ m.thought }}|{{ m.content }}{% endfor %}"
    for thought in CONTENTS:
        messages = [{"role": "assistant", "content": "x", "thought": thought}]
        compare(both, messages, template, continue_final_message="thought")
