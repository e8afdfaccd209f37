"""`%load_ext llama_loupe` in an IPython without a browser."""

import jax
import jax.numpy as jnp
import pytest
import treescope
from flax import nnx
from IPython.core.interactiveshell import InteractiveShell

import llama_loupe as loupe
from llama_loupe import renderer


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


def test_of_a_tree_of_many_arrays_the_first_hundred_are_drawn(loaded):
    hundred, more = (
        len(shown(loaded, [jnp.ones((40, 40)) for _ in range(count)])["text/html"])
        for count in (100, 150)
    )
    assert hundred < more < 1.1 * hundred


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
