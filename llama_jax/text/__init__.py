"""Text and tokens: `Tokenizer`, `token_labels` that are safe to show, chats and tool calls."""

from llama_jax.text.calls import ToolCall, ToolError, ToolFormat, write_calls
from llama_jax.text.chat import ChatError, chat_prompt, encode_chat
from llama_jax.text.labels import token_labels
from llama_jax.text.parsing import Parsed, parse_calls
from llama_jax.text.reply import ENDS, Reply, read_reply
from llama_jax.text.template import TemplateError
from llama_jax.text.tokenizer import TextStream, TokenError, Tokenizer
from llama_jax.text.tools import Tool

__all__ = [
    "ENDS",
    "ChatError",
    "Parsed",
    "Reply",
    "TemplateError",
    "TextStream",
    "TokenError",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolFormat",
    "chat_prompt",
    "encode_chat",
    "parse_calls",
    "read_reply",
    "token_labels",
    "write_calls",
]
