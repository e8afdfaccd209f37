"""The model: modules that hold parameters, a cache that is a value, one forward, and the taps.

`modules.py` is the place to start reading; `parameters(model)` names every weight as its file does.
"""

from llama_jax.model.cache import CACHE_AXES, Cache, empty_cache
from llama_jax.model.modules import (
    Context,
    Forward,
    Layer,
    Logits,
    Model,
    forward,
    initialize,
    leaf_numbers,
    leaves_of,
    parameters,
    place_of,
    readout,
    shapes,
    unembed,
)

__all__ = [
    "CACHE_AXES",
    "Cache",
    "Context",
    "Forward",
    "Layer",
    "Logits",
    "Model",
    "empty_cache",
    "forward",
    "initialize",
    "leaf_numbers",
    "leaves_of",
    "parameters",
    "place_of",
    "readout",
    "shapes",
    "unembed",
]
