"""Many devices: which part of every array each of them holds (`mesh.py`).

JAX's own partitioner does the work: arrays say where they lie, and compiled programs follow.
"""

from llama_jax.parallel.mesh import (
    AXES,
    RULES,
    Layout,
    MeshError,
    make_mesh,
    parts,
    shard,
    sharding,
    spec,
    weight_shardings,
)

__all__ = [
    "AXES",
    "RULES",
    "Layout",
    "MeshError",
    "make_mesh",
    "parts",
    "shard",
    "sharding",
    "spec",
    "weight_shardings",
]
