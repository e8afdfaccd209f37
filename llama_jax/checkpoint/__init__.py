"""Checkpoints on disk. `huggingface.py` is the format; `tensors.py` reads one safetensors file into
arrays; `folder.py` puts a whole folder in the place of another.
"""

from llama_jax.checkpoint.tensors import CheckpointError

__all__ = ["CheckpointError"]
