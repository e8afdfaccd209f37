"""`%load_ext llama_loupe` in an IPython without a browser."""

import html
import re
import warnings

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
from llama_jax.points import resolve
from llama_loupe import arrays, renderer


class Pair(nnx.Module):
    def __init__(self, size: int = 64):
        self.left = nnx.Param(jnp.ones((size, size)))
        self.right = nnx.Param(jnp.zeros((3,)))


@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    yield shell
    loupe.unload_ipython_extension(shell)
    InteractiveShell.clear_instance()


@pytest.fixture
def loaded(shell):
    loupe.load_ipython_extension(shell)
    return shell


def shown(shell, value) -> dict[str, str]:
    return shell.display_formatter.format(value)[0]


def state(shell):
    formatters = shell.display_formatter.formatters
    return (
        list(formatters),
        {kind: dict(formatter.type_printers) for kind, formatter in formatters.items()},
        {kind: dict(formatter.deferred_printers) for kind, formatter in formatters.items()},
        dict(shell.magics_manager.magics["cell"]),
        treescope.active_renderer.get(),
        treescope.active_autovisualizer.get(),
        treescope.default_magic_autovisualizer.get(),
        treescope.default_sequential_colormap.get(),
    )


def test_trees_and_arrays_are_drawn(loaded):
    for value in (Pair(), {"a": [1, 2]}, jnp.ones((40, 40))):
        assert "treescope-container" in shown(loaded, value)["text/html"]


def test_what_draws_itself_is_left_alone(loaded):
    class Own:
        def _repr_html_(self):
            return "<b>mine</b>"

    assert shown(loaded, Own())["text/html"] == "<b>mine</b>"


def test_unloading_puts_everything_back(shell):
    before = state(shell)
    loupe.load_ipython_extension(shell)
    loupe.load_ipython_extension(shell)
    shown(shell, Pair())
    assert state(shell) != before
    loupe.unload_ipython_extension(shell)
    assert state(shell) == before
    loupe.unload_ipython_extension(shell)


def test_the_text_of_a_large_array_does_not_copy_it(loaded, monkeypatch):
    model = Pair(512)

    def copied(self, *_):
        raise AssertionError("copied to the host")

    monkeypatch.setattr(type(model.left.get_value()), "__array__", copied)
    monkeypatch.setattr(jax, "device_get", copied)
    assert "float32(512, 512)" in shown_text(loaded, model)
    assert shown_text(loaded, model.left.get_value()) == "<jax.Array float32(512, 512)>"
    assert "float32(512, 512)" in shown_text(loaded, [model.left])


def shown_text(shell, value) -> str:
    return shell.display_formatter.format(value, include={"text/plain"})[0]["text/plain"]


def test_the_text_of_a_small_array_is_its_values(loaded):
    assert shown_text(loaded, jnp.arange(3)) == "Array([0, 1, 2], dtype=int32)"


def test_the_text_of_a_large_tree_is_short(loaded):
    tree = [Pair(2) for _ in range(200)]
    assert len(renderer.text(tree)) < 20_000


def test_show_prints_outside_a_notebook(capsys):
    loupe.show("tree:", {"a": 1}, jnp.ones((40, 40)), treescope.render_array(jnp.ones((3, 3))))
    assert capsys.readouterr().out.splitlines() == [
        "tree:",
        "{'a': 1}",
        "<jax.Array float32(40, 40)>",
        "<Arrayviz rendering>",
    ]


def test_show_draws_without_the_extension(shell, capsys):
    with shell.display_trap, CapturedDisplay(shell) as captured:
        loupe.show("tree:", {"a": 1}, jnp.ones((40, 40)))
    assert capsys.readouterr().out == "tree:\n"
    assert ["treescope-container" in data["text/html"] for data in captured] == [True, True]
    assert [data["text/plain"] for data in captured] == ["{'a': 1}", "<jax.Array float32(40, 40)>"]


class CapturedDisplay(list):
    def __init__(self, shell):
        self.publisher = shell.display_pub

    def __enter__(self):
        self.publish, self.publisher.publish = self.publisher.publish, self.keep
        return self

    def keep(self, data, **_):
        self.append(data)

    def __exit__(self, *_):
        self.publisher.publish = self.publish


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


def page(value) -> str:
    """What the page shows, as the browser unpacks it; an error is not passed over."""
    with (
        treescope.active_renderer.set_scoped(renderer.extended()),
        treescope.active_autovisualizer.set_scoped(arrays.draw),
    ):
        return treescope.render_to_html(value, compressed=False)


def paths(value) -> set[str]:
    return {html.unescape(path) for path in re.findall(r'data-copy="([^"]*)"', page(value))}


def points(value) -> dict[str, str]:
    """What stands beside a path as a comment."""
    found = re.findall(
        r'data-copy="([^"]*)"[^>]*><span></span></span>'
        r'<span class="color_comment">  # ([\w.]+)</span>',
        page(value),
    )
    return {html.unescape(path): point for path, point in found}


def unequal(llama) -> Llama:
    """So that layers 0 and 1, 2, and 3 are drawn one by one."""
    model = nnx.clone(llama.model)
    weight = model.layers[2].mlp.up_proj.weight
    weight.set_value(weight.get_value().astype(jnp.bfloat16))
    return Llama(model, llama.tokenizer)


def some_modules() -> dict[str, nnx.Module]:
    return {
        "list": nnx.List([nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, 3]),
        "dict": nnx.Dict({"a b": nnx.Linear(4, 8, rngs=nnx.Rngs(0)), "0": 1}),
        "nested": nnx.Sequential(nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))),
        "metadata": nnx.List([nnx.Param(jnp.ones(3), unit="m"), nnx.Variable("text")]),
    }


@pytest.mark.parametrize("kind", ["llama", "unequal", "state", "run", *some_modules()])
def test_every_copied_path_evaluates(kind, llama):
    value = {
        "llama": lambda: llama,
        "unequal": lambda: unequal(llama),
        "state": lambda: nnx.state(llama.model),
        "run": lambda: llama.run("One day", capture=["resid_post", "embed"]),
    }.get(kind, lambda: some_modules()[kind])()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Flax deprecates, too
        copied = paths(value)
        assert len(copied) > 3
        for path in copied:
            eval(f"value{path}", {"value": value})


def test_a_path_that_flax_draws_wrongly_leads_to_what_is_drawn():
    value = nnx.List([nnx.Dict({"a b": nnx.Param(jnp.arange(3.0))})])
    assert "[0]['a b'][...]" in paths(value)
    np.testing.assert_array_equal(value[0]["a b"][...], [0, 1, 2])


def test_beside_a_module_stands_what_capture_calls_its_output(llama):
    found = points(llama)
    assert found[".model.layers[0].mlp.up_proj"] == "layers.0.mlp.up"
    assert found[".model.layers[0].self_attn"] == "layers.0.self_attn.out"
    assert found[".model.layers[0]"] == "layers.0.resid_post"
    assert found[".model.embed_tokens"] == "embed" and found[".model.norm"] == "norm.out"
    for path, point in found.items():
        assert resolve(path, num_layers=4) == (point,)
    run = llama.run("One day", capture=list(found.values()))
    assert set(found.values()) <= set(run.captured)


def test_points_are_named_wherever_the_model_is_and_nowhere_else(llama):
    assert points(llama.model)[".norm"] == "norm.out"
    assert points([llama.model])["[0].norm"] == "norm.out"
    other = unequal(llama)
    assert points(other)[".model.layers[2].mlp.up_proj"] == "layers.2.mlp.up"
    assert points(other)[".model.layers[3]"] == "layers.3.resid_post"
    alike = nnx.List([nnx.Linear(4, 8, rngs=nnx.Rngs(0))])
    alike.norm = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    assert not points([llama.model, alike]).keys() & {"[1].norm", "[1][0]"}
    assert not points({"layers": [1], "norm": alike})


def on_mesh(kind) -> jax.Array:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=jax.devices()[:8])
    return jax.device_put(np.ones((512, 512), np.int32), NamedSharding(mesh, P("x", "y")))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("show", [treescope.show, treescope.display])
def test_treescopes_own_functions_show_what_lies_on_a_mesh(show, kind, loaded):
    """Without us Treescope 0.1.10 raises a ShardingTypeError for Explicit axes."""
    for value in (on_mesh(kind), [on_mesh(kind)]):
        with warnings.catch_warnings(), CapturedDisplay(loaded) as captured:
            warnings.simplefilter("error", UserWarning)
            show(value)
        assert any("treescope" in data.get("text/html", "") for data in captured)


def test_arrays_of_numpy_dicts_of_arrays_and_modules_of_flax_are_drawn(loaded):
    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.up = nnx.Linear(64, 256, rngs=rngs)
            self.norm = nnx.BatchNorm(256, rngs=rngs)
            self.down = nnx.Linear(256, 64, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    module = MLP(nnx.Rngs(0))
    weights = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    for value in (np.ones((64, 256)), {"a": np.ones((64, 256)), "b": jnp.ones(3)}, module, weights):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            drawn, said = shown(loaded, value)["text/html"], shown_text(loaded, value)
            assert "treescope-container" in drawn and "(64, 256)" in said
            for path in paths(value):
                eval(f"value{path}", {"value": value})


def test_many_random_keys_are_named(loaded):
    """Treescope 0.1.10 raises where it would show the first and last of them."""
    keys = jax.random.split(jax.random.key(0), 5000)
    for value in (keys, [keys], {"a": keys[:1000]}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert "treescope-container" in shown(loaded, value)["text/html"]
    assert "key&lt;fry&gt;(5000,)" in page(keys)
    assert renderer.text([keys]) == "[<jax.Array key<fry>(5000,)>]"
