"""Token labels reach the page as text."""

import base64
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import treescope

from llama_loupe import token_labels

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
