import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Capture, Llama, Replace
from llama_jax.capture import CaptureError, takes, wanted
from llama_jax.model import attention, forward, leaves_of
from llama_jax.model.tap import Tap
from llama_jax.plan import BudgetError
from llama_jax.points import POINTS, resolve
from tests.tiny import GQA, compiled

ROWS = [np.arange(11).tolist(), (np.arange(7) * 5 % 96).tolist()]
LENGTHS = (11, 7)


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module")
def full(llama):
    return llama.run(ROWS, "*")


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["resid_post", "q", "k_rot", "pattern", "scores", "mlp.act"])
def test_positions_are_those_of_a_full_capture_counted_in_each_row(llama, full, name):
    kept = llama.run(ROWS, Capture((name, 1), positions=[-1, 0, 3]))[name]
    whole = np.asarray(full[name, 1])
    axis = 2 if name in ("pattern", "scores") else 1
    for row, length in enumerate(LENGTHS):
        expected = np.take(whole[row], [length - 1, 0, 3], axis=axis - 1)
        np.testing.assert_array_equal(kept[row], expected)


def test_a_slice_chooses_as_many_positions_of_each_row(llama, full):
    kept = llama.run(ROWS, Capture(("embed"), positions=slice(-3, None)))["embed"]
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(kept[row], full["embed"][row, length - 3 : length])
    with pytest.raises(CaptureError, match=r"\[9, 5\] positions of rows of \[11, 7\]"):
        llama.run(ROWS, Capture("embed", positions=slice(2, None)))


@pytest.mark.parametrize(
    ("name", "axis", "heads"), [("pattern", 1, [3, 0]), ("z", 2, -1), ("v", 2, 1)]
)
def test_heads_are_those_of_a_full_capture(llama, full, name, axis, heads):
    kept = llama.run(ROWS, Capture(name, heads=heads))
    for layer in range(3):
        expected = np.take(np.asarray(full[name, layer]), np.atleast_1d(heads), axis=axis)
        np.testing.assert_array_equal(kept[name, layer], expected)


def test_the_last_position_is_each_row_s_own(llama, full):
    run = llama.run(ROWS, Capture(("resid_post", "pattern"), reduce="last"))
    assert run["resid_post", 0].shape == (2, 1, 32) and run["pattern", 0].shape == (2, 4, 1, 11)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            run["resid_post", 2][row, 0], full["resid_post", 2][row, length - 1]
        )
        np.testing.assert_array_equal(
            run["pattern", 2][row, :, 0], full["pattern", 2][row, :, length - 1]
        )


def test_a_norm_is_taken_over_the_last_axis(llama, full):
    run = llama.run(ROWS, Capture(("resid_post", "q"), reduce="norm", positions=[1]))
    close(run["resid_post", 1], np.linalg.norm(full["resid_post", 1], axis=-1)[:, 1:2])
    close(run["q", 1], np.linalg.norm(full["q", 1], axis=-1)[:, 1:2])


def _cells(length, cells):
    return np.array_split(np.arange(length), min(cells, length))


@pytest.mark.parametrize("cells", [1, 3, 4, 64])
@pytest.mark.parametrize("kind", ["max_pool", "mean_pool"])
def test_maps_are_pooled_without_padding(llama, full, kind, cells):
    pooled = np.asarray(llama.run(ROWS, Capture("pattern", reduce=(kind, cells)))["pattern", 1])
    whole = np.asarray(full["pattern", 1])
    combine = np.max if kind == "max_pool" else np.mean
    for row, length in enumerate(LENGTHS):
        for i, queries in enumerate(_cells(11, cells)):
            for j, keys in enumerate(_cells(11, cells)):
                block = whole[row][:, queries[queries < length]][:, :, keys[keys < length]]
                expected = combine(block, axis=(1, 2)) if block.size else 0
                np.testing.assert_allclose(pooled[row, :, i, j], expected, rtol=1e-6)
    assert pooled.shape[2:] == (min(cells, 11),) * 2


@pytest.mark.parametrize("block", [None, 4])
def test_nan_in_a_cell_is_not_passed_over(llama, monkeypatch, block):
    if block:
        monkeypatch.setattr(attention, "BLOCK", block)
        monkeypatch.setattr(attention, "LARGEST_MAP", 0)
    jax.clear_caches()
    broken = Replace(("k_rot", 1), lambda k: k.at[:, 6].set(np.nan))
    capture = Capture(("pattern", 1), reduce=("max_pool", 3))
    pooled = np.asarray(llama.run(ROWS[:1], capture, edits=broken)["pattern", 1])
    assert np.isnan(pooled[0, :, 1:]).all()  # queries 4 to 10: number 6 and later read it
    assert np.isfinite(pooled[0, :, 0]).all()
    jax.clear_caches()


def test_maps_of_long_prompts_are_pooled_a_block_of_queries_at_a_time(llama, monkeypatch):
    captures = [
        Capture(("pattern", 0), reduce=("max_pool", 3)),
        Capture(("pattern", 1), reduce=("mean_pool", 4), heads=[2, 0], dtype="bf16"),
        Capture(("pattern", 2), reduce=("mean_pool", 64)),
    ]
    whole = llama.run(ROWS, captures)
    monkeypatch.setattr(attention, "BLOCK", 4)
    monkeypatch.setattr(attention, "LARGEST_MAP", 0)
    jax.clear_caches()
    blocks = llama.run(ROWS, captures)
    np.testing.assert_array_equal(blocks["pattern", 0], whole["pattern", 0])
    for layer in (1, 2):
        one, other = (np.asarray(x["pattern", layer], np.float32) for x in (blocks, whole))
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-2 if layer == 1 else 1e-6, atol=1e-7)
    assert blocks["pattern", 1].dtype == whole["pattern", 1].dtype
    close(blocks.logits, whole.logits)
    leaves, structure = leaves_of(llama.model)
    tokens = np.zeros((1, 12), np.int32)

    def lowered(capture) -> str:
        kept = takes(wanted(capture, 3), llama.config, np.array([12]))
        taps = {name: Tap((), take) for name, take in kept.items()}

        def program(leaves, tokens, lengths):
            model = jax.tree.unflatten(structure, leaves)
            return forward(model, tokens, lengths, taps=taps).captured

        return jax.jit(program).lower(leaves, tokens, np.array([12], np.int32)).as_text()

    heads = llama.config.num_attention_heads
    assert f"1x{heads}x12x12xf32" not in lowered(captures[0])
    assert f"1x{heads}x12x12xf32" in lowered(("pattern", 0))
    jax.clear_caches()


def test_masked_scores_count_for_nothing(llama, full):
    run = llama.run(ROWS[:1], Capture("scores", reduce=("mean_pool", 2)))
    whole = np.asarray(full["scores", 0])[0, :, :6, :6]
    seen = np.where(np.isfinite(whole), whole, np.nan)
    np.testing.assert_allclose(run["scores", 0][0, :, 0, 0], np.nanmean(seen, (1, 2)), rtol=1e-5)
    assert (run["scores", 0][0, :, 0, 1] == -np.inf).all()


def test_what_has_no_keys_is_pooled_over_its_positions(llama, full):
    pooled = llama.run(ROWS[:1], Capture("resid_post", reduce=("mean_pool", 2)))["resid_post", 0]
    whole = np.asarray(full["resid_post", 0])[0]
    close(pooled[0], np.stack([whole[:6].mean(0), whole[6:].mean(0)]))


def test_the_largest_entries_come_with_their_places(llama, full):
    top = llama.run(ROWS, Capture("mlp.act", reduce=("topk", 5)))["mlp.act", 2]
    whole = np.asarray(full["mlp.act", 2])
    order = np.argsort(-whole, axis=-1)[..., :5]
    np.testing.assert_array_equal(top.indices, order)
    np.testing.assert_array_equal(top.values, np.take_along_axis(whole, order, -1))


def test_a_dtype_is_that_of_the_result(llama, full):
    run = llama.run(ROWS, Capture("pattern", dtype="bf16", heads=[0]))
    assert run["pattern", 0].dtype == jnp.bfloat16
    expected = full["pattern", 0][:, :1].astype(jnp.bfloat16)
    np.testing.assert_array_equal(run["pattern", 0], expected)


def test_of_two_wishes_for_one_point_the_later_counts(llama):
    run = llama.run(ROWS, ["*", Capture("pattern", reduce="last")])
    assert run.names == resolve("*", 3)
    assert run["pattern", 0].shape == (2, 4, 1, 11) and run["scores", 0].shape == (2, 4, 11, 11)


def test_logits_are_kept_whole_beside_a_part_of_them(llama, full):
    run = llama.run(ROWS, Capture("logits", reduce=("topk", 2)))
    assert run.logits.shape == (2, 11, 96) and run["logits"].values.shape == (2, 11, 2)
    np.testing.assert_array_equal(run["logits"].values[..., 0], full.logits.max(-1))


@pytest.mark.parametrize(
    ("capture", "says"),
    [
        (Capture("resid_post", heads=[0]), "no heads"),
        (Capture("k", heads=[2]), "head 2; there are 2 key/value heads"),
        (Capture("z", heads=[-5]), "head -5; there are 4 query heads"),
        (Capture("z", positions=[7]), "position 7 of row 1, which has 7 tokens: 0 to 6"),
        (Capture("z", positions=[-8]), "position -8 of row 1"),
        (Capture("z", reduce=("topk", 17)), "17 largest of 16"),
        (Capture("pattern", reduce=("topk", 12)), "12 largest of 11"),
    ],
)
def test_what_a_point_cannot_give_is_refused_before_anything_runs(llama, capture, says):
    with compiled() as programs, pytest.raises(CaptureError, match=says):
        llama.run(ROWS, capture)
    assert not programs


def test_positions_of_logits_need_all_of_them(llama):
    with pytest.raises(CaptureError, match="logits='all'"):
        llama.run(ROWS, Capture("logits", positions=0), logits="last")
    kept = llama.run(ROWS, Capture("logits", positions=jnp.array([0, 2])))["logits"]
    assert kept.shape == (2, 2, 96)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reduce": "first"}, "'first'"),
        ({"reduce": ("max_pool", 0)}, "max_pool"),
        ({"reduce": ("max_pool", 2.5)}, "max_pool"),
        ({"positions": []}, "positions"),
        ({"positions": [0.5]}, "positions"),
        ({"heads": "all"}, "heads"),
        ({"dtype": "int8"}, "int8"),
        ({"reduce": "last", "positions": [0]}, "both"),
    ],
)
def test_a_capture_that_makes_no_sense_says_why(options, says):
    with pytest.raises(ValueError, match=says):
        Capture("z", **options)


REDUCTIONS = [
    None,
    "last",
    "norm",
    ("max_pool", 4),
    ("mean_pool", 5),
    ("topk", 1),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_tells_exactly_what_a_run_will_hold(dtype):
    llama = Llama.random(dataclasses.replace(GQA, num_hidden_layers=1), dtype=dtype)
    for reduce in REDUCTIONS:
        capture = [Capture("*", reduce=reduce), Capture("z", heads=[1], positions=[0, 1])]
        plan, run = llama.plan(ROWS, capture), llama.run(ROWS, capture)
        assert plan.total == run.nbytes
        held = {**run.captured, "logits": run.logits} if reduce is None else run.captured
        for row in plan.rows[: len(run.names)]:
            leaves = jax.tree.leaves(held[row.point])
            assert row.shape == leaves[0].shape and row.dtype == leaves[0].dtype.name
            assert row.bytes == sum(leaf.nbytes for leaf in leaves)


def test_a_plan_of_405b_takes_no_memory_and_prints_as_a_table():
    plan = Llama.abstract("llama-3.1-405b").plan([[0] * 8192], ["pattern", "embed"], "last")
    assert plan.total == (126 * 128 * 8192**2 + 8192 * 16384) * 2 + 128256 * 4
    lines = repr(plan).splitlines()
    assert len(lines) == 5 and "layers.{0…125}.self_attn.pattern" in lines[2]
    assert "126 x 16.0 GiB" in lines[2] and lines[-1].startswith("total: 2.0 TiB")
    assert len(plan) == 128 and plan[0].point == "embed"


def test_what_is_above_the_budget_is_refused_with_what_would_fit():
    llama = Llama.random(GQA)
    tokens = np.zeros((1, 64), int)
    asked = llama.plan(tokens, "pattern").total
    with compiled() as programs, pytest.raises(BudgetError) as caught:
        llama.run(tokens, "pattern", budget="100KiB")
    assert not programs
    message = str(caught.value)
    for part in ("216.0 KiB", "100.0 KiB", "layers.0.self_attn.pattern", "64.0 KiB"):
        assert part in message
    assert "1 of the 3 layers: 88.0 KiB" in message and "reduce='last'" in message
    assert llama.run(tokens, "pattern", budget=asked).nbytes == asked
    with pytest.raises(ValueError, match="'much' is no size"):
        llama.run(tokens, "pattern", budget="much")


@pytest.mark.parametrize("config", [GQA], ids=["GQA"])
def test_every_point_is_captured_under_jit_and_under_a_gradient(config):
    llama = Llama.random(config, std=0.3)
    leaves, structure = leaves_of(llama.model)
    lengths = np.array([11], np.int32)
    tokens = np.array(ROWS[:1], np.int32)
    asked = takes(wanted("*", 3), config, lengths)
    taps = {name: Tap(take=take) for name, take in asked.items()}

    def loss(leaves):
        made = forward(jax.tree.unflatten(structure, leaves), tokens, lengths, taps=taps)
        return jnp.mean(made.logits**2), made.captured

    plain, inside = llama.run(ROWS[:1], "*"), jax.jit(jax.grad(loss, has_aux=True))(leaves)
    gradients, captured = inside
    assert set(captured) == set(plain.names) and all(jnp.isfinite(g).all() for g in gradients)
    for name in plain.names:
        np.testing.assert_allclose(captured[name], plain[name], atol=5e-5, err_msg=name)


def test_a_path_of_the_tree_means_what_comes_out_there(llama):
    paths = {
        "llama.model.layers[1].self_attn.q_proj": "layers.1.self_attn.q",
        ".layers[2].mlp": "layers.2.mlp.out",
        "model.layers[0]": "layers.0.resid_post",
        "model.norm": "norm.out",
        "run['layers.1.mlp.gate']": "layers.1.mlp.gate",
        "model.embed_tokens": "embed",
        "layers.1.post_attention_layernorm": "layers.1.post_attention_layernorm.out",
    }
    for path, name in paths.items():
        assert llama.run(ROWS, path).names == (name,)
    with pytest.raises(KeyError, match="is a weight, not a point"):
        llama.run(ROWS, ".layers[0].mlp.up_proj.weight")


def test_every_module_that_gives_a_tensor_is_a_name_of_it():
    modules = {"embed_tokens", "norm", "lm_head", ""}
    modules |= {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
    modules |= {f"self_attn.{p}_proj" for p in "qkvo"}
    modules |= {f"mlp.{p}_proj" for p in ("gate", "up", "down")}
    named = [m.removeprefix("layers.{i}").removeprefix(".") for p in POINTS for m in p.modules]
    assert sorted(named) == sorted(modules)


@functools.cache
def _speaker():
    return Llama.from_pretrained("cria")


def test_everyday_questions(llama):
    run = _speaker().run(["Once upon a time", "One day"])
    logprobs = jax.nn.log_softmax(run.logits)
    loss = np.asarray(run.loss)
    assert loss.shape == (2, 4) and np.isnan(loss[1, 2:]).all() and run.lengths.tolist() == [5, 3]
    for row, length in enumerate(run.lengths):
        for t in range(length - 1):
            said = float(-logprobs[row, t, run.tokens[row, t + 1]])
            assert loss[row, t] == pytest.approx(said, abs=1e-5)
    token = run.llama.token(" time")
    assert run.probability(" time", position=3) == pytest.approx(
        float(jnp.exp(logprobs[0, 3, token]))
    )
    assert run.probability(token, 0, row=1) == pytest.approx(float(jnp.exp(logprobs[1, 0, token])))
    with pytest.raises(ValueError, match=r"' of the' is 2 tokens"):
        run.probability(" of the")
    with pytest.raises(ValueError, match="Token 96"):
        llama.run(ROWS).probability(96)
    with pytest.raises(ValueError, match="logits='all'"):
        _ = llama.run(ROWS, logits="last").loss
