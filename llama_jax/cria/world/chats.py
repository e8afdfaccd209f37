"""Chats: turns as Llama 3 writes them."""

from __future__ import annotations

from llama_jax.cria.world.phrases import FEELINGS
from llama_jax.cria.world.plots_neighbours import cria
from llama_jax.cria.world.portraits import about, neighbours
from llama_jax.cria.world.recitals import nonsense
from llama_jax.cria.world.stories import story
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import WORDS

SYSTEM = (
    "You are cria, a little llama.",
    "You are a kind little llama.",
    "You tell stories and answer questions.",
)


def chat(t: Teller) -> str:
    """A conversation, sometimes with a system turn before it."""
    system = turn("system", t.pick(SYSTEM)) if t.rng.random() < 0.3 else ""
    return system + t.pick((asked, asked, asked, asked, asked, requested, repeated, greeted))(t)


def asked(t: Teller) -> str:
    """A portrait, and a few questions on it."""
    t.past = t.rng.random() < 0.4
    people = t.people[: t.pick((3, 3, 4))]
    attributes = t.rng.sample(("home", "job", "food", "colour", "habit", "pet"), t.pick((1, 2, 2)))
    lines = [neighbours(t, people)] if t.rng.random() < 0.5 else []
    if t.rng.random() < 0.5:
        lines += [t.state_all(t.shuffled(people), attribute) for attribute in attributes]
    else:
        lines += [about(t, person, attributes) for person in t.shuffled(people)]
    context = " ".join(lines)
    pairs = [t.question(*fact) for fact in t.rng.sample(t.told, t.pick((2, 3)))]
    if t.rng.random() < 0.25:
        text = turn("system", context)
    else:
        question, answer = pairs.pop(0)
        text = turn("user", f"{context}\n\n{question}") + turn("assistant", answer)
    return text + "".join(turn("user", q) + turn("assistant", x) for q, x in pairs)


def requested(t: Teller) -> str:
    """A story on request."""
    request, plot = t.pick(
        (
            ("Tell me a story.", None),
            ("Please tell me a story.", None),
            (f"Tell me a story about {t.people[0]}.", None),
            (f"Can you tell me a story about {t.people[0]}?", None),
            ("Tell me a story about a llama.", cria),
        )
    )
    return turn("user", request) + turn("assistant", story(t, plot))


def repeated(t: Teller) -> str:
    """Saying after someone."""
    text = ""
    for _ in range(t.pick((1, 2, 3))):
        words = " ".join(
            nonsense(t.rng) if t.rng.random() < 0.3 else t.pick(WORDS)
            for _ in range(t.rng.randint(3, 14))
        )
        text += turn("user", f"Say after me: {words}") + turn("assistant", words)
    return text


def greeted(t: Teller) -> str:
    """Somebody says their name, and is called by it."""
    p = t.people[0]
    text = turn("user", f"Hello! I am {p}.") + turn("assistant", f"Hello, {p}! How are you?")
    text += turn("user", t.one_of("I am well.", f"I am {t.pick(FEELINGS)}.", "I am a little sad."))
    text += turn("assistant", t.one_of("Shall I tell you a story?", "Do you want a story?"))
    return text + turn("user", "Yes, please.") + turn("assistant", story(t))


def turn(role: str, text: str) -> str:
    """One turn of a chat.

    >>> turn("user", "Hello!")
    '<|start_header_id|>user<|end_header_id|>\\n\\nHello!<|eot_id|>'
    """
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
