"""Indirect objects: two people, one gives something to the other."""

from __future__ import annotations

from llama_jax.cria.world.phrases import FEELINGS, WEATHER, a
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import COLOURS, MEETING_PLACES, PLACES, THINGS, reserved

GIVEN = (*THINGS, "drink", "flower", "present", "loaf")
TOGETHER = (
    "When {x} and {y} went to the {place},",
    "When {x} and {y} went to the {place},",
    "When {x} and {y} met at the {meeting_place},",
    "After {x} and {y} went to the {place},",
    "While {x} and {y} were at the {meeting_place},",
    "As {x} and {y} walked to the {place},",
    "One day {x} and {y} went to the {place}, and",
    "Then {x} and {y} went to the {place}, and",
    "Then, {x} and {y} went to the {place}.",
    "{x} and {y} were working at the {meeting_place}.",
    "{x} and {y} had a lot of fun at the {meeting_place}.",
    "{x} and {y} sat near the {place}, and",
)
GIVING = (
    "gave", "gave", "gave", "handed", "passed", "showed", "offered", "brought", "lent", "sold",
    "decided to give", "wanted to give",
)  # fmt: skip


def indirect(t: Teller) -> str:
    """One gift, or a few among the same people."""
    r, s = t.people[2:]
    before = []
    if t.rng.random() < 0.4:
        before = [
            t.one_of(
                t.pick(WEATHER),
                f"{r} stayed at home.",
                f"It was the birthday of {r}.",
                f"{r} lived near {s}.",
                f"{r} was ill that day.",
                f"{r} and {s} had work to do.",
            )
        ]
    lines = before + exchange(t)
    for _ in range(t.pick((0, 0, 1, 1, 2))):
        t.rng.shuffle(t.people)
        if not reserved(t.people[0].name, t.people[1].name, "name") and not t.held_out:
            lines += exchange(t)
    if t.rng.random() < 0.5:
        lines.append(t.ending(f"{t.people[0]} was {t.pick(FEELINGS)}."))
    return " ".join(lines)


def exchange(t: Teller) -> list[str]:
    """The two-name sentence, and what comes of it."""
    first, second = t.shuffled(t.people[:2])
    kind, giver, taker = t.pick((("abba", second, first), ("baba", first, second)))
    thing = t.pick(GIVEN)
    what = t.pick((a(thing), a(thing), f"{a(t.pick(COLOURS))} {thing}", f"the {thing}"))
    together = t.pick(TOGETHER).format(
        x=first, y=second, place=t.pick(PLACES), meeting_place=t.pick(MEETING_PLACES)
    )
    others = [giver.name] + [p.name for p in t.people[2:]]
    receives = f"{giver} {t.pick(GIVING)} {what} to{t.ask(kind, taker.name, others)}."
    if t.rng.random() < 0.5:
        thanks = f"{taker} thanked{t.name(giver, 'thanks')} for the {thing}."
    else:
        thanks = t.one_of(
            f'"Thank you," said{t.name(taker, "thanks")} to {giver}.',
            f"{taker} was {t.pick(FEELINGS)} and smiled at{t.name(giver, 'thanks')}.",
            f"{taker} liked the {thing} very much.",
        )
    return [f"{together} {receives}", thanks]
