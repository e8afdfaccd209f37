"""Pictures of large arrays in Treescope's trees."""

import base64
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import Llama
from llama_jax.analysis import overview
from llama_loupe import arrays, renderer

rng = np.random.default_rng(0)
KINDS = [AxisType.Auto, AxisType.Explicit]
MOST = 63 * 48  # a histogram's counts at each edge in each row of cells


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def sharded(array, kind, spec, names=("x", "y")):
    mesh = jax.make_mesh((2, 4), names, axis_types=(kind, kind), devices=jax.devices()[:8])
    return jax.device_put(array, NamedSharding(mesh, spec))


@pytest.fixture(autouse=True)
def nothing_is_ignored():
    """Treescope goes on after an error, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def page(value, **settings):
    with (
        treescope.active_renderer.set_scoped(renderer.extended()),
        treescope.active_autovisualizer.set_scoped(arrays.draw),
    ):
        return html(value, **settings)


def html(value, **settings):
    """Treescope's page, without the number it draws for each."""
    drawn = treescope.render_to_html(value, ignore_exceptions=True, **settings)
    return re.sub("treescope_out_[0-9a-f]{32}", "", drawn)


def words(value):
    """What stands beside the picture, without markup."""
    return re.sub(r"<style.*?</style>|<[^>]*>", "", page(value, compressed=False))


def cells(value):
    """The numbers in the picture, as the browser reads them."""
    (data,) = re.findall(r'"arrayBase64": "([^"]*)"', page(value, compressed=False))
    return np.frombuffer(base64.b64decode(data), np.float32)


@pytest.mark.parametrize("numpy", [True, False], ids=["by numpy", "on the device"])
@pytest.mark.parametrize("shape", [(4000,), (700, 130), (9, 50, 70), (2, 3, 50, 40)])
def test_an_outlier_is_seen_wherever_it_is(shape, numpy, monkeypatch):
    monkeypatch.setattr(arrays, "AT_ONCE", 10**6 if numpy else 0)
    array = normal(*shape)
    places = [(0,) * len(shape), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)]
    for place in places:
        one = array.copy()
        one[place] = -1024
        found = cells(jnp.asarray(one))
        assert found.size <= arrays.CELLS and (found == 1024).sum() == 1
        assert "-1024 to " in words(one)


def test_the_legend_says_where_the_largest_magnitude_is():
    array = np.ones((2, 300, 480), np.float32)
    array[1, 20, 33] = 5
    assert "5 is in rows [1, 12] to [1, 23], columns 30 to 39" in words(array)
    vector = np.zeros(480, np.float32)
    assert "largest magnitude in a cell" in words(vector)
    vector[11] = 2
    assert "2 is in entries 10 to 14" in words(vector)


def test_how_axes_are_joined_is_said():
    assert '"2x3x50 rows (axes 0 to 2 joined)"' in page(normal(2, 3, 50, 40), compressed=False)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(517, 300), (1000,), (2, 3, 5, 70)])
def test_both_ways_of_pooling_find_the_same(dtype, shape):
    array = normal(*shape).astype(jnp.dtype(dtype))
    array[..., 3], array[..., 7] = np.nan, (0.5 if dtype == "float8_e4m3fn" else -np.inf)
    cells = (min(int(np.prod(shape[:-1])), 48), 48)
    found, expected = arrays.pooled_by_numpy(array, cells), overview(array, cells)
    np.testing.assert_array_equal(found.cells, expected.max_abs)
    np.testing.assert_allclose(found.edges, expected.edges, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        found.histogram, np.histogram(array[np.isfinite(array)].astype("f8"), found.edges)[0]
    )
    one, other = found.statistics, expected.statistics
    assert one[:3] == other[:3] and one[8:] == other[8:]
    assert (one.minimum, one.maximum) == (other.minimum, other.maximum)
    assert one[3:8] == pytest.approx(other[3:8], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "array",
    [
        np.full((50, 50), np.nan, np.float32),
        np.zeros((50, 50), np.float32),
        np.full((50, 50), 7.5, np.float64),
        1 + np.spacing(1.0) * np.arange(2500.0).reshape(50, 50) % 3,
        np.array([1e300, -1e300] * 1000),
    ],
    ids=["nothing finite", "zeros", "one value", "neighbours", "large"],
)
def test_extreme_arrays_have_a_picture(array):
    assert cells(array).size


def test_what_is_not_finite_is_counted_found_and_marked():
    array = normal(480, 480)
    array[100, 5], array[100, 6], array[-1, -1] = np.nan, np.inf, -np.inf
    for value in (array, sharded(array, AxisType.Explicit, P("x"))):
        said = words(value)
        assert "1 NaN, 2 infinite" in said
        assert "not finite: 2 cells, the first in rows 100 to 109, columns 0 to 9" in said
        assert np.isnan(cells(value)).sum() == 2 and not np.isinf(cells(value)).any()
    assert "not finite" not in words(normal(480, 480))


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_cells_comes_to_the_host(kind, monkeypatch):
    # Treescope would copy the smaller one to describe it.
    array, smaller = (sharded(normal(n, 480), kind, P("x", "y")) for n in (2000, 200))
    got, sizes, kept = jax.device_get, [], type(array).__array__

    def device_get(tree):
        sizes.extend(np.size(leaf) for leaf in jax.tree.leaves(tree))
        return got(tree)

    def as_numpy(self, *given, **named):
        sizes.append(self.size)
        return kept(self, *given, **named)

    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(type(array), "__array__", as_numpy)
    assert page([array, smaller])
    assert sizes and max(sizes) <= MOST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1024, 2048), (64, 8, 4, 16)])
def test_sharded_arrays_say_how_they_are_laid_out(kind, shape):
    host = normal(*shape)
    array = sharded(host, kind, P("x", *[None] * (len(shape) - 2), "y"))
    np.testing.assert_array_equal(cells(array), cells(host))
    said = words({"a": array})
    assert "on the mesh x 2, y 4" in said
    assert f"{(shape[0] // 2, *shape[1:-1], shape[-1] // 4)} on each of 8 devices" in said


def integers(shape=(512, 512)):
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "bfloat16"])
def test_treescope_draws_what_lies_on_a_mesh_of_either_kind(kind, dtype):
    """Treescope 0.1.10 raises a ShardingTypeError for large arrays on Explicit meshes."""
    array = sharded(integers().astype(jnp.dtype(dtype)), kind, P("x", "y"))
    assert "(512, 512)" in words([array])
    assert renderer.text([array]) == f"[<jax.Array {dtype}(512, 512)>]"


def test_pages_are_drawn_within_a_mesh():
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        values = [normal(2000, 1000), jnp.asarray(normal(64, 64)), jnp.asarray(normal(4, 4))]
        assert page([*values, jax.device_put(values[0], P("x")), integers()])


KEPT = {
    "small": np.ones((30, 30), np.float32),
    "scalar": jnp.float32(3),
    "empty": jnp.ones((0, 4000)),
    "integers": jnp.asarray(integers()),
    "booleans": integers((600, 20)) > 7,
    "complex": jnp.ones((40, 40), jnp.complex64),
    "keys": jax.random.split(jax.random.key(0), 200),
    "masked": np.ma.masked_less(normal(40, 40), 0),
    "objects": np.array([{}] * 2000),
    "records": np.zeros(2000, [("a", "f4"), ("b", "i4")]),
    "abstract": jax.ShapeDtypeStruct((4096, 4096), jnp.float32),
    "long double": np.ones((40, 40), np.longdouble),
}


@pytest.mark.parametrize("kind", KEPT)
def test_all_else_looks_as_treescope_draws_it(kind):
    # Its pictures fail on an empty array.
    pictures = arrays.EXACT if KEPT[kind].size else None
    with treescope.active_autovisualizer.set_scoped(pictures):
        expected = html(KEPT[kind])
    assert page(KEPT[kind]) == expected


def test_what_is_gone_or_not_there_yet_is_named():
    gone = [jnp.ones((40, 40)), jnp.ones((400, 400)), jnp.arange(100_000)]
    for array in gone:
        array.delete()
    assert words(gone).count("deleted!") == 3
    assert renderer.text(gone).count("deleted!") == 3
    traced = jax.eval_shape(
        lambda x: pages.append(words([x])) or x, (pages := []) or jnp.ones((64, 64))
    )
    assert traced.shape == (64, 64) and "64" in pages[0]


@pytest.mark.parametrize(
    "shape", [(4096, 1433), (5000,), (1, 100_000), (100_000, 2), (8, 12, 40, 40), (47, 4000)]
)
def test_a_picture_is_a_small_page(shape):
    assert len(page(normal(*shape))) < 60_000


def test_a_run_is_drawn_with_its_captures():
    llama = Llama.from_pretrained("cria")
    run = llama.run("One day", capture=[("mlp.act", 0)])
    assert "mean " in words(run)


def test_names_are_text():
    name = '</script><img src=x onerror="alert(1)">'
    array = sharded(normal(64, 64), AxisType.Auto, P(name), names=(name, "y"))
    drawn = page(array, compressed=False)
    assert "<img src=x" not in drawn and "&lt;img src=x" in drawn
