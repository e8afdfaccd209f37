"""Text and tokens: `Tokenizer` reads a checkpoint's `tokenizer.json`."""

from llama_jax.text.tokenizer import TextStream, TokenError, Tokenizer

__all__ = ["TextStream", "TokenError", "Tokenizer"]
