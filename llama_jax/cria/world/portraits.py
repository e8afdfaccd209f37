"""Portraits: neighbours, and where what was told of them is needed again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from llama_jax.cria.world.phrases import series
from llama_jax.cria.world.teller import Person, Teller
from llama_jax.cria.world.words import MEETING_PLACES, PLACES


def portrait(t: Teller) -> str:
    """Two or three things of three or four neighbours, and then each where it is needed."""
    t.past = t.rng.random() < 0.7
    people = t.people[: t.pick((3, 3, 4))]
    attributes = t.rng.sample(
        ("home", "job", "food", "thing", "colour", "habit", "animal", "pet"), t.pick((1, 2, 2, 3))
    )
    if "thing" in attributes and "colour" in attributes:
        attributes.remove("thing")
    if "animal" in attributes and "pet" in attributes:
        attributes.remove("animal")
    lines = [neighbours(t, people)]
    if t.rng.random() < 0.5:
        lines += [t.state_all(t.shuffled(people), attribute) for attribute in attributes]
    else:
        lines += [about(t, person, attributes) for person in t.shuffled(people)]
    asked = t.rng.choices(t.told, k=t.rng.randint(3, 6))
    if t.past and t.rng.random() < 0.6:
        lines.append(t.opening("they all met at the " + t.pick(MEETING_PLACES) + "."))
        once = sorted(dict.fromkeys(asked), key=lambda fact: fact[1] == "home")
        lines += [t.recall(person, attribute) for person, attribute in once]
        lines.append(t.ending())
    else:
        for (person, attribute), _ in groupby(asked):
            lines += t.question(person, attribute)
    return " ".join(lines)


def neighbours(t: Teller, people: Sequence[Person]) -> str:
    """A sentence that names the people."""
    names = series([p.name for p in people])
    if t.past:
        return t.one_of(
            f"Once there were friends called {names}.",
            f"Once upon a time there were {names}.",
            f"In a village near the {t.pick(PLACES)} there were {names}.",
            f"This is a story of {names}.",
            f"Long ago there were neighbours called {names}.",
        )
    return t.one_of(
        f"Here are {names}.",
        f"There are friends called {names}.",
        f"In the village near the {t.pick(PLACES)} there are {names}.",
    )


def about(t: Teller, person: Person, attributes: Sequence[str]) -> str:
    """What there is to tell of one person: the name once, then the pronoun."""
    first, *rest = [t.state(person, attribute) for attribute in attributes]
    she = person["she"].capitalize()
    return " ".join([f"{first}."] + [f"{she}{c.removeprefix(person.name)}." for c in rest])
