"""Many devices: which part of every array each holds (`mesh.py`), and shows (`placement.py`).

JAX's own partitioner does the work: arrays say where they lie, and compiled programs follow.
`fit.py`, on the floor above the model, says what will fit on devices that are not there.
"""

from llama_jax.parallel.mesh import (
    AXES,
    RULES,
    Layout,
    MeshError,
    make_mesh,
    mesh_sizes,
    parts,
    shard,
    sharding,
    spec,
    weight_shardings,
)
from llama_jax.parallel.placement import Placement, placement

__all__ = [
    "AXES",
    "RULES",
    "Layout",
    "MeshError",
    "Placement",
    "make_mesh",
    "mesh_sizes",
    "parts",
    "placement",
    "shard",
    "sharding",
    "spec",
    "weight_shardings",
]
