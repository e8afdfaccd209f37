"""Meshes of CPU devices, and what each of their devices is to hold, written out by hand."""

import dataclasses

import jax
import numpy as np

from llama_jax.config import LlamaConfig

# Sizes that differ from each other and that up to 16 devices divide; twice as many query heads as
# key/value heads.
CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=128,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=8,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)

# By weight: along which axes of the mesh [out, in] are cut ("-": not), and the shape of a part.
_WHOLE = {
    "embed_tokens lm_head": ("- -", (96, 128)),
    "q_proj": ("- -", (128, 128)),
    "k_proj v_proj": ("- -", (64, 128)),
    "o_proj": ("- -", (128, 128)),
    "gate_proj up_proj": ("- -", (80, 128)),
    "down_proj": ("- -", (128, 80)),
    "input_layernorm post_attention_layernorm norm": ("-", (128,)),
}
_NORMS = {"input_layernorm post_attention_layernorm norm": ("-", (128,))}
WEIGHTS = {
    "": _WHOLE,
    "data=8": _WHOLE,
    "sequence=4": _WHOLE,
    "data=4,tensor=2": {
        "embed_tokens lm_head": ("tensor -", (48, 128)),
        "q_proj": ("tensor -", (64, 128)),
        "k_proj v_proj": ("tensor -", (32, 128)),
        "o_proj": ("- tensor", (128, 64)),
        "gate_proj up_proj": ("tensor -", (40, 128)),
        "down_proj": ("- tensor", (128, 40)),
        **_NORMS,
    },
    "data=2,tensor=4": {
        "embed_tokens lm_head": ("tensor -", (24, 128)),
        "q_proj": ("tensor -", (32, 128)),
        "k_proj v_proj": ("tensor -", (16, 128)),
        "o_proj": ("- tensor", (128, 32)),
        "gate_proj up_proj": ("tensor -", (20, 128)),
        "down_proj": ("- tensor", (128, 20)),
        **_NORMS,
    },
    "data=2,fsdp=2,tensor=2": {
        "embed_tokens lm_head": ("tensor fsdp", (48, 64)),
        "q_proj": ("tensor fsdp", (64, 64)),
        "k_proj v_proj": ("tensor fsdp", (32, 64)),
        "o_proj": ("fsdp tensor", (64, 64)),
        "gate_proj up_proj": ("tensor fsdp", (40, 64)),
        "down_proj": ("fsdp tensor", (64, 40)),
        **_NORMS,
    },
    "data=2,sequence=2,tensor=4": {
        "embed_tokens lm_head": ("tensor -", (24, 128)),
        "q_proj": ("tensor -", (32, 128)),
        "k_proj v_proj": ("tensor -", (16, 128)),
        "o_proj": ("- tensor", (128, 32)),
        "gate_proj up_proj": ("tensor -", (20, 128)),
        "down_proj": ("- tensor", (128, 20)),
        **_NORMS,
    },
    # 8 key/value heads: each is held by two devices, that share out its two query heads.
    "tensor=16": {
        "embed_tokens lm_head": ("tensor+group -", (6, 128)),
        "q_proj": ("tensor+group -", (8, 128)),
        "k_proj v_proj": ("tensor -", (8, 128)),
        "o_proj": ("- tensor+group", (128, 8)),
        "gate_proj up_proj": ("tensor+group -", (5, 128)),
        "down_proj": ("- tensor+group", (128, 5)),
        **_NORMS,
    },
}
MESHES = tuple(WEIGHTS)
# Between them they cut along every axis; the layout is looked at on all meshes.
COMPUTED = ("data=2,fsdp=2,tensor=2", "data=2,sequence=2,tensor=4", "tensor=16")

# Of a cache of 3 rows and 128 positions, [B, C, K, H]; there are as many rows as the mesh divides.
CACHE = {
    "": ("- - - -", (3, 128, 8, 8)),
    "data=8": ("data - - -", (1, 128, 8, 8)),
    "sequence=4": ("- sequence - -", (3, 32, 8, 8)),
    "data=4,tensor=2": ("data - tensor -", (1, 128, 4, 8)),
    "data=2,tensor=4": ("data - tensor -", (2, 128, 2, 8)),
    "data=2,fsdp=2,tensor=2": ("data+fsdp - tensor -", (1, 128, 4, 8)),
    "data=2,sequence=2,tensor=4": ("data sequence tensor -", (2, 64, 2, 8)),
    "tensor=16": ("- - tensor -", (3, 128, 1, 8)),
}

# By an axis of a point: the axes of the mesh that cut it, and into how many parts.
POINTS = {
    "": {},
    "data=8": {"B": ("data", 8)},
    "sequence=4": {"T": ("sequence", 4)},
    "data=4,tensor=2": {
        "B": ("data", 4),
        "N": ("tensor", 2),
        "K": ("tensor", 2),
        "F": ("tensor", 2),
        "V": ("tensor", 2),
    },
    "data=2,tensor=4": {
        "B": ("data", 2),
        "N": ("tensor", 4),
        "K": ("tensor", 4),
        "F": ("tensor", 4),
        "V": ("tensor", 4),
    },
    "data=2,fsdp=2,tensor=2": {
        "B": ("data+fsdp", 4),
        "N": ("tensor", 2),
        "K": ("tensor", 2),
        "F": ("tensor", 2),
        "V": ("tensor", 2),
    },
    "data=2,sequence=2,tensor=4": {
        "B": ("data", 2),
        "T": ("sequence", 2),
        "N": ("tensor", 4),
        "K": ("tensor", 4),
        "F": ("tensor", 4),
        "V": ("tensor", 4),
    },
    "tensor=16": {
        "N": ("tensor+group", 16),
        "K": ("tensor", 8),
        "F": ("tensor+group", 16),
        "V": ("tensor+group", 16),
    },
}


def lies(array: jax.Array, cuts: str, part: tuple[int, ...], what: str = "") -> None:
    """Asserts along which axes of its mesh an array is cut, and what each device holds of it."""
    spec = [*array.sharding.spec, *[None] * (array.ndim - len(array.sharding.spec))]
    names = [axis if isinstance(axis, tuple) else (axis or "-",) for axis in spec]
    assert " ".join(map("+".join, names)) == cuts, what
    held = [shard.data.shape for shard in array.addressable_shards]
    assert held == [part] * array.sharding.mesh.size, what
    assert array.is_fully_replicated == (part == array.shape), what


def weight_lies(array: jax.Array, name: str, mesh: str) -> None:
    """The same of a weight, its gradient, or what an optimizer keeps of it."""
    kind = name.split(".")[-2]
    found = [held for kinds, held in WEIGHTS[mesh].items() if kind in kinds.split()]
    lies(array, *found[0], what=name)


def cuts_of(axes: str, mesh: str) -> str:
    """Along which axes of the mesh a tensor at a point is cut, as in `CACHE`."""
    return " ".join(POINTS[mesh].get(axis, ("-", 1))[0] for axis in axes.split())


def point_lies(array: jax.Array, axes: str, mesh: str, what: str = "") -> None:
    """The same of a tensor at a point, whose sizes the mesh divides."""
    counts = [POINTS[mesh].get(axis, ("-", 1))[1] for axis in axes.split()]
    part = tuple(size // count for size, count in zip(array.shape, counts, strict=True))
    lies(array, cuts_of(axes, mesh), part, what)


def close(found: object, expected: object, what: str = "", within: float = 5e-5) -> None:
    """Asserts that two results agree to `within` of the largest entry: sums have another order."""
    found, expected = np.asarray(found), np.asarray(expected)
    size = np.abs(expected, where=np.isfinite(expected), out=np.zeros(expected.shape)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * size, err_msg=what)
