"""The analyses against TransformerLens' own, on the same weights, in f32."""

import numpy as np
import pytest
import torch
import transformers
from transformer_lens import head_detector, patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import attribution_patching as theirs_of_patching
from transformer_lens.tools.analysis import direct_logit_attribution as theirs_of_logits

from llama_jax import analysis
from tests.oracle import test_transformer_lens as oracle
from tests.oracle.test_transformer_lens import OTHERS, TOKENS, TOLERANCE, cached

pair = oracle.pair

CLEAN = TOKENS[:, :12]
CORRUPTED = CLEAN.copy()
CORRUPTED[[0, 0, 1, 1], [3, 8, 5, 6]] = OTHERS[[0, 0, 1, 1], [3, 8, 5, 6]]
METRIC = analysis.logit_difference(3, 7)
WRITES = ("embed", "self_attn.out", "mlp.out")


@pytest.fixture(scope="module")
def folded(pair, tmp_path_factory):
    """TransformerLens with the norms' weights in the projections behind them: `fold_norm`."""
    ours, theirs = pair
    folder = tmp_path_factory.mktemp("folded")
    ours.save(folder)
    torch_model = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    made = TransformerBridge.boot_transformers(
        str(folder), hf_model=torch_model, tokenizer=theirs.tokenizer, device="cpu"
    )
    made.enable_compatibility_mode(center_unembed=False, disable_warnings=True)
    made.set_use_attn_result(True)
    return made


def same(mine, other, **tolerance):
    other = other.detach().numpy() if isinstance(other, torch.Tensor) else other
    np.testing.assert_allclose(mine, other, **(tolerance or TOLERANCE))


def difference(logits):
    return (logits[:, -1, 3] - logits[:, -1, 7]).mean()


def test_the_lens_gives_the_same_logits_ranks_and_entropies_at_every_layer(pair):
    ours, theirs = pair
    run = ours.run(TOKENS, ("resid_pre", "resid_mid", "resid_post"))
    _, cache = cached(theirs)
    given = {"incl_mid": True, "positions": None}
    other = cache.logit_lens(**given)
    of_token = cache.logit_lens(**given, targets=5, return_type="log_probs")
    for n, label in enumerate(other.labels):
        layer, point = label.replace("final", "-1").split("_")
        lens = analysis.logit_lens(run, f"resid_{point}")
        same(lens.logits_at(int(layer)), other.values[n])
        same(lens.log_probability(5)[int(layer)], of_token.values[n, ..., 0])
        same(lens.entropy[int(layer)], other.readout.entropy[n])
        np.testing.assert_array_equal(lens.rank(5)[int(layer)], of_token.rank_trajectory()[n])


def test_the_stream_is_the_same_sum_of_layers_and_of_heads(pair):
    ours, theirs = pair
    run = ours.run(TOKENS, (*WRITES, "z"))
    _, cache = cached(theirs)
    by_layer = analysis.residual_decomposition(run)
    same(by_layer.values, cache.decompose_resid().movedim(0, 2))
    same(by_layer.accumulated.values, cache.accumulated_resid(incl_mid=True).movedim(0, 2))
    by_head = analysis.residual_decomposition(run, by="head")
    heads = [n for n, name in enumerate(by_head.along("component")) if ".head." in str(name)]
    same(by_head.values[:, :, np.array(heads)], cache.stack_head_results().movedim(0, 2))


@pytest.mark.parametrize("token", [3, (3, 7)])
def test_parts_add_the_same_to_a_logit_and_to_a_difference(pair, folded, token):
    # Theirs leaves the final norm's weight out and refuses a model that has one that is not all 1,
    # so it is folded into their unembedding; not centered, which would shift all logits.
    ours, _ = pair
    run = ours.run(TOKENS, (*WRITES, "z", "mlp.act", "norm.scale"))
    _, cache = cached(folded)
    answer, other = token if isinstance(token, tuple) else (token, None)

    def found(by):
        return analysis.direct_logit_attribution(run, token, position=None, by=by)

    def theirs_by(unit):
        made = theirs_of_logits(folded, None, answer, other, unit=unit, pos=None, cache=cache)
        return made.attribution.movedim(0, -1)

    same(found("layer").values, theirs_by("component"))
    heads = theirs_by("head")
    same(found("head").values.reshape(2, 60, 8), heads[..., :-1])
    same(found("head").remainder, heads[..., -1])
    neurons = cache.logit_attrs(cache.stack_neuron_results(layer=-1), answer, other)
    same(found("neuron").values.reshape(2, 60, -1), neurons.movedim(0, -1))


@pytest.mark.parametrize(
    ("pair", "sweep", "point", "by"),
    [
        ("GQA", "resid_pre", "resid_pre", "layer,position"),
        ("GQA", "attn_out", "self_attn.out", "layer,position"),
        ("GQA", "mlp_out", "mlp.out", "layer,position"),
        ("GQA", "attn_head_out_all_pos", "z", "layer,head"),
        ("GQA", "attn_head_v_all_pos", "v", "layer,head"),
        ("GQA", "attn_head_pattern_all_pos", "pattern", "layer,head"),
        ("MQA", "attn_head_v_all_pos", "v", "layer,head"),
    ],
    indirect=["pair"],
)
def test_patches_give_the_same_metric_at_every_site(pair, sweep, point, by):
    ours, theirs = pair
    found = analysis.patch_sweep(ours, CLEAN, CORRUPTED, point=point, metric=METRIC, by=by)
    _, clean = cached(theirs, CLEAN)
    with torch.no_grad():
        other = getattr(patching, f"get_act_patch_{sweep}")(
            theirs, torch.tensor(CORRUPTED), clean, difference
        ).numpy()
    assert np.ptp(other) > 0.01
    same(found.values, other, rtol=0, atol=1e-4 * np.ptp(other))


@pytest.mark.parametrize("pair", ["GQA"], indirect=True)
def test_attribution_patching_estimates_the_same_effects(pair):
    ours, theirs = pair
    prompts = torch.tensor(CLEAN), torch.tensor(CORRUPTED)
    scores = theirs_of_patching.attribution_patch(theirs, *prompts, difference).node_scores
    for kind, point, by in [
        ("embed", "embed", "position"),
        ("attn_head_out", "z", "layer,head,position"),
        ("mlp_out", "mlp.out", "layer,position"),
    ]:
        found = analysis.attribution_patching(
            ours, CLEAN, CORRUPTED, point=point, metric=METRIC, by=by
        )
        nodes = {node: score for node, score in scores.items() if node.kind == kind}
        assert len(nodes) == found.values.size
        other = np.zeros(found.values.shape)
        for node, score in nodes.items():
            other[tuple(getattr(node, axis) for axis in found.axes)] = score
        assert np.ptp(other) > 0.01
        same(found.effect, other, rtol=0, atol=1e-4 * np.ptp(other))


def compare_circuit(mine, other):
    scale = other.S[0].item()
    close = {"rtol": 1e-5, "atol": 1e-5 * scale}
    same(mine.matrix(), other.AB, **close)
    same(mine.svd().S, other.svd()[1], **close)
    same(mine.norm(), other.norm(), **close)
    # In no order: each of theirs is one of ours, and each of ours one of theirs.
    apart = np.abs(mine.eigenvalues()[:, None] - other.eigenvalues.detach().numpy())
    assert max(apart.min(0).max(), apart.min(1).max()) < 1e-4 * scale


def test_circuits_of_every_head_are_the_same_matrices(pair, folded):
    ours, theirs = pair
    for at in np.ndindex(2, 4):
        compare_circuit(analysis.qk_circuit(ours, *at), theirs.QK[at])
        compare_circuit(analysis.ov_circuit(ours, *at), theirs.OV[at])
        compare_circuit(analysis.qk_circuit(ours, *at, fold_norm=True), folded.QK[at])
        compare_circuit(analysis.ov_circuit(ours, *at, fold_norm=True), folded.OV[at])
        circuit = analysis.qk_circuit(ours, *at, vocabulary=True)
        compare_circuit(circuit, folded.W_E @ folded.QK[at] @ folded.W_E.T)
        circuit = analysis.ov_circuit(ours, *at, vocabulary=True)
        compare_circuit(circuit, folded.W_E @ folded.OV[at] @ folded.W_U)


@pytest.mark.parametrize(
    ("pair", "kind"),
    [("MHA", "V"), ("GQA", "Q"), ("GQA", "K"), ("GQA", "V"), ("MQA", "K")],
    indirect=["pair"],
)
def test_composition_scores_are_the_same(pair, folded, kind):
    ours, theirs = pair
    found = np.asarray(analysis.composition_scores(ours, kind).values)
    assert found[0, :, 1].min() > 0.01
    same(found, theirs.all_composition_scores(kind).scores)
    found = np.asarray(analysis.composition_scores(ours, kind, fold_norm=True).values)
    same(found, folded.all_composition_scores(kind).scores)


def test_heads_have_the_same_scores(pair, monkeypatch):
    # Theirs are shares of all queries' attention, ours of the queries' that can look there; and
    # where no token is said more than twice, "all earlier ones" and "the last earlier one" agree.
    ours, theirs = pair
    monkeypatch.setattr(theirs.cfg, "default_prepend_bos", False)
    text = "QXZ7#K@0VJ^4G&9W" + "Z7W&J" + "XQ90@$"
    tokens = theirs.to_tokens(text).numpy()
    _, counts = np.unique(tokens, return_counts=True)
    size, again = tokens.size, int((counts == 2).sum())
    assert tokens.max() < 96 and counts.max() == 2 and again >= 8
    scores = analysis.head_scores(ours, tokens)
    for name, queries in [
        ("previous_token", size - 1),
        ("duplicate_token", again),
        ("induction", again),
    ]:
        other = head_detector.detect_head(theirs, text, f"{name}_head", error_measure="mul")
        same(np.asarray(scores[name].values) * queries / size, other)
