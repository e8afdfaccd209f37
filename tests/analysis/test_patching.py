"""Sweeps: the numbers of one full forward pass for each site, and nothing computed in vain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama, Patch, Steer
from llama_jax.analysis import (
    SweepError,
    attribution_patching,
    log_probability,
    logit,
    logit_difference,
    patch_sweep,
    sweep,
)
from llama_jax.llama import PromptError
from llama_jax.plan import BudgetError
from llama_jax.points import PointError, point_of, resolve
from tests.analysis.planted import planted
from tests.tiny import GQA, compiled

SMALL = dataclasses.replace(GQA, num_hidden_layers=2)
CLEAN = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12, 13, 14, 15, 16]]
OTHER = [[1, 2, 3, 44, 5, 6, 57, 8, 9], [11, 52, 13, 14, 15, 16]]
METRIC = logit_difference(3, 5)
LETTERS = {"position": "T", "head": "NK", "key": "S", "neuron": "F"}


@pytest.fixture(scope="module")
def llama():
    return Llama.random(SMALL, std=0.3)


def value(llama, edits, prompt=OTHER, metric=METRIC):
    return np.mean(metric(llama.run(prompt, edits=edits, logits="last").logits[:, 0]))


def brute_force(llama, point, by):
    """One forward pass a site, each with all of the tensor put in."""
    names = resolve(point, 2)
    clean, own = (llama.run(prompt, names, logits="last") for prompt in (CLEAN, OTHER))
    letters = point_of(names[0]).axes.split()
    sizes = [len(names) if axis == "layer" else None for axis in by.split(",")]
    for n, axis in enumerate(by.split(",")):
        if axis != "layer":
            at = next(i for i, letter in enumerate(letters) if letter in LETTERS[axis])
            sizes[n] = own.captured[names[0]].shape[at]
    found = np.zeros(sizes)
    for index in np.ndindex(*found.shape):
        site = dict(zip(by.split(","), index, strict=True))
        chosen = [names[site["layer"]]] if "layer" in site else names
        assert len(chosen) == 1
        mask = np.ones([1] * len(letters), bool)
        for axis, at in site.items():
            if axis != "layer":
                n = next(i for i, letter in enumerate(letters) if letter in LETTERS[axis])
                size = own.captured[names[0]].shape[n]
                shape = [size if i == n else 1 for i in range(len(letters))]
                mask = mask & (np.arange(size) == at).reshape(shape)
        mixed = jnp.where(mask, clean.captured[chosen[0]], own.captured[chosen[0]])
        found[index] = value(llama, Patch(chosen[0], mixed))
    return found


@pytest.mark.parametrize(
    ("point", "by"),
    [
        ("embed", "position"),
        ("resid_pre", "layer,position"),
        ("resid_mid", "layer,position"),
        ("resid_post", "position,layer"),
        ("mlp.out", "layer,position"),
        ("self_attn.out", "layer"),
        ("z", "layer,head"),
        (("z", 0), "head,position"),
        (("k_rot", 0), "position,head"),
        (("mlp.act", 1), "neuron"),
        ("pattern", "layer,head,key"),
        (("scores", 1), "head,position"),
        (("normalized", 0), "position"),
    ],
)
def test_a_sweep_gives_the_numbers_of_full_forward_passes(llama, point, by):
    if point == ("normalized", 0):
        point = "layers.0.input_layernorm.normalized"
    found = patch_sweep(llama, CLEAN, OTHER, point=point, metric=METRIC, by=by)
    expected = brute_force(llama, point, by)
    assert found.axes == tuple(by.split(","))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found.values, expected, atol=1e-4 * np.ptp(expected))


def test_without_layer_the_patch_is_made_in_all_layers(llama):
    found = patch_sweep(llama, CLEAN, OTHER, point="z", metric=METRIC, by="head,position")
    clean = llama.run(CLEAN, "z", logits="last")
    for head, position in [(0, 3), (1, 5), (3, 4)]:  # of the second row, a part
        edit = Patch("z", clean, heads=[head], positions=[position])
        expected = value(llama, edit)
        assert float(found.values[head, position]) == pytest.approx(float(expected), abs=1e-5)


def test_the_clean_and_the_corrupted_metric_stand_beside(llama):
    found = patch_sweep(llama, CLEAN, OTHER, metric=METRIC)
    assert found.clean == pytest.approx(float(value(llama, (), CLEAN)), abs=1e-6)
    assert found.corrupted == pytest.approx(float(value(llama, ())), abs=1e-6)
    np.testing.assert_allclose(found.effect, found.values - found.corrupted)
    gap = found.clean - found.corrupted
    np.testing.assert_allclose(found.restored, np.asarray(found.effect) / gap, rtol=1e-6)


def test_all_of_the_embedding_brings_back_the_clean_run(llama):
    found = patch_sweep(llama, CLEAN, OTHER, point=("resid_pre", 0), metric=METRIC, by="layer")
    assert float(found.values[0]) == pytest.approx(found.clean, abs=1e-5)
    last = patch_sweep(llama, CLEAN[:1], OTHER[:1], point=("resid_post", -1), metric=METRIC)
    assert float(last.values[0, 8]) == pytest.approx(last.clean, abs=1e-5)
    assert (np.asarray(last.values[0, :8]) == np.float32(last.corrupted)).all()


def test_a_patch_reaches_no_earlier_position_and_no_equal_one(llama):
    found = patch_sweep(llama, CLEAN[:1], OTHER[:1], metric=METRIC)
    effect = np.asarray(found.effect)
    assert (effect[:, :3] == 0).all()  # equal prefix
    assert (effect[0, [4, 5, 7, 8]] == 0).all() and (effect[0, [3, 6]] != 0).all()
    assert (effect[1, 3:] != 0).all()


def test_equal_prompts_cost_two_runs_and_change_nothing(llama, monkeypatch):
    monkeypatch.setattr(sweep, "_chunk", None)  # nothing may be computed
    found = patch_sweep(llama, CLEAN, CLEAN, metric=METRIC)
    assert (np.asarray(found.effect) == 0).all()
    assert np.isnan(found.restored).all()


def test_a_sweep_computes_what_a_patch_can_change_and_little_more(llama, monkeypatch):
    computed = []
    step = sweep._step

    def counting(structure, point, leaves, x, context, packed, cached, donor, only):
        computed.append(x.shape[0] * x.shape[1])
        return step(structure, point, leaves, x, context, packed, cached, donor, only)

    monkeypatch.setattr(sweep, "_step", counting)
    tokens = np.arange(24)[None]
    patch_sweep(llama, tokens, tokens + 40, metric=METRIC)
    # 24 pieces of 1 to 24 positions: 300 in layer 0, then 300 each of both layers' in layer 1
    assert 900 <= sum(computed) <= 1.1 * 900


def test_a_small_budget_gives_the_same_numbers_in_more_pieces(llama, monkeypatch):
    whole = patch_sweep(llama, CLEAN, OTHER, metric=METRIC)
    chunks = []
    chunk = sweep._chunk
    monkeypatch.setattr(sweep, "_chunk", lambda *args: chunks.append(1) or chunk(*args))
    small = patch_sweep(llama, CLEAN, OTHER, metric=METRIC, budget="150kB")
    assert len(chunks) > 2
    np.testing.assert_allclose(small.values, whole.values, atol=1e-5)


def test_the_price_of_a_piece_is_an_upper_bound(llama, monkeypatch):
    taken = []
    step = sweep._step

    def measured(*args):
        memory = step.lower(*args).compile().memory_analysis()
        taken.append((memory.temp_size_in_bytes + memory.output_size_in_bytes) / args[3].shape[0])
        return step(*args)

    monkeypatch.setattr(sweep, "_step", measured)
    prompts = np.random.default_rng(0).integers(0, 96, (2, 1, 32))
    patch_sweep(llama, *prompts, point=("pattern", 0), metric=METRIC, by="head")
    price = sweep._bytes_of_a_bin(llama.config, llama.model.dtype, 32, 32)
    assert price / 8 < max(taken) < price


def test_a_budget_too_small_for_one_site_is_refused_before_it(llama):
    with pytest.raises(BudgetError, match="One patched pass over 2 rows of 9 tokens takes about"):
        patch_sweep(llama, CLEAN, OTHER, metric=METRIC, budget="60kB")


def test_a_second_sweep_of_the_same_shapes_compiles_nothing(llama):
    def once(seed):
        rng = np.random.default_rng(seed)
        prompts = rng.integers(0, 96, (2, 1, 8))
        return patch_sweep(llama, *prompts, metric=logit_difference(*rng.integers(0, 96, 2)))

    once(0)
    with compiled() as programs:
        once(1)
    assert not programs


@pytest.mark.parametrize(
    "metric",
    [
        logit(3),
        log_probability((3, 4)),
        logit_difference((3, 4), 5),
        lambda logits: np.asarray(logits)[:, 7] ** 2,
        lambda logits: jax.nn.softmax(logits)[:, 3].mean(),
    ],
)
def test_any_function_of_the_last_logits_is_a_metric(llama, metric):
    found = patch_sweep(llama, CLEAN, OTHER, point=("resid_mid", 1), metric=metric, by="layer")
    clean = llama.run(CLEAN, ("resid_mid", 1), logits="last")
    expected = value(llama, Patch(("resid_mid", 1), clean), metric=metric)
    assert float(found.values[0]) == pytest.approx(float(expected), abs=1e-5)


def test_bfloat16_and_untied_many_headed_models_are_swept():
    config = dataclasses.replace(SMALL, num_key_value_heads=4, tie_word_embeddings=True)
    llama = Llama.random(config, std=0.3, dtype="bf16")
    found = patch_sweep(llama, CLEAN[:1], OTHER[:1], point="z", metric=METRIC, by="layer,head")
    clean = llama.run(CLEAN[:1], "z", logits="last")
    edit = Patch(("z", 1), clean, heads=[2])
    expected = float(value(llama, edit, OTHER[:1]))
    assert float(found.values[1, 2]) == pytest.approx(expected, abs=0.1)


def test_the_planted_circuit_is_found():
    llama = planted()
    clean = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 2]])  # 3 follows 2
    other = clean.copy()
    other[0, 2] = 9  # nothing does
    metric = logit_difference(3, 7)
    by_head = patch_sweep(llama, clean, other, point="z", metric=metric, by="layer,head")
    np.testing.assert_allclose(by_head.restored, [[1, 0], [1, 0]], atol=1e-3)
    by_place = patch_sweep(llama, clean, other, point="resid_pre", metric=metric)
    # The token itself; then what head 0.0 wrote behind it, which head 1.0 finds.
    wanted = np.zeros((2, 9))
    wanted[0, 2] = wanted[1, 3] = 1
    np.testing.assert_allclose(by_place.restored, wanted, atol=1e-3)
    keys = patch_sweep(llama, clean, other, point=("pattern", 1), metric=metric, by="head,key")
    assert keys.top(1)[0][0] == {"head": 0, "key": 3}


@pytest.mark.parametrize(
    ("point", "by"),
    [("resid_mid", "layer,position"), ("z", "head,layer"), (("pattern", 1), "key,head")],
)
def test_attribution_patching_is_the_first_order_of_the_sweep(point, by):
    with jax.enable_x64(True):
        llama = Llama.random(SMALL, std=0.3, dtype="float64")
        found = attribution_patching(llama, CLEAN, OTHER, point=point, metric=METRIC, by=by)
        names = resolve(point, 2)
        clean, own = (llama.run(prompt, names, logits="last") for prompt in (CLEAN, OTHER))
        assert found.estimated and found.axes == tuple(by.split(","))
        step = 1e-4
        for site in [(0, 0), (1, 1), (1, 0)]:
            at = dict(zip(found.axes, site, strict=True))
            name = names[at.get("layer", 0)]
            change = np.asarray(clean.captured[name] - own.captured[name])
            mask = np.zeros(change.shape)
            letters = point_of(name).axes.split()
            index = [slice(None)] * len(letters)
            for axis in set(at) - {"layer"}:
                index[next(i for i, x in enumerate(letters) if x in LETTERS[axis])] = at[axis]
            mask[tuple(index)] = 1
            # The patch a little way, both ways.
            ends = [value(llama, Steer(name, change * mask, s)) for s in (step, -step)]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(found.effect[site]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


def test_estimates_and_sweeps_agree_where_the_runs_are_close(llama):
    near = llama.edited({"embed_tokens.weight": _nudged(llama)})
    given = {"point": ("resid_post", 0), "metric": METRIC, "by": "position"}
    exact = patch_sweep(near, CLEAN[:1], [[1, 2, 3, 90, 5, 6, 7, 8, 9]], **given)
    estimate = attribution_patching(near, CLEAN[:1], [[1, 2, 3, 90, 5, 6, 7, 8, 9]], **given)
    assert np.abs(exact.effect).max() > 1e-4
    np.testing.assert_allclose(estimate.effect, exact.effect, rtol=0.05, atol=1e-5)


def _nudged(llama):
    """Token 90 made almost token 4."""
    table = np.array(llama.model.embed_tokens.weight[...])
    table[90] = table[4] + 1e-3 * table[90]
    return table


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"corrupted": [[1, 2, 3]]}, SweepError, "clean prompt has rows of .9, 6. tokens and the"),
        ({"by": "layer,head"}, SweepError, "can go over layer, position, each once"),
        ({"by": "layer,layer"}, SweepError, "each once"),
        ({"by": ""}, SweepError, "for example by='layer,position'"),
        ({"point": ("z", "resid_pre")}, SweepError, "2 kinds of tensors"),
        ({"point": "logits"}, SweepError, "after all layers"),
        ({"point": "zz"}, PointError, "No point is called 'zz'"),
        ({"metric": logit_difference(3, 96)}, PromptError, "Token 96: the vocabulary is 0 to 95"),
        ({"metric": logit_difference(" Mary", 3)}, PromptError, "without a tokenizer"),
        ({"metric": logit((1, 2, 3))}, ValueError, "3 tokens are named for a batch of 2 rows"),
        ({"metric": lambda logits: logits}, SweepError, r"The metric gives shape \[2, 96\]"),
        ({"clean": []}, PromptError, "empty"),
    ],
)
def test_bad_input_is_refused_in_words(llama, given, error, says):
    arguments = {"clean": CLEAN, "corrupted": OTHER, "metric": METRIC, **given}
    with pytest.raises(error, match=says):
        patch_sweep(llama, arguments.pop("clean"), arguments.pop("corrupted"), **arguments)
