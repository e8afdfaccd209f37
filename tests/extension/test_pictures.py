"""Trees whose pictures are drawn when they are asked for."""

import base64
import concurrent.futures
import gc
import re
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from flax import nnx
from IPython.core.interactiveshell import InteractiveShell
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import llama_loupe as loupe
from llama_jax import Llama
from llama_jax.model import Model
from llama_loupe import arrays, pictures, renderer
from tests.tiny import function_calls

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def many(count=30, size=64) -> dict[str, jax.Array]:
    return {f"weight {i}": normal(size, size) for i in range(count)}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is known from another test, and Treescope's warnings are errors."""
    pictures.ARRAYS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def page(value) -> str:
    """What the page shows."""
    with treescope.active_autovisualizer.set_scoped(arrays.draw):
        drawn = renderer.html(value)
    assert drawn is not None
    return drawn


def unpacked(drawn: str) -> str:
    """What the browser unpacks of a page."""
    (packed,) = re.findall(r'octet-stream"\s*>([\w+/=]{100,})</script>', drawn)
    return zlib.decompress(base64.b64decode(packed)).decode()


def asked_for(drawn: str) -> list[tuple[str, int]]:
    """What the front end asks for, when all of it is seen."""
    found = re.findall(
        r'<llama-loupe-picture data-tree="(\w+)" data-array="(\d+)">', unpacked(drawn)
    )
    return [(tree, int(number)) for tree, number in found]


def drawn_in(drawn: str) -> int:
    """How many arrays are drawn in a page."""
    return unpacked(drawn).count('"arrayBase64": "')


def cells(drawn: str) -> np.ndarray:
    (data,) = re.findall(r'"arrayBase64": "([^"]*)"', unpacked(drawn))
    return np.frombuffer(base64.b64decode(data), np.float32)


def cria() -> Model:
    return Llama.from_pretrained("cria").model


FIRST_PAINTS = {
    "cria": cria,
    "cria's weights": lambda: nnx.to_pure_dict(nnx.state(cria())),
    "abstract 8B": lambda: Llama.abstract("llama-3.1-8b"),
    "abstract 8B's weights": lambda: nnx.state(Llama.abstract("llama-3.1-8b").model),
    "291 arrays": lambda: many(291),
    "1,000 small arrays": lambda: [jnp.ones(10)] * 1000,
}


@pytest.mark.parametrize("kind", FIRST_PAINTS)
def test_the_first_paint_is_small_and_little_work(kind):
    value = FIRST_PAINTS[kind]()
    with function_calls() as calls:
        drawn = page(value)
    assert calls[0] < 3_000_000  # at most 2 million today, a second or two
    assert len(drawn) < 300_000


def test_the_first_paint_looks_at_no_entries(monkeypatch):
    value = [*many().values(), jnp.arange(100_000), normal(20, 20)]

    def looked(*_):
        raise AssertionError("looked at the entries")

    monkeypatch.setattr(type(value[0]), "__array__", looked)
    monkeypatch.setattr(jax, "device_get", looked)
    monkeypatch.setattr(arrays, "pooled", looked)
    assert len(asked_for(page(value))) == len(value)


def test_a_few_arrays_are_drawn_at_once():
    four = [*many(pictures.MOST_LARGE).values(), jnp.ones(3), 1.5]
    assert not asked_for(page(four)) and drawn_in(page(four)) == 5
    five = [*four, normal(64, 64)]
    assert len(asked_for(page(five))) == 5 and not drawn_in(page(five))


def test_an_array_alone_is_drawn_at_once(shell):
    array = normal(64, 64)
    assert cells(page(array)).size
    assert cells(shown(shell, array)).size
    assert cells(shown(shell, nnx.Param(array))).size


def test_small_arrays_of_a_large_tree_are_written_out():
    tree = {**many(), "jax": jnp.arange(3), "numpy": np.arange(3)}
    said = unpacked(page(tree))
    assert "Array([0, 1, 2], dtype=int32)" in said and "[0, 1, 2]" in said
    assert len(asked_for(page(tree))) == 30


def test_each_gets_its_own_picture():
    tree = many(6)
    for number, key in enumerate(tree):
        tree[key] = tree[key].at[number, 7].set(2.0 ** (5 + number))
    asked = asked_for(page(tree))
    assert len(asked) == 6
    for number, each in enumerate(asked):
        assert cells(pictures.picture(*each)).max() == 2 ** (5 + number)


def test_two_displays_have_different_names():
    tree = many()
    first, second = asked_for(page(tree)), asked_for(page(tree))
    assert not set(first) & set(second)
    assert (
        cells(pictures.picture(*first[3])).tolist() == cells(pictures.picture(*second[3])).tolist()
    )


def test_until_it_is_asked_for_an_array_says_what_it_is_and_where():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    tree = [jax.device_put(each, NamedSharding(mesh, P("x", "y"))) for each in many().values()]
    said = re.sub(r"<style.*?</style>|<[^>]*>", "", unpacked(page(tree)))
    assert "float32(64, 64)" in said
    assert "on the mesh x 2, y 4: (32, 16) on each of 8 devices" in said
    with (
        treescope.active_renderer.set_scoped(renderer.extended()),
        treescope.active_autovisualizer.set_scoped(arrays.draw),
    ):
        assert "<jax.Array float32(64, 64)" in treescope.render_to_text(tree)


HARD = {
    "long": lambda: normal(100_000),
    "thin": lambda: normal(100_000, 2),
    "wide": lambda: normal(2, 100_000),
    "square": lambda: normal(1500, 1500),
    "deep": lambda: normal(8, 12, 40, 40),
    "numpy": lambda: rng.normal(size=(1000, 300)),
    "bfloat16": lambda: normal(1000, 300).astype(jnp.bfloat16),
    "integers": lambda: jnp.asarray(rng.integers(0, 10**9, (1000, 1000)), jnp.int32),
    "booleans": lambda: normal(300, 300) > 0,
    "not finite": lambda: normal(300, 300).at[3].set(jnp.nan),
    "just exact": lambda: normal(30, 33),
    "one column": lambda: normal(2000, 1),
}


@pytest.mark.parametrize("mesh", [None, AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("kind", HARD)
def test_a_picture_is_a_small_page(kind, mesh):
    array = HARD[kind]()
    if mesh is not None:
        devices = jax.make_mesh((2,), ("x",), axis_types=(mesh,), devices=jax.devices()[:2])
        array = jax.device_put(array, NamedSharding(devices, P("x")))
    tree = [array, *many().values()]
    drawn = pictures.picture(*asked_for(page(tree))[0])
    assert drawn_in(drawn) and len(drawn) < 60_000


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_an_array_on_a_mesh_is_there_as_long_as_it_is_held(kind, shell, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_HELD", 0)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,), devices=jax.devices()[:2])
    tree = [jax.device_put(each, NamedSharding(mesh, P("x"))) for each in many().values()]
    asked = asked_for(shown(shell, tree))
    gc.collect()
    assert cells(pictures.picture(*asked[7])).size
    del tree
    gc.collect()
    assert pictures.picture(*asked[7]).startswith("No longer in memory")


def test_a_picture_is_drawn_in_any_thread():
    tree = many()
    asked = asked_for(page(tree))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        drawn = threads.map(lambda each: pictures.picture(*each), asked)
        for _ in range(5):
            assert len(asked_for(page(tree))) == 30
        assert all(cells(each).size for each in drawn)


def test_a_page_keeps_nothing_large_in_memory(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_HELD", 3 * 64 * 64 * 4)
    tree = many()
    asked = asked_for(page(tree))
    del tree
    gc.collect()
    kept = ["treescope-container" in pictures.picture(*each) for each in asked]
    assert kept == [False] * 27 + [True] * 3
    assert pictures.picture(*asked[0]).startswith("No longer in memory")


def test_one_array_larger_than_all_that_is_held_leaves_the_others(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_HELD", 6 * 64 * 64 * 4)
    tree = [normal(1000, 1000), *many(5).values()]
    asked = asked_for(page(tree))
    del tree
    gc.collect()
    kept = ["treescope-container" in pictures.picture(*each) for each in asked]
    assert kept == [False] + [True] * 5


def test_what_a_cell_shows_and_does_not_keep_can_be_opened():
    asked = asked_for(page(many()))
    gc.collect()
    assert cells(pictures.picture(*asked[5])).size


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_KNOWN", 50)
    first, last = many(30), many(30)
    old, new = asked_for(page(first)), asked_for(page(last))
    assert len(pictures.ARRAYS.known) == 50
    assert pictures.picture(*old[0]).startswith("Not known")
    assert cells(pictures.picture(*new[0])).size


def test_a_deleted_array_is_said_to_be_deleted():
    tree = list(many().values())
    asked = asked_for(page(tree))
    tree[0].delete()
    assert "deleted" in pictures.picture(*asked[0])


@pytest.mark.parametrize("question", [("", 0), ("<b>", -1), ("0" * 16, 10**9), ("x", "1")])
def test_what_no_kernel_knows_gets_a_line(question):
    page(many())
    said = pictures.picture(*question)
    assert said.startswith("Not known") and said.endswith("Display it again.") and "<" not in said


def test_an_error_is_a_line_of_text(monkeypatch):
    tree = many()
    asked = asked_for(page(tree))

    def fails(*_):
        raise ValueError("<img src=x onerror=alert(1)>" * 1000)

    monkeypatch.setattr(arrays, "pooled", fails)
    said = pictures.picture(*asked[0])
    assert "ValueError: &lt;img" in said and "<" not in said and len(said) < 60_000


@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    loupe.load_ipython_extension(shell)
    yield shell
    loupe.unload_ipython_extension(shell)
    InteractiveShell.clear_instance()


def shown(shell, value) -> str:
    return shell.display_formatter.format(value)[0]["text/html"]


def test_without_autovisualization_there_are_no_pictures(shell):
    tree = many()
    assert asked_for(shown(shell, tree))
    shell.user_ns.update(shown=lambda: shown(shell, tree))
    shell.run_cell("%%autovisualize False\ndrawn = shown()")
    drawn = unpacked(shell.user_ns["drawn"])
    assert "llama-loupe-picture" not in drawn and "arrayBase64" not in drawn
    assert drawn.count("float32(64, 64)") == 30


def test_the_autovisualizer_of_somebody_else_is_asked(shell):
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        assert drawn_in(shown(shell, many(6))) == 6


def test_nothing_is_known_after_unloading(shell):
    tree = many()
    asked = asked_for(shown(shell, tree))
    loupe.unload_ipython_extension(shell)
    assert pictures.picture(*asked[0]).startswith("Not known")
