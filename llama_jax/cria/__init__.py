"""Cria, the small Llama that ships: its weights, the world it reads about, its training, its marks.

`world/` writes the texts, `recipe.py` trains, `evaluate.py` measures. On the command line:
`python -m llama_jax.cria train` and `python -m llama_jax.cria evaluate`.
"""

import pathlib

__all__ = ["WEIGHTS"]

WEIGHTS = pathlib.Path(__file__).parent / "weights"  # a Hugging Face checkpoint, and evaluation.md
