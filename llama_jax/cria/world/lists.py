"""Lists: names and things said in the same order again."""

from __future__ import annotations

from llama_jax.cria.world.phrases import WEATHER, a, series
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import FOODS, NAMES, PLACES, THINGS


def lists(t: Teller) -> str:
    """A roll call, an errand or a packing."""
    return t.pick((roll_call, roll_call, errand, packing))(t)


def roll_call(t: Teller) -> str:
    names = t.rng.sample(NAMES, t.rng.randint(4, 9))
    group = t.one_of("children", "guests", "singers", "sailors", "dancers")
    called = names
    if t.rng.random() < 0.2:
        called = t.shuffled(names)
    line = "".join(
        (t.ask("roll", n, [m for m in names if m != n]) if called is names else f" {n}")
        + ("." if i == len(names) - 1 else ",")
        for i, n in enumerate(called)
    )
    again = t.one_of(
        f"The teacher called the {group} one by one:",
        f"At the door the {group} said their names:",
        "Then the names were read again:",
    )
    extra = f" {t.pick(WEATHER)}" if t.rng.random() < 0.5 else ""
    last = t.ending("Nobody was missing.", "All of them were there.")
    written = f"The {group} were {', '.join(names)}."
    if called is not names:
        order = f"The names of the {group} were called: {', '.join(called)}."
        return f"{order}{extra} Once more, please: {', '.join(called)}."
    return f"{written}{extra} {again}{line} {last}"


def errand(t: Teller) -> str:
    p = t.people[0]
    items = t.rng.sample(FOODS + THINGS, t.rng.randint(4, 9))
    lines = "\n".join(f"- {item}" for item in items)
    again = lines if t.rng.random() < 0.6 else ", ".join(items) + "."
    told = t.one_of(
        f"{p} went to the market and bought it all:\n",
        f"In the evening {p} read the list again:\n",
        f"{p} came home, and this was in the basket:\n",
    )
    return f"This is the list of {p}:\n{lines}\n{told}{again}"


def packing(t: Teller) -> str:
    p, q = t.people[:2]
    items = [a(item) for item in t.rng.sample(THINGS, t.rng.randint(3, 7))]
    packed = series(items)
    return (
        f"{p} and {q} got ready for a journey to the {t.pick(PLACES)}."
        f" They packed {packed}. {t.pick(WEATHER)}"
        f" When they came there, they took out {packed}. {t.ending('Nothing was lost.')}"
    )
