"""Training: one loop for everything that learns, and the packing of documents into its batches.

`loop.py` is the loop: it yields its state at each step. `data.py` makes the batches it eats.
"""

from llama_jax.tune.data import Batch, batched, pack
from llama_jax.tune.loop import State, TrainingError, next_token_loss, train

__all__ = ["Batch", "State", "TrainingError", "batched", "next_token_loss", "pack", "train"]
