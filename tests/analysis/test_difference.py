import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import Capture, Llama, Run
from llama_jax.analysis import difference
from llama_jax.analysis.difference import compare
from llama_jax.model import readout
from llama_jax.points import point_of
from tests.tiny import GQA

ROWS = [np.arange(9).tolist(), [5, 6, 7]]
LENGTHS = [9, 3]
EDITED = "layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module")
def edited(llama):
    weight = llama.model.layers[1].self_attn.o_proj.weight.get_value()
    return llama.edited({EDITED: weight.at[3, 4].add(2.0)})


@pytest.fixture(scope="module")
def run(llama):
    return llama.run(ROWS, "*")


@pytest.fixture(scope="module")
def other(edited):
    return edited.run(ROWS, "*")


@pytest.fixture(scope="module")
def found(run, other):
    return compare(run, other)


def real(array, axes):
    """The array in f64 with 0 at what is padding, in T and in S."""
    array = np.asarray(array, np.float64).copy()
    for row, length in enumerate(LENGTHS):
        for axis, name in enumerate(axes.split()):
            if name in "TS":
                array[row][(slice(None),) * (axis - 1) + (slice(length, None),)] = 0
    return array


def kl_of(a, b):
    """KL(a || b) of logits at each real position, in f64."""
    p, q = (
        np.concatenate([np.asarray(x, np.float64)[i, :n] for i, n in enumerate(LENGTHS)])
        for x in (a, b)
    )
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1), (p.argmax(-1) != q.argmax(-1)).mean()


def test_what_is_the_same_differs_by_exactly_nothing(llama, run):
    for one, again in ((run, run), (run, llama.run(ROWS, "*")), (llama, llama)):
        same = compare(one, again)
        numbers = [n for row in same for n in (row.relative, row.max_abs, row.kl, row.flipped)]
        assert {n for n in numbers if n is not None} == {0}
        assert {row.variation for row in same} <= {None, 0}
        assert repr(same).splitlines()[-1] == f"0 of {len(same)} differ"


def test_the_weight_that_was_edited_is_the_only_one_that_differs_and_comes_first(llama, edited):
    first, *rest = compare(llama, edited)
    weight = np.asarray(llama.model.layers[1].self_attn.o_proj.weight.get_value(), np.float64)
    assert (first.name, first.kind, first.where) == (EDITED, "weight", (3, 4))
    assert first.max_abs == pytest.approx(2) and len(rest) == 29
    assert first.relative == pytest.approx(2 / np.linalg.norm(weight), rel=1e-5)
    assert {(row.relative, row.max_abs) for row in rest} == {(0, 0)}


def test_every_point_is_compared_at_its_real_positions(run, other, found):
    points = [row for row in found if row.kind == "point"]
    assert len(points) == len(run.names) - 1  # logits have a row of another kind
    for row in points:
        axes = point_of(row.name).axes
        a, b = (
            np.where(np.isneginf(x), 0, real(x, axes)) for x in (run[row.name], other[row.name])
        )
        apart = np.abs(a - b)
        assert row.max_abs == pytest.approx(apart.max(), rel=1e-6, abs=1e-6)
        assert apart[row.where] == pytest.approx(apart.max(), rel=1e-6)
        assert row.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)


def test_the_largest_comes_first_and_is_the_same_both_ways_round(run, other, found):
    ranks = [row.relative for row in found]
    assert ranks == sorted(ranks, reverse=True) and found.top(3) == list(found)[:3]
    back = compare(other, run)
    assert all(back[row.name].max_abs == row.max_abs for row in found)


def test_a_pattern_says_how_far_its_rows_are_apart(run, other, found):
    for i in range(3):
        name = f"layers.{i}.self_attn.pattern"
        a, b = (real(x[name], "B N T S") for x in (run, other))
        expected = np.abs(a - b).sum() / 2 / (4 * sum(LENGTHS))
        assert found[name].variation == pytest.approx(expected, rel=1e-5)
        assert 0 <= found[name].variation <= 1
    assert found["layers.0.self_attn.pattern"].detail == "total variation 0"
    assert found["layers.2.self_attn.pattern"].variation > 0.01


def test_kl_is_that_of_numpy_for_logits_and_at_every_layer(llama, edited, run, other, found):
    rows = {"logits": (run.logits, other.logits)}
    for i in range(3):
        name = f"layers.{i}.resid_post"
        rows[f"layers.{i}.lens"] = (
            readout(llama.model, run[name]),
            readout(edited.model, other[name]),
        )
    for name, (a, b) in rows.items():
        kl, flipped = kl_of(a, b)
        assert found[name].kl == pytest.approx(kl.mean(), abs=1e-5) and found[name].kl >= 0
        assert found[name].flipped == pytest.approx(flipped)
        apart = np.abs(real(a, "B T V") - real(b, "B T V"))
        assert found[name].max_abs == pytest.approx(apart.max(), rel=1e-5)
        assert apart[found[name].where] == pytest.approx(found[name].max_abs, rel=1e-5, abs=1e-5)
    assert found["layers.0.lens"].kl == 0 < found["layers.1.lens"].kl
    assert found["layers.2.lens"].kl == pytest.approx(found["logits"].kl, abs=1e-5)
    assert found["logits"].detail.startswith("KL ")


def test_blocks_of_positions_give_what_all_at_once_give(run, other, found, monkeypatch):
    monkeypatch.setattr(difference, "LOGITS_AT_ONCE", 96 * 5)  # 18 positions in 4 blocks
    programs: tuple[Any, ...] = (difference._logits_program, difference._lens_program)
    for program in programs:
        program.clear_cache()
    blocks = compare(run, other)
    for program in programs:
        program.clear_cache()
    for name in ("logits", "layers.1.lens", "layers.2.lens"):
        assert blocks[name].kl == pytest.approx(found[name].kl, abs=1e-6)
        assert blocks[name][3:5] == (
            pytest.approx(found[name].max_abs, rel=1e-5),
            found[name].where,
        )


def test_padding_is_never_looked_at(run):
    pattern, stream = "layers.1.self_attn.pattern", "layers.1.resid_post"
    padded = {
        pattern: run[pattern].at[1, :, 3:].set(7).at[1, :, :, 3:].set(7),
        stream: run[stream].at[1, 3:].set(jnp.nan),
    }
    logits = run.logits.at[1, 3:].set(jnp.nan)
    other = dataclasses.replace(run, captured={**run.captured, **padded}, logits=logits)
    assert {row.max_abs for row in compare(run, other)} == {0}


def test_a_nan_on_one_side_comes_before_everything(run, other):
    name = "layers.0.mlp.act"
    broken = {**other.captured, name: other[name].at[1, 2, 3].set(jnp.nan)}
    first = compare(run, dataclasses.replace(other, captured=broken)).rows[0]
    assert (first.name, first.where) == (name, (1, 2, 3)) and np.isnan(first.relative)


def test_what_came_from_nothing_is_infinitely_larger(llama):
    name = "norm.weight"
    silent = llama.edited({name: np.zeros(32)})
    assert compare(silent, llama)[name].relative == float("inf")
    assert compare(llama, silent)[name].relative == 1


def test_points_of_one_run_alone_are_listed(llama, run):
    part = llama.run(ROWS, ["embed", Capture("resid_mid", positions=0)])
    few = compare(part, run)
    assert [row.name for row in few] == ["embed", "logits"]
    assert few.only_in_a == () and "layers.0.resid_mid" in few.only_in_b
    assert compare(run, part).only_in_a == few.only_in_b
    assert f"{len(run.names) - 2} points only in b" in repr(few)


def test_other_tokens_are_counted(llama):
    a, b = llama.run([[1, 2, 3, 4], [5, 6]]), llama.run([[1, 2, 9, 9], [5, 6]])
    assert compare(a, b).tokens_differ == 2
    assert repr(compare(a, b)).endswith("tokens differ at 2 positions")


def test_the_last_position_is_compared_where_one_run_has_no_other(llama, edited, run):
    last = edited.run(ROWS, logits="last")
    found = compare(run, last)["logits"]
    assert found == compare(llama.run(ROWS, logits="last"), last)["logits"]
    a = np.asarray(run.logits)[[0, 1], [8, 2]]
    assert found.max_abs == pytest.approx(np.abs(a - np.asarray(last.logits)[:, 0]).max(), rel=1e-6)


def test_a_run_from_a_file_is_compared_without_its_llama(run, other, found, tmp_path):
    other.save(tmp_path / "other.run")
    loaded = compare(run, Run.load(tmp_path / "other.run"))
    assert [row for row in found if row.kind != "lens"] == list(loaded)


def test_other_dtypes_are_compared_in_f32(llama):
    name = "lm_head.weight"
    narrow = Llama.random(GQA, std=0.3, dtype="bf16")
    found = compare(narrow, llama)
    assert 0 < found[name].relative < 2**-8 and found["norm.weight"].relative == 0


def test_configs_that_give_equal_shapes_are_compared_and_named(llama):
    other = dataclasses.replace(llama.model.config, rope_theta=5.0)
    found = compare(llama, Llama.random(other, std=0.3))
    assert found.configs == ("rope_theta is 1000.0 and 5.0",)
    assert repr(found).endswith("0 of 30 differ; rope_theta is 1000.0 and 5.0")


def test_what_cannot_be_compared_is_a_clear_error(llama, run):
    with pytest.raises(TypeError, match="two Runs or two Llamas, not Run and Llama"):
        compare(run, llama)
    wide = Llama.random(dataclasses.replace(GQA, hidden_size=64, num_hidden_layers=2))
    with pytest.raises(ValueError, match="hidden_size is 32 and 64; num_hidden_layers is 3 and 2"):
        compare(llama, wide)
    with pytest.raises(ValueError, match="2 and 1 rows"):
        compare(run, llama.run(ROWS[:1]))
    with pytest.raises(
        ValueError, match=r"embed has shape \[2, 9, 32\].*\[2, 9, 64\].*hidden_size"
    ):
        compare(run, wide.run(ROWS, "embed"))
    with pytest.raises(ValueError, match="abstract"):
        compare(Llama.abstract(GQA), llama)
    with pytest.raises(KeyError, match=r"no row 'layers.7.lens'. Near: layers"):
        compare(llama, llama)["layers.7.lens"]


def test_a_comparison_becomes_a_data_frame_and_prints_what_differs(found):
    table = found.to_dataframe().set_index("name")
    assert len(table) == len(found) and table["kl"]["logits"] == found["logits"].kl
    lines = repr(found).splitlines()
    assert len(lines) == 1 + 20 + 1 and lines[1].startswith(found.rows[0].name)
    changed = sum(row.max_abs > 0 for row in found)
    assert lines[-1].startswith(f"{changed} of {len(found)} differ, of which these do most")


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_weights_on_a_mesh_are_compared_with_weights_on_one_device(llama):
    weight = llama.model.layers[1].self_attn.o_proj.weight.get_value()
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    moved = jax.device_put(weight + 1, NamedSharding(mesh, P("x", "y")))
    sharded = llama.edited({EDITED: moved})
    for a, b in ((llama, sharded), (sharded, llama)):
        assert compare(a, b)[EDITED].max_abs == pytest.approx(1, abs=1e-6)


def test_prompts_of_other_lengths_are_aligned_by_their_tokens():
    llama = Llama.random(GQA, std=0.3)
    long, short = [[1, 5, 2, 3, 7, 8]], [[1, 2, 3, 8]]
    a, b = (llama.run(prompt, ("embed", "pattern", "resid_post")) for prompt in (long, short))
    found = compare(a, b)
    assert found.aligned == (4, 6, 4)
    assert "aligned by tokens: 4 of 6 and 4 positions; where counts in a" in str(found)
    rows = {row.name: row for row in found.rows}
    assert rows["embed"].max_abs == 0 and found.tokens_differ == 0
    at = np.array([0, 2, 3, 5])
    for name in ("layers.1.resid_post", "layers.0.self_attn.pattern"):
        one, other = np.asarray(a[name]), np.asarray(b[name])
        axis = 1 if name.endswith("post") else 2
        one = one.take(at, axis)
        if axis == 2:
            one = one.take(at, 3)
        apart = np.abs(one - other)
        assert rows[name].max_abs == pytest.approx(apart.max(), rel=1e-6)
        where = list(np.unravel_index(apart.argmax(), apart.shape))
        for n in [1] if axis == 1 else [2, 3]:
            where[n] = at[where[n]]
        assert rows[name].where == tuple(where)
    apart = np.abs(np.asarray(a.logits)[:, at] - np.asarray(b.logits))
    assert rows["logits"].max_abs == pytest.approx(apart.max(), rel=1e-6)


def test_uneven_batches_are_aligned_row_by_row():
    llama = Llama.random(GQA, std=0.3)
    a = llama.run([[1, 5, 2], [4, 4, 6, 7]], "embed")
    b = llama.run([[5, 2], [4, 6, 7, 9]], "embed")
    found = compare(a, b)
    assert found.aligned == (5, 7, 6)
    assert next(row for row in found.rows if row.name == "embed").max_abs == 0


def test_prompts_without_a_token_in_common_are_refused():
    llama = Llama.random(GQA)
    with pytest.raises(ValueError, match="no token in common"):
        compare(llama.run([[1, 2]]), llama.run([[3]]))
