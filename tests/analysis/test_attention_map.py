"""Tiles of attention: any range at any size, equal to pooling the whole map."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama, Replace
from llama_jax.analysis import MissingPointError, attention, attention_map
from tests.tiny import GQA, MQA, compiled

PROMPTS = [list(range(37)), list(range(50, 71))]


@pytest.fixture(scope="module", params=[GQA, MQA], ids=["GQA", "MQA"])
def run(request):
    llama = Llama.random(request.param, std=0.3)
    return llama.run(PROMPTS, ("q_rot", "k_rot", "pattern"), logits="last")


def pooled(pattern, queries, keys, shape, pool):
    reduce = np.max if pool == "max" else np.mean
    rows = np.array_split(pattern[slice(*queries)], min(shape[0], queries[1] - queries[0]))
    cut = min(shape[1], keys[1] - keys[0])
    return [
        [reduce(cell) for cell in np.array_split(row[:, slice(*keys)], cut, axis=1)] for row in rows
    ]


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize(
    ("queries", "keys", "shape"),
    [
        ((0, 37), (0, 37), (256, 256)),
        ((0, 37), (0, 37), (8, 5)),
        ((3, 30), (1, 36), (7, 11)),
        ((36, 37), (0, 37), (1, 37)),
        ((20, 21), (19, 20), (1, 1)),
        ((0, 5), (30, 37), (2, 3)),
    ],
)
def test_a_tile_is_the_pooled_pattern(run, queries, keys, shape, pool):
    found = attention_map(run, 1, 3, 0, queries, keys, shape, pool)
    expected = pooled(np.asarray(run["pattern", 1][0, 3]), queries, keys, shape, pool)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.query_edges[0] == queries[0] and found.key_edges[-1] == keys[1]


def test_each_head_and_row_has_its_own(run):
    for layer, head, row in itertools.product([0, -1], [0, 2, -1], [0, 1, -1]):
        found = attention_map(run, layer, head, row)
        size = len(PROMPTS[row])
        expected = run["pattern", layer][row, head, :size, :size]
        assert found.values.shape == (size, size)
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        np.testing.assert_allclose(found.values.sum(1), 1, atol=1e-5)


def test_few_pairs_at_once_give_the_same(run, monkeypatch):
    expected = attention_map(run, 1, 3, shape=(8, 8)).values
    monkeypatch.setattr(attention, "PAIRS_AT_ONCE", 200)
    jax.clear_caches()
    np.testing.assert_allclose(attention_map(run, 1, 3, shape=(8, 8)).values, expected, atol=1e-6)


def test_tiles_of_about_equal_size_share_a_program(run):
    attention_map(run, 1, 3, queries=(0, 24), keys=(0, 24), shape=(8, 8))
    with compiled() as programs:
        attention_map(run, 0, 2, 0, queries=(5, 28), keys=(2, 27), shape=(8, 8))
    assert not programs


def long_run(run, length):
    """A run that holds queries and keys of a long prompt, and nothing else of it."""
    config = run.config
    size = config.head_dim
    keys = jax.random.split(jax.random.key(0))
    q = 3 * jax.random.normal(keys[0], (1, length, config.num_attention_heads, size))
    k = jax.random.normal(keys[1], (1, length, config.num_key_value_heads, size))
    captured = {"layers.1.self_attn.q_rot": q, "layers.1.self_attn.k_rot": k}
    tokens = np.zeros((1, length), np.int32)
    return dataclasses.replace(
        run, tokens=tokens, lengths=np.array([length], np.int32), captured=captured, llama=None
    )


def test_memory_grows_with_the_prompt_and_not_with_its_square(run):
    def temporaries(length):
        edges = attention._edges(0, length, 256)
        members = attention._members(edges)
        long = long_run(run, length)
        q, k = (long.captured[f"layers.1.self_attn.{name}_rot"] for name in "qk")
        which = np.array([0, 0, length], np.int32)
        program = attention._tile.lower(q, k, which, members, members, "max").compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.2 * temporaries(2048) + 2**20
    assert temporaries(8192) < 200e6 < 8192 * 8192 * 4


def test_a_long_map_is_exact_at_every_scale(run):
    long = long_run(run, 2048)
    q, k = (np.float64(long.captured[f"layers.1.self_attn.{name}_rot"][0]) for name in "qk")
    shared = 3 // (run.config.num_attention_heads // run.config.num_key_value_heads)
    scores = q[:, 3] @ k[:, shared].T / np.sqrt(run.config.head_dim)
    scores[np.triu_indices(2048, 1)] = -np.inf
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    for queries, shape in (((0, 2048), (64, 64)), ((1000, 1700), (100, 30)), ((9, 10), (1, 2048))):
        found = attention_map(long, 1, 3, queries=queries, shape=shape)
        expected = pooled(pattern, queries, (0, 2048), shape, "max")
        np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_narrow_dtypes_and_float64_are_taken():
    llama = Llama.random(GQA, std=0.3, dtype="bf16")
    run = llama.run(PROMPTS[0], ("q_rot", "k_rot", "pattern"), logits="last")
    found = attention_map(run, 1, 1)
    assert found.values.dtype == jnp.float32
    np.testing.assert_allclose(found.values, np.float32(run["pattern", 1][0, 1]), atol=4e-3)


def test_bad_input_is_refused_in_words(run):
    llama = run.llama
    with pytest.raises(MissingPointError, match=r"capture=\('q_rot', 'k_rot'\)"):
        attention_map(llama.run(PROMPTS, "pattern"), 0, 0)
    edit = Replace(("scores", 1), lambda scores: scores * 2)
    edited = llama.run(PROMPTS, ("q_rot", "k_rot"), edits=edit)
    assert attention_map(edited, 0, 0).values.shape == (37, 37)
    with pytest.raises(ValueError, match="scores of layer 1 were edited"):
        attention_map(edited, 1, 0)
    for given, error, says in (
        ({"layer": 3}, IndexError, "There is no layer 3"),
        ({"head": 4}, IndexError, "There is no head 4"),
        ({"row": 2}, IndexError, "There is no row 2: 2 of them, 0 to 1"),
        ({"queries": (5, 5)}, ValueError, r"queries=\(5, 5\): a range within the row's 37"),
        ({"row": 1, "keys": (0, 22)}, ValueError, "the row's 21 positions"),
        ({"shape": (0, 4)}, ValueError, r"shape is \(0, 4\)"),
        ({"pool": "sum"}, ValueError, "must be 'max' or 'mean'"),
    ):
        with pytest.raises(error, match=says):
            attention_map(run, **{"layer": 0, "head": 0, **given})
