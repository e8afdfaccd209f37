"""The little world that cria reads about: short stories made from a seed, and questions on them.

`kinds.py` mixes the documents, `teller.py` tells one with the words of `words.py` and the phrases
of `phrases.py`, `questions.py` asks for what no document states, `repeats.py` draws random rows.
"""

from llama_jax.cria.world.kinds import END, KINDS, document, documents
from llama_jax.cria.world.marks import Question
from llama_jax.cria.world.questions import COPIES, FACTS, copies, facts, indirect_objects
from llama_jax.cria.world.repeats import random_repeats
from llama_jax.cria.world.words import NAMES, POOLS, reserved

__all__ = [
    "COPIES",
    "END",
    "FACTS",
    "KINDS",
    "NAMES",
    "POOLS",
    "Question",
    "copies",
    "document",
    "documents",
    "facts",
    "indirect_objects",
    "random_repeats",
    "reserved",
]
