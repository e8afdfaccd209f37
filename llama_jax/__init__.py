"""A Llama 3 in JAX that can be seen through: open it, run it, read and change any tensor inside.

`Llama` is where to start; `llama_jax.points` names every tensor.
"""

from llama_jax.capture import Capture
from llama_jax.config import LlamaConfig
from llama_jax.edits import Ablate, Patch, Replace, Steer
from llama_jax.generate import Generation
from llama_jax.llama import Llama
from llama_jax.parallel.fit import fit
from llama_jax.run import Run
from llama_jax.text import Reply, ToolCall

__all__ = [
    "Ablate",
    "Capture",
    "Generation",
    "Llama",
    "LlamaConfig",
    "Patch",
    "Replace",
    "Reply",
    "Run",
    "Steer",
    "ToolCall",
    "fit",
]
__version__ = "0.1.0"
