"""The kinds of documents and their mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from llama_jax.cria.world.chats import chat
from llama_jax.cria.world.gifts import indirect
from llama_jax.cria.world.lists import lists
from llama_jax.cria.world.marks import plain
from llama_jax.cria.world.portraits import portrait
from llama_jax.cria.world.recitals import recital
from llama_jax.cria.world.stories import story
from llama_jax.cria.world.teller import Teller

#: The mix of `documents`: how many documents of each kind, in proportion.
KINDS: dict[str, float] = {
    "story": 30.0,  # a plot with a beginning, an event and an ending
    "portrait": 16.0,  # neighbours, what is known of them, and where it is needed again
    "indirect": 18.0,  # When Mary and John went to the market, John gave a basket to Mary.
    "chat": 16.0,  # the same in turns, as Llama 3 writes them
    "lists": 7.0,  # roll calls, errands, packing
    "recital": 13.0,  # arbitrary material said again: chants, codes, loose words, refrains
}

END = "<|end_of_text|>"


def documents(seed: int, count: int | None = None) -> Iterator[str]:
    """`count` documents (endless if None), the same for the same seed, mixed as `KINDS` says.

    Documents carry no `<|begin_of_text|>`. They end with `<|end_of_text|>`, chats with
    `<|eot_id|>`; special tokens are written out as text.

    >>> first, second = documents(seed=0, count=2)
    >>> first == next(documents(seed=0)), first == second
    (True, False)
    """
    rng = Random(f"cria documents {seed}")
    names, weights = list(KINDS), list(KINDS.values())
    made = 0
    while count is None or made < count:
        kind = rng.choices(names, weights)[0]
        yield plain(marked_document(kind, Teller(rng, held_out=False)))
        made += 1


def document(kind: str, seed: int) -> str:
    """One document of one kind of `KINDS`.

    >>> document("recital", seed=3) == document("recital", seed=3)
    True
    """
    return plain(marked_document(kind, Teller(Random(f"cria {kind} {seed}"), held_out=False)))


def marked_document(kind: str, teller: Teller) -> str:
    """A document with its marks, told by a fresh teller."""
    text = _WRITERS[kind](teller)
    return text if kind == "chat" else text + END


_WRITERS: dict[str, Callable[[Teller], str]] = {
    "story": story,
    "portrait": portrait,
    "indirect": indirect,
    "chat": chat,
    "lists": lists,
    "recital": recital,
}
