"""What a head's weights alone say: which tokens it would match, and what it would copy.

A head acts on the stream through two products of weights, each of rank H at most: the QK circuit
scores pairs of vectors, the OV circuit moves a vector from a key to its query. Both are kept as two
factors; a `hidden x hidden` matrix is made only by `matrix()`. Vectors are rows, as in
TransformerLens: `x_query @ qk @ x_key.T` and `x_key @ ov`, where x is `input_layernorm.out`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from llama_jax.analysis.results import Result, node
from llama_jax.base.choice import numbered
from llama_jax.base.modes import jit
from llama_jax.config import LlamaConfig
from llama_jax.model import Layer, leaves_of
from llama_jax.model.product import product, wide
from llama_jax.model.rope import inverse_frequencies

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["SVD", "Factored", "composition_scores", "ov_circuit", "qk_circuit"]


class SVD(NamedTuple):
    """`U @ diag(S) @ Vh`, singular values largest first."""

    U: Float[Array, "I R"]
    S: Float[Array, " R"]
    Vh: Float[Array, "R O"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Factored:
    """The matrix `left @ right` of rank R at most, kept as its factors, f32 or wider.

    Everything but `matrix()` costs and holds no more than the factors do.

    >>> circuit = Factored(jnp.eye(6)[:, :2], jnp.eye(6)[:2] * 3)
    >>> circuit.shape, circuit.svd().S.tolist(), round(circuit.norm().item() ** 2, 3)
    ((6, 6), [3.0, 3.0], 18.0)
    """

    left: Float[Array, "I R"]
    right: Float[Array, "R O"]
    name: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The most that the rank can be: R."""
        return self.left.shape[1]

    @property
    def T(self) -> Factored:
        return Factored(self.right.T, self.left.T, f"{self.name}.T")

    def matrix(self) -> Float[Array, "I O"]:
        """The whole product: `I x O` numbers."""
        return product("IR,RO->IO", self.left, self.right)

    def svd(self) -> SVD:
        """The thin singular value decomposition, by QR of the factors and an SVD of `R x R`.

        At most `rank` singular values; `U diag(S) Vh` is the matrix to 1e-5 of `S[0]` in f32.
        """
        return _svd(self.left, self.right)

    def norm(self) -> Float[Array, ""]:
        """The Frobenius norm, `sqrt(sum S^2)`."""
        return _norm(self.left, self.right)

    def eigenvalues(self) -> np.ndarray:
        """The nonzero eigenvalues of a square one, complex: those of `right @ left`, `R x R`.

        Largest first. They are found on the host in double precision.
        """
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"Only a square matrix has eigenvalues; this one is {self.shape}.")
        small = np.asarray(product("RI,IQ->RQ", self.right, self.left), np.float64)
        found = np.linalg.eigvals(small).astype(np.complex128)
        return found[np.argsort(-np.abs(found), kind="stable")]

    def copying(self) -> float:
        """`sum of eigenvalues / sum of their absolute values`: 1 where all is copied, -1 inverted.

        Of an OV circuit between tokens (`vocabulary=True`) this is the copying score of Elhage et
        al., 2021.
        """
        found = self.eigenvalues()
        return float(found.sum().real / np.abs(found).sum())

    def apply(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """`x @ matrix`, through the factors."""
        x = jnp.asarray(x, self.left.dtype)
        return product("...R,RO->...O", product("...I,IR->...R", x, self.left), self.right)

    def pairs(self, a: Float[Array, "A I"], b: Float[Array, "C O"]) -> Float[Array, "A C"]:
        """`a @ matrix @ b.T`; of a QK circuit each query's score with each key, times sqrt(H)."""
        b = jnp.asarray(b, self.left.dtype)
        return product(
            "AR,CR->AC",
            product("AI,IR->AR", jnp.asarray(a, b.dtype), self.left),
            product("CO,RO->CR", b, self.right),
        )

    def __repr__(self) -> str:
        rows, columns = self.shape
        label = f"{self.name}, " if self.name else ""
        return f"Factored({label}{rows} x {columns} of rank {self.rank})"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        values = Result(self.svd().S, ("singular value",), title="singular values")
        return node(
            self,
            {"left": self.left, "right": self.right, "svd().S": values},
            path,
            subtree_renderer,
        )


def qk_circuit(
    llama: Llama,
    layer: int,
    head: int,
    *,
    distance: int | None = None,
    fold_norm: bool = False,
    vocabulary: bool = False,
) -> Factored:
    """`W_Q W_K^T` of a query head and the KV head that it reads, `[D, D]` of rank H.

    `x_query @ qk @ x_key.T / sqrt(H)` is the score before RoPE turns queries and keys. With
    `distance` d >= 0 it is the score of a key d positions before its query: exactly
    `self_attn.scores`, to 1e-5 in f32. `fold_norm` puts the input norm's weight in, for x that are
    `input_layernorm.normalized`. `vocabulary` puts the embedding on both sides too, `[V, V]` of
    rank H: how each token would match each, no layer between and no norm's scale.

    Raises `IndexError` for a layer or head that is not there.

    >>> from llama_jax import Llama
    >>> qk_circuit(Llama.from_pretrained("cria"), 1, 3)
    Factored(QK 1.3, 192 x 192 of rank 32)

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
    """
    layer, head = _which(llama, layer, head)
    left = _query(llama.model.layers[layer], head, fold_norm or vocabulary)
    right = _key(llama.model.layers[layer], llama.config, head, fold_norm or vocabulary)
    if distance is not None:
        if distance < 0:
            raise ValueError(f"distance is {distance}; a key is 0 or more positions before.")
        left = _turned(llama.config, left, distance)
    if vocabulary:
        tokens = _embedding(llama)
        left, right = product("VD,DH->VH", tokens, left), product("VD,DH->VH", tokens, right)
    return Factored(left, right.T, f"QK {layer}.{head}")


def ov_circuit(
    llama: Llama, layer: int, head: int, *, fold_norm: bool = False, vocabulary: bool = False
) -> Factored:
    """`W_V W_O` of a head, `[D, D]` of rank H: what it writes of what it reads.

    `pattern @ (x @ ov)` is `head_out`, to 1e-5 in f32; biases, where a model has some, are left
    out. `fold_norm` puts the input norm's weight in, for x that are `input_layernorm.normalized`.
    `vocabulary` goes from tokens to logits, `[V, V]`: embedding, input norm, head, final norm and
    unembedding, without the norms' scales; its `copying()` tells heads that say again what they
    read.

    Raises `IndexError` for a layer or head that is not there.

    >>> from llama_jax import Llama
    >>> circuit = ov_circuit(Llama.from_pretrained("cria"), 1, 3, vocabulary=True)
    >>> circuit.shape, circuit.rank, circuit.copying() > 0.5
    ((2048, 2048), 32, True)
    """
    layer, head = _which(llama, layer, head)
    left = _value(llama.model.layers[layer], llama.config, head, fold_norm or vocabulary)
    right = _output(llama.model.layers[layer], llama.config, head)
    if vocabulary:
        left = product("VD,DH->VH", _embedding(llama), left)
        right = product("HD,VD->HV", right, _unembedding(llama))
    return Factored(left, right, f"OV {layer}.{head}")


def composition_scores(
    llama: Llama, kind: Literal["Q", "K", "V"] = "K", *, fold_norm: bool = False
) -> Result:
    """How much each later head's queries, keys or values are made of what each earlier head writes.

    `|| W_OV W ||_F / (|| W_OV ||_F || W ||_F)` with W the later head's `qk` (Q), `qk.T` (K) or
    `ov` (V): `[L, N, L, N]`, from a layer and head to a layer and head, 0 to 1, and 0 where the
    second does not lie above the first. Random weights give about `1 / sqrt(D)`. `fold_norm` puts
    the weights of both layers' input norms in.

    >>> from llama_jax import Llama
    >>> composition_scores(Llama.from_pretrained("cria"), "K").values.shape
    (4, 8, 4, 8)

    Source: Elhage et al., 2021; TransformerLens' `all_composition_scores`.
    """
    if kind not in ("Q", "K", "V"):
        raise ValueError(f"kind is {kind!r}; it must be 'Q', 'K' or 'V'.")
    leaves_of(llama.model)  # says it where there are no weights
    config, layers = llama.config, llama.model.layers
    count, heads = config.num_hidden_layers, config.num_attention_heads
    found = np.zeros((count, heads, count, heads), np.float32)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    for a, b in tqdm(pairs, desc="composition", unit="pair", leave=False, delay=1):
        found[a, :, b] = _composed(layers[a], layers[b], config, kind, fold_norm)
    axes = ("from_layer", "from_head", "to_layer", "to_head")
    return Result(jnp.asarray(found), axes, title=f"{kind}-composition")


@functools.partial(jit, static_argnums=(2, 3, 4))
def _composed(
    first: Layer, second: Layer, config: LlamaConfig, kind: str, fold_norm: bool
) -> Float[Array, "N M"]:
    """Scores of all pairs of heads of two layers, from products of `H x H` matrices."""
    heads = range(config.num_attention_heads)
    writes = [(_value(first, config, n, fold_norm), _output(first, config, n)) for n in heads]
    reads = []
    for n in heads:
        query, key = _query(second, n, fold_norm), _key(second, config, n, fold_norm)
        own = (_value(second, config, n, fold_norm), _output(second, config, n).T)
        reads.append({"Q": (query, key), "K": (key, query), "V": own}[kind])
    lefts, rights = (jnp.stack(part) for part in zip(*writes, strict=True))  # NDH, NHD
    nears, fars = (jnp.stack(part) for part in zip(*reads, strict=True))  # MDH, MDH
    left, far = (jnp.linalg.qr(x, mode="r") for x in (lefts, fars))
    right, near = (jnp.linalg.qr(x, mode="r") for x in (jnp.swapaxes(rights, 1, 2), nears))

    def one(write: tuple[Array, Array, Array]) -> Float[Array, " M"]:
        a, b, r = write
        middle = product("HD,MDG->MHG", b, nears)
        between = product("EH,MHG->MEG", a, middle)
        whole = jnp.linalg.norm(product("MEG,MFG->MEF", between, far), axis=(1, 2))
        own = jnp.linalg.norm(product("EH,FH->EF", a, r))
        theirs = jnp.linalg.norm(product("MEG,MFG->MEF", near, far), axis=(1, 2))
        return whole / (own * theirs)

    return jax.lax.map(one, (left, rights, right))


def _which(llama: Llama, layer: int, head: int) -> tuple[int, int]:
    leaves_of(llama.model)  # says it where there are no weights
    return (
        numbered("layer", layer, llama.config.num_hidden_layers),
        numbered("head", head, llama.config.num_attention_heads),
    )


def _query(layer: Layer, head: int, fold_norm: bool) -> Float[Array, "D H"]:
    return _read(layer, layer.self_attn.q_proj, head, fold_norm)


def _key(layer: Layer, config: LlamaConfig, head: int, fold_norm: bool) -> Float[Array, "D H"]:
    return _read(layer, layer.self_attn.k_proj, _shared(config, head), fold_norm)


def _value(layer: Layer, config: LlamaConfig, head: int, fold_norm: bool) -> Float[Array, "D H"]:
    return _read(layer, layer.self_attn.v_proj, _shared(config, head), fold_norm)


def _output(layer: Layer, config: LlamaConfig, head: int) -> Float[Array, "H D"]:
    size = config.head_dim
    weight = layer.self_attn.o_proj.weight[...]
    return weight[:, head * size : (head + 1) * size].T.astype(wide(weight.dtype))


def _read(layer: Layer, projection: Any, head: int, fold_norm: bool) -> Float[Array, "D H"]:
    size = layer.self_attn.head_dim
    weight = projection.weight[...][head * size : (head + 1) * size].T
    weight = weight.astype(wide(weight.dtype))
    if fold_norm:
        weight = weight * layer.input_layernorm.weight[...].astype(weight.dtype)[:, None]
    return weight


def _shared(config: LlamaConfig, head: int) -> int:
    """The key/value head that a query head reads."""
    return head // (config.num_attention_heads // config.num_key_value_heads)


def _turned(config: LlamaConfig, left: Float[Array, "D H"], distance: int) -> Float[Array, "D H"]:
    """Queries turned against keys by the angles of `distance` positions."""
    angles = (np.float32(distance) * inverse_frequencies(config)).astype(left.dtype)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(left, 2, axis=1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)


def _embedding(llama: Llama) -> Float[Array, "V D"]:
    weight = llama.model.embed_tokens.weight[...]
    return weight.astype(wide(weight.dtype))


def _unembedding(llama: Llama) -> Float[Array, "V D"]:
    model = llama.model
    head = model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
    weight = head.weight[...]
    return weight.astype(wide(weight.dtype)) * model.norm.weight[...].astype(wide(weight.dtype))


@jit
def _svd(left: Array, right: Array) -> SVD:
    if left.shape[1] > min(left.shape[0], right.shape[1]):  # factors wider than the matrix
        return SVD(*jnp.linalg.svd(product("IR,RO->IO", left, right), full_matrices=False))
    a, small_a = jnp.linalg.qr(left)
    b, small_b = jnp.linalg.qr(right.T)
    u, s, vh = jnp.linalg.svd(product("RP,QP->RQ", small_a, small_b), full_matrices=False)
    return SVD(product("IR,RS->IS", a, u), s, product("SQ,OQ->SO", vh, b))


@jit
def _norm(left: Array, right: Array) -> Array:
    a, b = jnp.linalg.qr(left, mode="r"), jnp.linalg.qr(right.T, mode="r")
    return jnp.linalg.norm(product("RP,QP->RQ", a, b))
