"""The text of a run, token by token."""

from __future__ import annotations

from llama_jax import Run

__all__ = ["pieces"]


def pieces(run: Run, row: int) -> list[str]:
    """The text of each token of a row; its number where there is no tokenizer."""
    tokens = run.tokens[row, : int(run.lengths[row])]
    if run.llama is None or run.llama.tokenizer is None:
        return [str(token) for token in tokens.tolist()]
    return run.llama.pieces(tokens)
