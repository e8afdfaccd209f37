"""The Llama as Flax NNX modules, and the one forward pass that serves prefill, chunk and decode.

Modules hold parameters and nothing else. Attribute paths and shapes are those of a Hugging Face
checkpoint (without its prefix `model.`), so loading and saving are renames. A model is always
built abstract, with `jax.ShapeDtypeStruct`s for parameters, and then filled: from a file
(`llama_jax.checkpoint`) or at random (`initialize`).

A module is a pytree; what a compiled function should take are its leaves (`leaves_of`), since
passing the module itself costs milliseconds a call.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from llama_jax.base.modes import jit, standard
from llama_jax.base.programs import programs
from llama_jax.config import LlamaConfig
from llama_jax.model.attention import attend, causal_mask
from llama_jax.model.cache import CACHE_AXES, Cache, append, append_shared
from llama_jax.model.layers import Layers
from llama_jax.model.product import linear, product, wide
from llama_jax.model.rope import rotary_tables, rotate
from llama_jax.model.tap import NO_TAPS, Tap, Taps
from llama_jax.parallel import Layout, weight_shardings

__all__ = [
    "Context",
    "Forward",
    "Layer",
    "Logits",
    "Model",
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


class Embedding(nnx.Module):
    def __init__(self, vocabulary: int, size: int, dtype: jnp.dtype) -> None:
        self.weight = _abstract((vocabulary, size), dtype)

    def __call__(self, tokens: Int[Array, "B T"], taps: Taps = NO_TAPS) -> Float[Array, "B T D"]:
        return taps.shard(self.weight[...], "V D")[tokens]


class Linear(nnx.Module):
    """`y = W x + b`, W as `[out, in]`; a Llama 3 has no b, others' Llamas may."""

    def __init__(self, inputs: int, outputs: int, dtype: jnp.dtype, bias: bool = False) -> None:
        self.weight = _abstract((outputs, inputs), dtype)
        if bias:
            self.bias = _abstract((outputs,), dtype)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        return self.shifted(linear(x, self.weight[...])).astype(x.dtype)

    def shifted(self, product: Float[Array, "*B O"]) -> Float[Array, "*B O"]:
        """With the bias, where there is one."""
        if not hasattr(self, "bias"):
            return product
        bias = self.bias[...].astype(product.dtype)
        return product + jnp.broadcast_to(bias, product.shape)


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, the division in at least f32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype) -> None:
        self.weight = _abstract((size,), dtype)
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"], taps: Taps) -> Float[Array, "B T D"]:
        x_wide = x.astype(wide(x.dtype))
        mean_square = jnp.mean(x_wide * x_wide, axis=-1, keepdims=True) + self.eps
        normalized = x_wide * jax.lax.rsqrt(mean_square)
        if taps.wants("scale"):
            # Beside the way of the numbers: who looks at the scale must not change the last bit.
            own = jnp.sqrt(mean_square)
            scale = taps("scale", own)
            if taps.edits("scale"):
                same = normalized * (own / scale)  # times 1: for the gradient
                normalized = jnp.where(scale == own, same, x_wide / scale)
        normalized = taps("normalized", normalized.astype(x.dtype))
        weight = self.weight[...]
        together = jnp.promote_types(x.dtype, weight.dtype)  # however the weight is stored
        return taps("out", (normalized.astype(together) * weight.astype(together)).astype(x.dtype))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["cos", "sin", "mask", "before", "lengths"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of one forward shares; made once a forward, not once a layer."""

    cos: Float[Array, "B T H/2"]
    sin: Float[Array, "B T H/2"]
    mask: Array  # bool [B, T, S]
    before: Int[Array, " B"]  # how many positions of each row the cache held before
    lengths: Int[Array, " B"]  # how many of the new ones are real
    layout: Layout | None = None  # of the arrays, on several devices

    def at(self, queries: Int[Array, "B Q"]) -> Context:
        """That of some of the new positions, all of which are real."""
        cos, sin, mask = (_at(x, queries) for x in (self.cos, self.sin, self.mask))
        return Context(cos, sin, mask, self.before, jnp.full_like(self.lengths, queries.shape[1]))


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        query = config.num_attention_heads * config.head_dim
        key_value = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, query, dtype, bias)
        self.k_proj = Linear(config.hidden_size, key_value, dtype, bias)
        self.v_proj = Linear(config.hidden_size, key_value, dtype, bias)
        self.o_proj = Linear(query, config.hidden_size, dtype, bias)
        self.head_dim = config.head_dim

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cached: tuple[Array, Array] | None,
        taps: Taps,
        only: Int[Array, "B Q"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], tuple[Array, Array] | None]:
        k = taps("k", self._heads(self.k_proj(x)))
        v = taps("v", self._heads(self.v_proj(x)))
        k = taps("k_rot", rotate(k, context.cos, context.sin))
        if cached is not None:
            shared = taps.mesh is not None and taps.mesh.shape["sequence"] > 1
            write = append_shared if shared else append
            k, v = (
                taps.shard(write(old, new, context.before), CACHE_AXES)
                for old, new in zip(cached, (k, v), strict=True)
            )
            cached = (k, v)
        if only is not None:
            x, context = _at(x, only), context.at(only)
        q = taps("q", self._heads(self.q_proj(x)))
        q = taps("q_rot", rotate(q, context.cos, context.sin))
        z = attend(q, k, v, context.mask, taps)
        out = self.o_proj(z.reshape(*x.shape[:2], -1))
        if taps.wants("head_out"):
            by_head = self.o_proj.weight[...].reshape(-1, *z.shape[2:])
            own = product("BTNH,DNH->BTND", z, by_head).astype(x.dtype)
            each = taps("head_out", own)
            if taps.edits("head_out"):
                total, before = (jnp.sum(heads, 2, wide(x.dtype)) for heads in (each, own))
                same = out + (total - before).astype(x.dtype)  # plus 0: for the gradient
                unchanged = jnp.all(each == own, axis=(2, 3))[..., None]
                out = jnp.where(unchanged, same, self.o_proj.shifted(total).astype(x.dtype))
        return taps("out", out), cached

    def _heads(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class MLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))` (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        bias = config.mlp_bias
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, dtype, bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, dtype, bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, dtype, bias)

    def __call__(self, x: Float[Array, "B T D"], taps: Taps) -> Float[Array, "B T D"]:
        gate = taps("gate", self.gate_proj(x))
        up = taps("up", self.up_proj(x))
        act = taps("act", jax.nn.silu(gate) * up)
        return taps("out", self.down_proj(act))


class Layer(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cached: tuple[Array, Array] | None,
        taps: Taps,
        only: Int[Array, "B Q"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], tuple[Array, Array] | None]:
        """With `only`, of all positions the keys and values and of these the rest: no taps then."""
        x = taps("resid_pre", x)
        normed = self.input_layernorm(x, taps.at("input_layernorm"))
        attended, cached = self.self_attn(normed, context, cached, taps.at("self_attn"), only)
        x = x if only is None else _at(x, only)
        x = taps("resid_mid", x + attended)
        normed = self.post_attention_layernorm(x, taps.at("post_attention_layernorm"))
        return taps("resid_post", x + self.mlp(normed, taps.at("mlp"))), cached


class Model(nnx.Module):
    """A Llama 3 of the given architecture. Its parameters are abstract until they are filled.

    With a mesh (`llama_jax.parallel`) each says which devices are to hold its parts.

    >>> model = Model(LlamaConfig.preset("llama-3.1-8b"), jnp.bfloat16)
    >>> model.layers[3].self_attn.k_proj.weight.get_value()
    ShapeDtypeStruct(shape=(1024, 4096), dtype=bfloat16)
    """

    def __init__(
        self, config: LlamaConfig, dtype: jnp.dtype = jnp.float32, mesh: Mesh | None = None
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = Layers(Layer(config, dtype) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype)
        if mesh is not None:
            slots = parameters(self)
            for name, place in weight_shardings(slots, mesh).items():
                shape = slots[name].get_value().shape
                slots[name].set_value(jax.ShapeDtypeStruct(shape, dtype, sharding=place))

    @property
    def dtype(self) -> jnp.dtype:
        return self.embed_tokens.weight.get_value().dtype


Logits = Literal["all", "last", "none"]


class Forward(NamedTuple):
    """What one pass gives."""

    hidden: Float[Array, "B T D"]  # after the final norm
    logits: Float[Array, "B T V"] | None  # [B, 1, V] where only the last position's were asked for
    cache: Cache | None
    captured: dict[str, Any]  # by full name, what each tap's `Take` gives


@standard
def forward(
    model: Model,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    cache: Cache | None = None,
    taps: Mapping[str, Tap] = types.MappingProxyType({}),
    logits: Logits = "all",
    documents: Int[Array, "B T"] | None = None,
    remat: bool = False,
) -> Forward:
    """Runs `tokens` behind what `cache` holds; without a cache they are the whole sequence.

    `lengths` says how many of each row's T tokens are real; the rest is padding on the right, that
    no real position reads. `taps` maps full names of points to what happens there; masks and values
    with a T span all positions, those in the cache among them. `logits` are made at all positions,
    at each row's last real one, or not at all (`"none"`). `documents` numbers the documents of each
    row, which then read nothing of each other (without a cache only). With `remat` a gradient keeps
    what enters each layer, and makes the rest again. To be called inside `jax.jit`.
    """
    rows, real, layout = len(tokens), lengths, None
    if model.mesh is not None:
        layout = Layout.of(model.mesh, tokens, cache is not None)
        tokens, lengths = layout.padded(tokens, lengths)
    before = jnp.zeros_like(lengths) if cache is None else cache.lengths
    size = tokens.shape[1] if cache is None else cache.size
    positions = before[:, None] + jnp.arange(tokens.shape[1])
    cos, sin = rotary_tables(model.config, positions, wide(model.dtype))
    if documents is not None:
        padding = [(0, new - old) for new, old in zip(tokens.shape, documents.shape, strict=True)]
        documents = jnp.pad(documents, padding)
    mask = causal_mask(positions, before + lengths, size, documents)
    context = Context(cos, sin, mask, before, lengths, layout)

    if cache is not None:
        taps = {name: tap.at(positions[:rows]) for name, tap in taps.items()}
    seen = Taps(taps, real, layout)
    x = seen("embed", model.embed_tokens(tokens, seen))
    stored = []
    through = jax.checkpoint(_layer) if remat else _layer
    for i, layer in enumerate(model.layers):
        cached = None if cache is None else (cache.keys[i], cache.values[i])
        prefix = f"layers.{i}."
        inside = {n.removeprefix(prefix): tap for n, tap in taps.items() if n.startswith(prefix)}
        x, cached, captured = through(layer, x, context, cached, inside, real)
        seen.captured.update({prefix + name: value for name, value in captured.items()})
        stored.append(cached)
    if cache is not None:
        keys, values = zip(*stored, strict=True)
        cache = Cache(keys, values, before + lengths)
    hidden = model.norm(x, seen.at("norm"))
    made = None
    if logits == "all":
        made = seen("logits", unembed(model, hidden))
    elif logits == "last":
        end = jnp.maximum(lengths - 1, 0)[:, None]
        own = {name: tap.at(end[:rows]) for name, tap in taps.items() if name == "logits"}
        alone = Taps(own, jnp.ones_like(real), layout and dataclasses.replace(layout, queries=1))
        last = jnp.take_along_axis(hidden, end[..., None], axis=1)
        made = alone("logits", unembed(model, last))
        seen.captured.update(alone.captured)
    if layout is not None:
        hidden = layout.shard(layout.cut(hidden, "B T D"), "B T D")
        made = None if made is None else layout.shard(layout.cut(made, "B T V"), "B T V")
    return Forward(hidden, made, cache, seen.captured)


@jit
def _layer(
    layer: Layer,
    x: Float[Array, "B T D"],
    context: Context,
    cached: tuple[Array, Array] | None,
    taps: dict[str, Tap],
    real: Int[Array, " B"],
) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None, dict[str, Any]]:
    # A function of its own, under names without a layer's number: equal layers share one trace.
    seen = Taps(taps, real, context.layout)
    x, cached = layer(x, context, cached, seen)
    return x, cached, seen.captured


def unembed(model: Model, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits in at least f32 of hidden states that went through the final norm."""
    head = model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
    return linear(hidden, head.weight[...])


def readout(model: Model, stream: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits in at least f32 of a residual stream, as if it were the last one."""
    return unembed(model, model.norm(stream, NO_TAPS))


def leaves_of(model: Model) -> tuple[tuple[Array, ...], Any]:
    """The weights as a flat tuple, and the static structure that makes a module of them again.

    Compiled functions take these: `jax.tree.unflatten(structure, leaves)` costs nothing inside.
    Raises `ValueError` for a model that has no weights. Whoever computes begins here, so here is
    where programs are let go when they have become too many.
    """
    programs.let_go()
    leaves, structure = jax.tree.flatten(model)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
        raise ValueError(
            "This Llama is abstract: it has shapes and no weights to compute with. Make one with "
            "Llama.random or Llama.from_pretrained."
        )
    return tuple(leaves), structure


def leaf_numbers(model: Model) -> dict[str, int]:
    """Which of `leaves_of(model)` each parameter is, by name. Two may share one array."""
    leaves, structure = jax.tree.flatten(model)
    numbered = jax.tree.unflatten(structure, range(len(leaves)))
    return {name: slot.get_value() for name, slot in parameters(numbered).items()}


def parameters(model: Model) -> dict[str, nnx.Param]:
    """Every parameter by its name in a checkpoint, without the file's prefix `model.`.

    >>> list(parameters(Model(LlamaConfig.preset("llama-3.2-1b"))))[:2]
    ['embed_tokens.weight', 'layers.0.input_layernorm.weight']
    """
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): parameter for path, parameter in flat}


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name, without a model: every layer is as the first.

    >>> shapes(LlamaConfig.preset("llama-3.1-405b"))["layers.125.mlp.up_proj.weight"]
    (53248, 16384)
    """
    one = parameters(Model(dataclasses.replace(config, num_hidden_layers=1)))
    first = {name: slot.get_value().shape for name, slot in one.items()}
    inside = {name.removeprefix("layers.0."): name for name in first if name.startswith("layers.")}
    found = {name: shape for name, shape in first.items() if name not in inside.values()}
    for i in range(config.num_hidden_layers):
        found |= {f"layers.{i}.{local}": first[name] for local, name in inside.items()}
    return found


def initialize(model: Model, seed: int = 0, std: float = 0.02) -> None:
    """Fills `model` with normal matrices of the given deviation, norms of one and biases of zero.

    Each parameter's numbers depend on the seed and on its own name alone.
    """
    key = jax.random.key(seed)
    for name, parameter in parameters(model).items():
        old = parameter.get_value()
        if len(old.shape) == 1:
            value = 0 if name.endswith("bias") else 1
            parameter.set_value(jnp.full(old.shape, value, old.dtype, device=place_of(old)))
        else:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            parameter.set_value(_normal(own, old.shape, old.dtype, std, place_of(old)))


@functools.partial(jit, static_argnums=(1, 2, 3, 4))
def _normal(
    key: Array, shape: tuple[int, ...], dtype: jnp.dtype, std: float, place: NamedSharding | None
) -> Array:
    made = (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)
    return made if place is None else jax.lax.with_sharding_constraint(made, place)


def place_of(weight: Array | jax.ShapeDtypeStruct) -> NamedSharding | None:
    """Which devices of a mesh hold its parts, or are to hold them; None where there is no mesh."""
    return weight.sharding if isinstance(weight.sharding, NamedSharding) else None


def _at(x: Array, positions: Int[Array, "B Q"]) -> Array:
    """Of each row of `x` [B, T, …] its own positions."""
    return jnp.take_along_axis(x, positions.reshape(*positions.shape, *[1] * (x.ndim - 2)), axis=1)


def _abstract(shape: tuple[int, ...], dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
