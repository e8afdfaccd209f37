"""Checkpoints on disk: a file a format (`huggingface.py`, `meta.py`, `orbax.py`), `hub.py` fetches.

They share `tensors.py` (where a tensor lies, and reading it), `filling.py` (into a model, one at a
time) and `folder.py` (what a folder holds, and replacing that whole).
"""

from llama_jax.checkpoint.tensors import CheckpointError

__all__ = ["CheckpointError"]
