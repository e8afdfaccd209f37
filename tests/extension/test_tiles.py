"""Windows of arrays, wherever they lie: numbers against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_loupe import tiles
from llama_loupe.tiles import Matrix, tile
from llama_loupe.view import ViewError

rng = np.random.default_rng(0)
WINDOWS = [((0, 700), (0, 130)), ((3, 698), (1, 130)), ((5, 40), (7, 9)), ((699, 700), (0, 1))]


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def sharded(array, spec, kind=AxisType.Auto):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=jax.devices()[:8])
    return jax.device_put(array, NamedSharding(mesh, spec))


def on_accelerator(matrix):
    """As if its devices were none of this host's memory."""
    matrix.at_hand = False
    return matrix


def expected(values, rows, columns, cells, pool):
    """One cell at a time."""
    parts = [
        [*map(list, np.array_split(np.arange(*span), min(n, span[1] - span[0])))]
        for span, n in zip((rows, columns), cells, strict=True)
    ]
    found = np.zeros([len(part) for part in parts], values.dtype)
    for i, down in enumerate(parts[0]):
        for j, across in enumerate(parts[1]):
            cell = values[np.ix_(down, across)].ravel()
            largest = cell[np.argmax(np.abs(cell))]
            found[i, j] = largest if pool == "max" else cell.mean(dtype=np.float64)
    return found


@pytest.mark.parametrize("where", ["host", "numpy", "sharded on the host", "device", "devices"])
@pytest.mark.parametrize("pool", tiles.POOLS)
@pytest.mark.parametrize("rows, columns", WINDOWS)
def test_a_tile_is_what_numpy_pools(where, pool, rows, columns):
    values = normal(700, 130)
    array = values if where == "numpy" else jnp.asarray(values)
    if where in ("sharded on the host", "devices"):
        array = sharded(normal(704, 132), P("x", "y"))
        values = np.asarray(array)
    matrix = Matrix(array)
    if where.startswith("device"):
        matrix = on_accelerator(matrix)
    found = tile(matrix, rows, columns, (60, 50), pool)
    wanted = expected(values, rows, columns, (60, 50), pool)
    assert found.values.dtype == np.float32
    if pool == "max":
        np.testing.assert_array_equal(found.values, wanted)
    else:
        np.testing.assert_allclose(found.values, wanted, atol=1e-6)
    assert (found.rows[0], found.rows[-1], found.columns[0], found.columns[-1]) == (*rows, *columns)


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_single_entries_are_exact_in_every_dtype(dtype, hand):
    values = jnp.asarray(normal(40, 30) * 50, dtype)
    matrix = Matrix(values)
    matrix.at_hand = hand
    found = tile(matrix, (3, 33), (2, 22), (256, 256), "max")
    np.testing.assert_array_equal(found.values, np.asarray(values[3:33, 2:22], np.float32))


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
def test_64_bits_stay_64(hand):
    values = normal(20, 30, dtype=np.float64)
    with jax.enable_x64(True):
        matrix = Matrix(jnp.asarray(values))
    matrix.at_hand = hand
    found = tile(matrix, (0, 20), (0, 30), (20, 30), "max")
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_entry_shows_in_its_cell_alone(bad, hand):
    values = normal(300, 200)
    values[123, 45] = bad
    for pool in tiles.POOLS:
        matrix = Matrix(jnp.asarray(values))
        matrix.at_hand = hand
        found = tile(matrix, (0, 300), (0, 200), (10, 10), pool)
        np.testing.assert_array_equal(np.argwhere(~np.isfinite(found.values)), [[4, 2]])
        np.testing.assert_equal(found.values[4, 2], np.float32(bad))


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
def test_a_vector_is_one_row(hand):
    values = normal(1000)
    matrix = Matrix(jnp.asarray(values))
    matrix.at_hand = hand
    assert matrix.shape == (1, 1000)
    found = tile(matrix, (0, 1), (10, 20), (256, 256), "max")
    np.testing.assert_array_equal(found.values, values[None, 10:20])


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
@pytest.mark.parametrize(
    "spec", [P(), P("x"), P(None, "y"), P("x", None, "y"), P(None, None, None, "y")]
)
def test_of_a_larger_array_first_axes_are_fixed_and_last_ones_joined(spec, hand):
    values = normal(2, 8, 4, 12)
    for kind in (AxisType.Auto, AxisType.Explicit):
        matrix = Matrix(sharded(values, spec, kind), (1,))
        matrix.at_hand = hand
        assert matrix.shape == (8, 48)
        found = tile(matrix, (1, 7), (5, 40), (256, 256), "max")
        np.testing.assert_array_equal(found.values, values[1].reshape(8, 48)[1:7, 5:40])


@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
def test_what_is_above_the_diagonal_does_not_count(hand):
    scores = np.where(np.tri(50, dtype=bool), normal(50, 50), -np.inf).astype(np.float32)
    matrix = Matrix(jnp.asarray(scores), causal=True)
    matrix.at_hand = hand
    found = tile(matrix, (0, 50), (0, 50), (10, 10), "max")
    np.testing.assert_array_equal(
        found.values,
        expected(
            np.tril(np.where(scores == -np.inf, 0, scores)), (0, 50), (0, 50), (10, 10), "max"
        ),
    )


@pytest.mark.parametrize(
    "specs", [None, (P("x", "y"), P("x", "y")), (P("x"), P("y")), (P("x"), None)]
)
@pytest.mark.parametrize("hand", [True, False], ids=["host", "device"])
def test_a_difference_shows_one_changed_entry(hand, specs):
    one = normal(400, 320)
    other = one.copy()
    other[321, 123] += 1e-3
    one[5, 5] = other[5, 5] = np.nan
    one[6, 6] = other[6, 6] = np.inf
    wanted = np.zeros((20, 20), np.float32)
    wanted[16, 7] = other[321, 123] - one[321, 123]
    pair = [jnp.asarray(one), jnp.asarray(other)]
    if specs is not None:
        pair = [x if s is None else sharded(x, s) for x, s in zip(pair, specs, strict=True)]
    a, b = map(Matrix, pair)
    a.at_hand = b.at_hand = hand
    np.testing.assert_array_equal(tile(a, (0, 400), (0, 320), (20, 20), "max", b).values, wanted)


def test_a_difference_of_two_dtypes_is_in_the_wider():
    one = jnp.asarray(normal(20, 20), jnp.bfloat16)
    other = normal(20, 20)
    found = tile(Matrix(one), (0, 20), (0, 20), (20, 20), "max", Matrix(other))
    np.testing.assert_array_equal(found.values, other - np.asarray(one, np.float32))


def test_host_memory_is_looked_at_and_not_copied():
    array = jnp.asarray(normal(1000, 1000))
    matrix = Matrix(array)
    tile(matrix, (0, 1000), (0, 1000), (8, 8), "max")
    (_, _, values) = matrix._here[0]
    assert values.ctypes.data == array.unsafe_buffer_pointer()


def test_few_programs_serve_all_windows_of_an_accelerators_array():
    array = jnp.asarray(normal(1024, 1024))
    before = tiles._pooled._cache_size()
    for size in range(8, 1024, 40):
        tile(on_accelerator(Matrix(array)), (0, size), (1, size + 1), (256, 256), "max")
    assert tiles._pooled._cache_size() - before <= 3


def test_what_is_gone_says_so():
    array = jnp.ones((3, 3))
    array.delete()
    with pytest.raises(ViewError, match="is gone"):
        Matrix(array)
