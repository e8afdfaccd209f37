"""Text and tokens: `Tokenizer` reads `tokenizer.json`, `token_labels` shows tokens safely."""

from llama_jax.text.labels import token_labels
from llama_jax.text.tokenizer import TextStream, TokenError, Tokenizer

__all__ = ["TextStream", "TokenError", "Tokenizer", "token_labels"]
