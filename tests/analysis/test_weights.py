import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import Llama
from llama_jax.analysis import results, weights
from llama_jax.analysis.cells import on_host
from llama_jax.analysis.weights import overview, weight_statistics
from tests.tiny import GQA

rng = np.random.default_rng(0)
SMALL = dataclasses.replace(GQA, vocab_size=64, intermediate_size=64)  # four shapes of weights


def cells_of(array, shape):
    """The cells by `numpy.array_split`, as a list of lists."""
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    rows = np.array_split(matrix, min(shape[0], matrix.shape[0]), axis=0)
    columns = min(shape[1], matrix.shape[1])
    return [np.array_split(row, columns, axis=1) for row in rows]


def check(array, shape=(256, 256)):
    """Everything that an overview of finite numbers says, against NumPy in f64."""
    found = overview(array, shape)
    wide = np.asarray(array).astype(np.float64)
    cells = cells_of(wide, shape)
    np.testing.assert_array_equal(
        found.max_abs, np.array([[np.abs(cell).max() for cell in row] for row in cells], np.float32)
    )
    means = np.array([[cell.mean() for cell in row] for row in cells])
    size = np.abs(wide).max()
    np.testing.assert_allclose(found.mean, means, rtol=0, atol=2e-7 * size)
    assert float(jnp.max(found.max_abs)) == np.float32(size)
    sizes = np.array([[cell.size for cell in row] for row in cells])
    weighted = np.sum(sizes * np.asarray(found.mean, np.float64)) / wide.size
    assert weighted == pytest.approx(wide.mean(), rel=0, abs=2e-7 * size)

    one = found.statistics
    assert one.shape == wide.shape and one.dtype == array.dtype.name
    assert one.mean == pytest.approx(wide.mean(), rel=1e-6, abs=1e-8 * size)
    assert one.std == pytest.approx(wide.std(), rel=1e-6)
    assert one.norm == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    assert (one.minimum, one.maximum) == (wide.min(), wide.max())
    assert (one.zeros, one.nans, one.infinities) == ((wide == 0).sum(), 0, 0)

    np.testing.assert_array_equal(found.histogram, np.histogram(wide, found.edges)[0])
    assert found.histogram.sum() == wide.size and found.histogram.dtype == np.int64
    edges = np.histogram_bin_edges(wide, 64)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-6, atol=1e-6 * np.ptp(edges))
    return found


@pytest.mark.parametrize(
    "shape", [(517, 300), (1000,), (), (2, 3, 5, 70)], ids=lambda shape: str(shape)
)
def test_every_number_is_that_of_numpy_for_any_shape(shape):
    array = np.array(rng.normal(size=shape), np.float32)
    cells = (1, 1) if not shape else (min(math.prod(shape[:-1]), 256), min(shape[-1], 256))
    assert check(array).max_abs.shape == cells


DTYPES = ["bfloat16", "float8_e4m3fn", "int8", "int4", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_that_of_numpy_for_any_dtype(dtype):
    values = rng.normal(size=(20, 33)) * 3
    check((values > 0 if dtype == "bool" else values).astype(jnp.dtype(dtype)), (4, 11))


def test_the_smallest_integer_has_a_magnitude():
    found = overview(np.array([[-128, 127]], np.int8))
    assert found.max_abs.tolist() == [[128, 127]] and found.statistics.minimum == -128


def test_64_bits_stay_64_where_jax_would_make_them_32():
    large = overview(np.array([2**40, 2**40 + 2])).statistics
    assert (large.minimum, large.maximum, large.std) == (2**40, 2**40 + 2, 1)
    assert overview(np.array([1e300, -1e300])).statistics.norm == pytest.approx(2**0.5 * 1e300)


def test_one_outlier_anywhere_is_seen_and_hides_nothing_else():
    array = rng.normal(size=(1024, 768)).astype(np.float32)
    before = overview(array)
    array[1001, 333] = -3e38
    after = overview(array)
    changed = np.argwhere(np.asarray(before.max_abs != after.max_abs))
    assert changed.tolist() == [[1001 // 4, 333 // 3]]
    assert float(after.max_abs.max()) == np.float32(3e38)
    assert after.statistics.std == pytest.approx(3e38 / array.size**0.5, rel=1e-5)
    away = np.abs(np.asarray(after.mean) - np.asarray(before.mean)) > 1e-6
    assert np.argwhere(away).tolist() == changed.tolist()


def test_what_is_not_finite_shows_in_its_cell_and_stays_out_of_the_statistics():
    array = np.ones((8, 8), np.float32)
    array[0, 0], array[7, 0], array[7, 7] = np.nan, np.inf, -np.inf
    found = overview(array, (4, 4))
    assert np.argwhere(np.isnan(found.mean)).tolist() == [[0, 0]]
    assert np.argwhere(np.isnan(found.max_abs)).tolist() == [[0, 0]]
    assert np.argwhere(np.isinf(found.max_abs)).tolist() == [[3, 0], [3, 3]]
    assert (found.mean[3, 0], found.mean[3, 3]) == (np.inf, -np.inf)
    one = found.statistics
    assert (one.mean, one.std, one.minimum, one.maximum) == (1, 0, 1, 1)
    assert (one.nans, one.infinities, found.histogram.sum()) == (1, 2, 61)
    assert one.norm == pytest.approx(61**0.5)


def test_an_array_without_a_finite_entry_has_counts_and_no_mean():
    found = overview(np.full((2, 3), np.nan, np.float32))
    assert math.isnan(found.statistics.mean) and found.statistics.nans == 6
    assert found.histogram.sum() == 0 and (found.edges[0], found.edges[-1]) == (0, 1)


def test_a_mean_far_from_zero_leaves_the_deviation_its_digits():
    array = (1e4 + 0.1 * rng.normal(size=(2048, 1024))).astype(np.float32)
    one = overview(array).statistics
    wide = array.astype(np.float64)
    assert one.mean == pytest.approx(wide.mean(), rel=1e-10)
    assert one.std == pytest.approx(wide.std(), rel=1e-6)


def test_millions_of_entries_in_one_cell_are_summed_as_well_as_in_many():
    array = rng.random(4_000_000, dtype=np.float32)
    found = overview(array, (1, 1))
    assert found.statistics.std == pytest.approx(array.std(dtype=np.float64), rel=1e-6)
    assert found.statistics.mean == pytest.approx(array.mean(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_the_array_nothing_of_its_size_is_made(dtype):
    array = jax.ShapeDtypeStruct((2048, 4096), jnp.dtype(dtype))
    memory: Any = weights._overview.lower(array, shape=(256, 256)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * array.size * array.dtype.itemsize


def test_what_has_no_overview_is_a_clear_error():
    parameter: Any = Llama.abstract(GQA).model.norm.weight
    with pytest.raises(ValueError, match=r"shape \[3, 0\]: it has no entries"):
        overview(np.zeros((3, 0)))
    with pytest.raises(TypeError, match=r"complex64.*take \.real"):
        overview(jnp.zeros(3, jnp.complex64))
    with pytest.raises(TypeError, match=r"not Param; .*get_value\(\)"):
        overview(parameter)
    with pytest.raises(ValueError, match=r"shape is \(0, 4\)"):
        overview(np.zeros(3), (0, 4))


def test_an_overview_is_drawn_whole_though_a_picture_has_fewer_cells(monkeypatch):
    array = rng.normal(size=(512, 768)).astype(np.float32)
    array[500, 700] = np.nan
    found = overview(array)
    assert repr(found).startswith("Overview(512 x 768 float32: mean ")
    assert repr(found).endswith(", 1 NaN)")
    assert "mean = <Arrayviz rendering>" in treescope.render_to_text([found])
    drawn = []
    monkeypatch.setattr(results, "picture", lambda *given, around_zero: drawn.append(given))
    monkeypatch.setattr(results, "node", lambda *given: None)
    found.__treescope_repr__(None, None)
    for cells, axes, labels in drawn:
        assert axes == ("row", "column") and cells.shape == (200, 200)
        ((row, column),) = np.argwhere(np.isnan(cells))
        assert (labels["row"][row], labels["column"][column]) == ("500 to 501", "699 to 701")
        assert (labels["row"][0], labels["row"][-1]) == ("0 to 3", "510 to 511")
    assert len(drawn) == 2


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_a_sharded_array_stays_where_it_is_on_either_kind_of_mesh():
    def same(found, expected):
        np.testing.assert_allclose(found.max_abs, expected.max_abs)
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
        np.testing.assert_array_equal(found.histogram, expected.histogram)
        statistics = found.statistics[3:], expected.statistics[3:]
        np.testing.assert_allclose(*statistics, rtol=1e-6, atol=1e-8)

    def pointers(x):
        return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]

    array = np.random.default_rng(0).normal(size=(36, 32)).astype("f4")
    expected = overview(array, (8, 8))  # rows in cells of 5 and of 4, that no device has whole
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
        sharded = jax.device_put(array, NamedSharding(mesh, P("x", "y")))
        assert len(set(pointers(sharded))) == 8
        assert on_host(pointers, sharded) == pointers(sharded)
        same(overview(sharded, (8, 8)), expected)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        same(overview(jax.device_put(array, P(None, "x")), (8, 8)), expected)
        same(overview(array, (8, 8)), expected)


@pytest.fixture(scope="module")
def llama():
    return Llama.random(SMALL, std=0.3)


@pytest.fixture(scope="module")
def statistics(llama):
    return weight_statistics(llama)


def test_every_weight_has_a_row_under_its_own_name(llama, statistics):
    from llama_jax.model import parameters

    assert [row.name for row in statistics] == list(parameters(llama.model))
    assert len(statistics) == 30 and statistics["norm.weight"].norm == pytest.approx(32**0.5)
    name = "layers.2.mlp.down_proj.weight"
    wide = np.asarray(llama.model.layers[2].mlp.down_proj.weight.get_value(), np.float64)
    row = statistics[name]
    assert (row.shape, row.dtype, row.zeros) == ((32, 64), "float32", 0)
    assert (row.minimum, row.maximum) == (wide.min(), wide.max())
    assert row[3:5] == pytest.approx((wide.mean(), wide.std()), rel=1e-6)
    assert row.norm == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    with pytest.raises(KeyError, match=r"no row 'layers.9.*Near: layers"):
        statistics["layers.9.mlp.down_proj.weight"]


def test_an_abstract_llama_has_no_statistics():
    with pytest.raises(ValueError, match="abstract"):
        weight_statistics(Llama.abstract(GQA))


def test_a_broken_weight_is_found(llama):
    name = "layers.1.mlp.up_proj.weight"
    weight = llama.model.layers[1].mlp.up_proj.weight.get_value().at[3, 4].set(jnp.nan)
    found = weight_statistics(llama.edited({name: weight}))
    assert [row.name for row in found if row.nans] == [name]


def test_statistics_become_a_data_frame(statistics):
    table = statistics.to_dataframe()
    assert list(table.columns) == list(weights.Statistics._fields) and len(table) == 30
    assert table.set_index("name")["std"]["norm.weight"] == 0


def test_a_long_table_shows_layers_that_are_alike_in_one_line(statistics, monkeypatch):
    assert len(repr(statistics).splitlines()) == 32
    monkeypatch.setattr(weights, "MOST_ROWS", 20)
    lines = repr(statistics).splitlines()
    assert len(lines) == 1 + 12 + 1 and lines[-1].startswith(f"{SMALL.parameter_count:,} ")
    (line,) = (line for line in lines if line.startswith("layers.{i}.mlp.up_proj.weight (3)"))
    rows = [statistics[f"layers.{i}.mlp.up_proj.weight"] for i in range(3)]
    assert f"{min(row.minimum for row in rows):.3g}" in line
    assert f"{max(row.maximum for row in rows):.3g}" in line
    assert f"{min(r.norm for r in rows):.3g} … {max(r.norm for r in rows):.3g}" in line
