"""Questions on documents that nobody else reads: their worlds have reserved pairs."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from llama_jax.cria.world.kinds import marked_document
from llama_jax.cria.world.marks import Question, questions_in
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import POOLS

FACTS = (*POOLS, "who")
COPIES = ("thanks", "letter", "return", "named", "roll", "met", "won", "found")


def facts(seed: int, count: int) -> list[Question]:
    """Questions that need a fact of the prompt's own world, with at least two wrong candidates.

    Their kinds are "home", "job", "food", "thing", "colour", "habit", "animal", "pet", "gift",
    "hiding" (a value is asked for) and "who" (the person is).

    >>> question = facts(seed=0, count=1)[0]
    >>> question.answer.strip() in question.prompt, question.answer in question.wrong
    (True, False)
    """
    return _questions("facts", seed, count, ("portrait", "chat", "story"), FACTS, wrong=2)


def copies(seed: int, count: int) -> list[Question]:
    """Questions whose answer is a name to be copied from earlier, of at least three candidates.

    Their kinds are "thanks", "letter", "return", "named", "roll", "met", "won" and "found".

    >>> all(question.answer.strip() in question.prompt for question in copies(seed=0, count=3))
    True
    """
    sources = ("story", "story", "story", "story", "lists")
    return _questions("copies", seed, count, sources, COPIES, wrong=2)


def indirect_objects(seed: int, count: int) -> list[Question]:
    """Questions of the kind "When Mary and John went ..., John gave a basket to" -> " Mary".

    The kinds are "abba" and "baba"; `wrong[0]` is the name of the one who gives.

    >>> question = indirect_objects(seed=0, count=1)[0]
    >>> question.prompt.count(question.answer) < question.prompt.count(question.wrong[0])
    True
    """
    return _questions("indirect", seed, count, ("indirect",), ("abba", "baba"), wrong=1)


def _questions(
    what: str, seed: int, count: int, sources: Sequence[str], kinds: Sequence[str], wrong: int
) -> list[Question]:
    """One question from each held-out document that has one."""
    rng = Random(f"cria {what} {seed}")
    found: list[Question] = []
    while len(found) < count:
        text = marked_document(rng.choice(sources), Teller(rng, held_out=True))
        options = [q for q in questions_in(text) if q.kind in kinds and len(q.wrong) >= wrong]
        if options:
            found.append(rng.choice(options))
    return found
