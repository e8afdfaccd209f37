"""Circuits: products of weights that predict what the forward pass does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.analysis import Factored, composition_scores, ov_circuit, qk_circuit
from tests.analysis.planted import planted
from tests.tiny import GQA, MHA, MQA

TOKENS = np.arange(12)[None]


@pytest.fixture(scope="module", params=[MHA, GQA, MQA], ids=["MHA", "GQA", "MQA"])
def llama(request):
    made = Llama.random(request.param, std=0.3)
    rng = np.random.default_rng(0)
    norms = {f"layers.{i}.input_layernorm.weight": rng.uniform(0.5, 2, 32) for i in range(3)}
    return made.edited({**norms, "norm.weight": rng.uniform(0.5, 2, 32)})


def weights(llama, layer, head):
    """W_Q, W_K, W_V as `[D, H]` and W_O as `[H, D]` of one query head, cut by hand."""
    attention, config = llama.model.layers[layer].self_attn, llama.config
    shared = head // (config.num_attention_heads // config.num_key_value_heads)
    q, o = (np.float64(p.weight[...]) for p in (attention.q_proj, attention.o_proj))
    k, v = (np.float64(p.weight[...]) for p in (attention.k_proj, attention.v_proj))
    own, theirs = slice(16 * head, 16 * head + 16), slice(16 * shared, 16 * shared + 16)
    return q[own].T, k[theirs].T, v[theirs].T, o[:, own].T


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3), (-1, -2)])
def test_they_are_the_products_of_the_head_s_weights(llama, layer, head):
    q, k, v, o = weights(llama, layer % 3, head % 4)
    np.testing.assert_allclose(qk_circuit(llama, layer, head).matrix(), q @ k.T, atol=1e-5)
    np.testing.assert_allclose(ov_circuit(llama, layer, head).matrix(), v @ o, atol=1e-5)


def test_qk_at_a_distance_is_the_score(llama):
    run = llama.run(TOKENS, ("input_layernorm.out", "normalized", "scores"))
    for layer, head, query, key in [(0, 1, 5, 5), (1, 2, 11, 3), (2, 3, 8, 7)]:
        expected = float(run["scores", layer][0, head, query, key])
        x = run[f"layers.{layer}.input_layernorm.out"][0]
        circuit = qk_circuit(llama, layer, head, distance=query - key)
        found = circuit.pairs(x[query : query + 1], x[key : key + 1]) / np.sqrt(16)
        assert float(found[0, 0]) == pytest.approx(expected, abs=1e-4)
        x = run[f"layers.{layer}.input_layernorm.normalized"][0]
        folded = qk_circuit(llama, layer, head, distance=query - key, fold_norm=True)
        found = folded.pairs(x[query : query + 1], x[key : key + 1]) / np.sqrt(16)
        assert float(found[0, 0]) == pytest.approx(expected, abs=1e-4)


def test_ov_of_what_is_read_is_what_the_head_writes(llama):
    run = llama.run(TOKENS, ("input_layernorm.out", "pattern", "head_out"))
    for layer, head in [(0, 0), (1, 2), (2, 3)]:
        x = run[f"layers.{layer}.input_layernorm.out"][0]
        found = run["pattern", layer][0, head] @ ov_circuit(llama, layer, head).apply(x)
        np.testing.assert_allclose(found, run["head_out", layer][0, :, head], atol=1e-5)


def test_between_tokens_they_stand_between_embedding_and_unembedding(llama):
    q, k, v, o = weights(llama, 1, 2)
    model = llama.model
    table = np.float64(model.embed_tokens.weight[...])
    inner = np.float64(model.layers[1].input_layernorm.weight[...])[:, None]
    head = np.float64(model.lm_head.weight[...]) * np.float64(model.norm.weight[...])
    match = qk_circuit(llama, 1, 2, vocabulary=True)
    assert match.shape == (96, 96) and match.rank == 16
    np.testing.assert_allclose(
        match.matrix(), table @ (inner * q) @ (inner * k).T @ table.T, atol=1e-3
    )
    copied = ov_circuit(llama, 1, 2, vocabulary=True)
    np.testing.assert_allclose(copied.matrix(), table @ (inner * v) @ o @ head.T, atol=1e-3)


def test_the_svd_rebuilds_the_matrix_with_no_more_values_than_the_head_has(llama):
    for circuit in (qk_circuit(llama, 0, 1), ov_circuit(llama, 2, 2), ov_circuit(llama, 2, 2).T):
        u, s, vh = circuit.svd()
        assert s.shape == (16,) and u.shape == (32, 16) and vh.shape == (16, 32)
        np.testing.assert_allclose((u * s) @ vh, circuit.matrix(), atol=1e-5 * float(s[0]))
        whole = np.linalg.svd(np.float64(circuit.matrix()), compute_uv=False)
        np.testing.assert_allclose(s, whole[:16], atol=1e-5 * whole[0])
        assert whole[16:].max() < 1e-5 * whole[0]
        np.testing.assert_allclose(u.T @ u, np.eye(16), atol=1e-5)
        assert float(circuit.norm()) == pytest.approx(np.linalg.norm(circuit.matrix()), rel=1e-5)


def test_a_matrix_smaller_than_its_factors_has_a_svd_too():
    rng = np.random.default_rng(0)
    circuit = Factored(jnp.asarray(rng.normal(size=(4, 8))), jnp.asarray(rng.normal(size=(8, 6))))
    u, s, vh = circuit.svd()
    assert s.shape == (4,)
    np.testing.assert_allclose((u * s) @ vh, circuit.matrix(), atol=1e-5)
    assert float(circuit.norm()) == pytest.approx(float(jnp.linalg.norm(s)), rel=1e-5)


def test_eigenvalues_are_those_of_the_whole_matrix(llama):
    circuit = ov_circuit(llama, 1, 0)
    whole = np.linalg.eigvals(np.float64(circuit.matrix()))
    whole = whole[np.argsort(-np.abs(whole))][:16]
    np.testing.assert_allclose(np.abs(circuit.eigenvalues()), np.abs(whole), rtol=1e-3)
    assert circuit.copying() == pytest.approx(float(whole.sum().real / np.abs(whole).sum()), 1e-3)
    identity = Factored(jnp.eye(5), jnp.eye(5))
    assert identity.copying() == 1 and Factored(jnp.eye(5), -jnp.eye(5)).copying() == -1
    with pytest.raises(ValueError, match="square"):
        Factored(jnp.ones((2, 1)), jnp.ones((1, 3))).eigenvalues()


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@pytest.mark.parametrize("fold", [False, True])
def test_composition_is_the_norm_of_the_product(llama, kind, fold):
    found = composition_scores(llama, kind, fold_norm=fold)
    assert found.axes == ("from_layer", "from_head", "to_layer", "to_head")
    for a, m, b, n in [(0, 0, 1, 3), (0, 2, 2, 1), (1, 3, 2, 0)]:
        *_, v, o = weights(llama, a, m)
        q2, k2, v2, o2 = weights(llama, b, n)
        if fold:
            first, second = (
                np.float64(llama.model.layers[i].input_layernorm.weight[...])[:, None]
                for i in (a, b)
            )
            v, q2, k2, v2 = first * v, second * q2, second * k2, second * v2
        read = {"Q": q2 @ k2.T, "K": k2 @ q2.T, "V": v2 @ o2}[kind]
        write = v @ o
        expected = np.linalg.norm(write @ read) / np.linalg.norm(write) / np.linalg.norm(read)
        assert float(found.values[a, m, b, n]) == pytest.approx(expected, rel=1e-4)
    assert not np.asarray(found.values)[2].any() and not np.asarray(found.values)[1, :, 1].any()


def test_the_planted_heads_are_composed_through_keys():
    llama = planted()
    keys, queries = composition_scores(llama, "K"), composition_scores(llama, "Q")
    assert float(keys.values[0, 0, 1, 0]) > 0.2
    assert float(queries.values[0, 0, 1, 0]) < 1e-6
    assert ov_circuit(llama, 1, 0, vocabulary=True).copying() == pytest.approx(1, abs=1e-5)


def test_bad_input_is_refused_in_words(llama):
    with pytest.raises(IndexError, match="There is no head 4: 4 of them, 0 to 3"):
        qk_circuit(llama, 0, 4)
    with pytest.raises(IndexError, match="There is no layer 3"):
        ov_circuit(llama, 3, 0)
    with pytest.raises(ValueError, match="distance is -1"):
        qk_circuit(llama, 0, 0, distance=-1)
    with pytest.raises(ValueError, match="must be 'Q', 'K' or 'V'"):
        composition_scores(llama, "O")
    abstract = Llama.abstract(dataclasses.replace(GQA))
    with pytest.raises(ValueError, match="This Llama is abstract"):
        qk_circuit(abstract, 0, 0)
    assert repr(qk_circuit(llama, 1, 2)) == "Factored(QK 1.2, 32 x 32 of rank 16)"
