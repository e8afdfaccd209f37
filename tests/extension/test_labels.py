"""Token labels, and all that stands in a tree, reach the page as text."""

import base64
import dataclasses
import re
import zlib
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
import treescope
from flax import nnx

from llama_loupe import arrays, renderer, token_labels

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</script></template><img src=x onerror=alert(1)>",
    "</SCRIPT ><svg onload=alert(1)>",
    "<!--<script>",
    "<![CDATA[<",
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)

    def handle_endtag(self, tag):
        self.found.append(f"/{tag}")


def tags(page: str) -> list[str]:
    parser = Tags()
    parser.feed(page)
    return parser.found


def page_of(figure) -> str:
    """The figure's HTML, with what Treescope compressed into it."""
    page = figure._repr_html_()
    inner = [
        zlib.decompress(base64.b64decode(packed)).decode()
        for packed in re.findall(r'octet-stream"\s*>([\w+/=]{100,})</script>', page)
    ]
    assert inner
    return page + "".join(inner)


def figures(pieces: list[str]):
    """A figure for each way in which Treescope takes labels."""
    labels = token_labels(pieces)
    size = len(labels)
    yield treescope.render_array(np.eye(size), axis_item_labels={0: labels, 1: labels})
    yield treescope.render_array(
        np.arange(size), value_item_labels=dict(enumerate(labels)), axis_labels={0: labels[0]}
    )


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_label_adds_no_tag_to_the_page(piece):
    for hostile, harmless in zip(figures([piece, "b"]), figures(["a", "b"]), strict=True):
        page = page_of(hostile)
        assert tags(page) == tags(page_of(harmless))
        assert piece not in page


def test_a_label_looks_like_its_piece():
    pieces = ["Mary", " gave", "</script>", "a<b", "{x}", "\\xE2\\x96", "日本", "é"]
    assert [label.replace("\u200b", "") for label in token_labels(pieces)] == pieces


def test_characters_that_are_not_seen_are_written_out():
    assert token_labels(["\n", "\t", "\u202eabc", "\u200b", "\x00"]) == [
        r"\n",
        r"\t",
        r"\u202eabc",
        r"\u200b",
        r"\x00",
    ]


IN_TREES = [
    *HOSTILE,
    '<img src=x onerror="alert(1)">',
    "</llama-loupe-picture></template><b>",
    "'\"><svg/onload=alert(1)>",
    "}</style><b>",
    "a\u2028<i>",
    "\u202eabc<i>",
    "\x1b[31mred<i>",
    "<b>" + "x" * 10_000,
]


@dataclasses.dataclass(eq=False)
class Key:
    """A key of a dict, with an array in it."""

    inside: object


class Says:
    """What an object says of itself is drawn as it is."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def on_mesh(name: str) -> jax.Array:
    """Of one device: for several XLA would read the name, and not every name."""
    mesh = jax.make_mesh((1,), (name,), devices=jax.devices()[:1])
    return jax.device_put(np.ones((64, 64), np.float32), jax.NamedSharding(mesh, jax.P(name)))


def pictures() -> list[np.ndarray]:
    return [np.ones((64, 64), np.float32)] * 6


TREES = {
    "string": lambda text: [text, {text}, (text,)],
    "key": lambda text: {text: 1},
    "key of arrays": lambda text: {text: pictures()},
    "key with an array": lambda text: {Key(pictures()[0]): text, Key(text): pictures()},
    "repr": lambda text: [Says(text), {Says(text): pictures()}],
    "repr alone": Says,
    "type": lambda text: type(text, (), {})(),
    "module": lambda text: nnx.Dict({text: nnx.Param(np.ones(3), unit=text)}),
    "strings of NumPy": lambda text: [np.array([text]), np.array([text], object)],
    "axis of an array": on_mesh,
    "axis of arrays": lambda text: {text: [on_mesh(text)] * 6},
    "exception": ValueError,
}


def tree_page(value) -> str:
    with (
        treescope.active_renderer.set_scoped(renderer.extended()),
        treescope.active_autovisualizer.set_scoped(arrays.draw),
    ):
        return treescope.render_to_html(value, ignore_exceptions=True, compressed=False)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("text", IN_TREES, ids=range(len(IN_TREES)))
def test_nothing_in_a_tree_adds_a_tag_or_turns_text_around(kind, text):
    harmless = re.sub(r"[<>&\"'/=!]", "x", text)
    drawn = tree_page(TREES[kind](text))
    assert tags(drawn) == tags(tree_page(TREES[kind](harmless)))
    assert not re.search("[\u2028\u202e\x1b]", drawn)
    assert len(drawn) < 1_000_000


@pytest.mark.parametrize("text", IN_TREES, ids=range(len(IN_TREES)))
def test_the_axes_of_a_mesh_add_no_tag(text):
    """Treescope 0.1.10 puts them into a script as they are."""
    sharding = on_mesh(text).sharding
    drawn = tags(tree_page([sharding, sharding.mesh]))
    plain = tags(tree_page([Says("mesh"), Key(1)]))
    assert set(drawn) <= set(plain) and drawn.count("script") == plain.count("script")


def test_half_a_character_is_written_out():
    with treescope.active_autovisualizer.set_scoped(arrays.draw):
        assert renderer.html([Says("\ud800")])
    assert "\\ud800" in tree_page([Says("\ud800")])


def test_an_object_colours_no_terminal():
    assert renderer.text([Says("\x1b[31mred")]) == "[\\x1b[31mred]"
