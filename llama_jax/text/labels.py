"""Token labels that Treescope can be given.

A token can be any text, also `</script><img src=x onerror=…>`, and Treescope (0.1.10) writes the
labels of an array into a `<script>` element as JSON that it does not escape for HTML.
"""

from __future__ import annotations

from collections.abc import Iterable

# Invisible, and the reason that `<` before it opens no tag and no comment.
ZERO_WIDTH_SPACE = "\u200b"


def token_labels(pieces: Iterable[str]) -> list[str]:
    r"""The labels that show `pieces`, as `axis_item_labels` or `value_item_labels` of Treescope.

    Each label looks exactly like its piece, except that characters which would not be seen are
    written as Python writes them. Give Treescope no token text that has not been through here:

    ```python
    names = loupe.token_labels(llama.pieces(run.tokens[0]))
    treescope.render_array(pattern, axis_item_labels={0: names, 1: names})
    ```

    >>> token_labels(["Mary", " gave", "\n", "\u202e"])
    ['Mary', ' gave', '\\n', '\\u202e']
    >>> token_labels(["</script>"]) == ["<\u200b/script>"]
    True
    """
    return ["".join(map(shown, piece)) for piece in pieces]


def shown(character: str) -> str:
    if character == "<":
        return "<" + ZERO_WIDTH_SPACE
    # Controls, and format characters: one of them turns the direction of all text after it.
    return character if character.isprintable() else ascii(character)[1:-1]
