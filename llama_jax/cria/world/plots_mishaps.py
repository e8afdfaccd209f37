"""Plots in which something goes wrong and is put right. Each returns its sentences."""

from __future__ import annotations

from llama_jax.cria.world.phrases import a, series
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import FOODS, MEETING_PLACES, PLACES


def lost(t: Teller) -> list[str]:
    """Something is lost, asked for, found and given back."""
    p, q, r, _ = t.people
    seen, found = t.shuffled((q, r))
    thing, place = p["thing"], t.pick(PLACES)
    return [
        t.state_all(t.shuffled((p, q, r)), "colour"),
        t.opening(f"{p} went to the {place} and lost the{t.value(p, 'thing')}."),
        t.one_of(
            f"{p} was very sad and looked for it everywhere.",
            f"{p['she'].capitalize()} looked for it until it was dark.",
            f"{p} sat down and began to cry.",
        ),
        f"{seen} had not seen it, but {found} came and said: "
        f'"I have found {a(thing)} near the {t.pick(PLACES)}."',
        f'"What colour is it?" asked {p}. "It is{t.value(p, "colour")}," said {found}.',
        f"So {found} gave the {thing} back to{t.name(p, 'return')}.",
        f"{p} thanked{t.name(found, 'thanks')}.",
        t.ending(f"{p} never lost it again.", f"{p} kept the {thing} for many years."),
    ]


def storm(t: Teller) -> list[str]:
    """A storm comes, and all run home."""
    people = t.people[: t.pick((3, 4))]
    order = t.shuffled(people)
    first = order[0]
    return [
        t.state_all(t.shuffled(people), "home"),
        t.opening(
            f"{series([p.name for p in people])} were at the {t.pick(MEETING_PLACES)}.",
            "summer",
            "autumn",
        ),
        t.one_of(
            "Then the sky turned black and a storm came.",
            "Suddenly there was thunder, and it began to rain hard.",
            "A strong wind came up, and the trees began to bend.",
        ),
        t.one_of(f'"Run home!" said {first}.', f"{first} was afraid of the thunder."),
        *(f"{p} ran to the{t.value(p, 'home')}." for p in order),
        t.ending(
            "Soon all of them were dry and warm.",
            "In the morning the sky was blue again.",
            "All night they heard the rain on the roof.",
        ),
    ]


TROUBLES = (
    "could not open the door",
    "had to move a heavy table",
    "could not lift a big stone",
    "had a cat up in a tree",
    "had too much wood to carry",
    "could not find the way",
    "had a hole in the roof",
)


def trouble(t: Teller) -> list[str]:
    """Somebody needs help, and a neighbour gives it."""
    p, *rest = t.people
    helper, other, _ = t.shuffled(rest)
    need = t.pick(TROUBLES)
    return [
        t.state_all(t.shuffled(rest), "job"),
        t.opening(f"{p} {need}."),
        f'"Who can help me?" asked {p}. "Ask the {helper["job"]}," said the old man.',
        f"The {helper['job']} was{t.who(helper, 'job')}.",
        f"{other} was busy as a{t.value(other, 'job')}, but {helper} came at once.",
        t.one_of("Soon it was done.", "Together it was easy.", "It did not take long."),
        f"{p} thanked{t.name(helper, 'thanks')} and gave {helper['her']} some {t.pick(FOODS)}.",
        t.ending("A good neighbour is worth more than gold."),
    ]


def strays(t: Teller) -> list[str]:
    """The animals run away and are called back by their names."""
    people = t.people[:3]
    order = t.shuffled(people)
    home = t.pick(people)
    return [
        t.state_all(t.shuffled(people), "pet"),
        t.opening("somebody left the gate open, and all the animals ran away."),
        t.one_of("They ran up the hill.", "They ran into the forest.", "They were soon far away."),
        *(
            t.one_of(
                f'{p} called: "Come back,{t.value(p, "pet")}!"',
                f"{p} went to look for the{t.value(p, 'animal')}.",
            )
            for p in order
        ),
        f"The first to come home was {home['pet']}, the {home['animal']} of{t.who(home, 'pet')}.",
        t.ending("By evening all of them were home again.", "After that they shut the gate."),
    ]


def noise(t: Teller) -> list[str]:
    """A noise in the night."""
    people, listener = t.people[:3], t.people[3]
    guilty = t.pick(people)
    return [
        t.state_all(t.shuffled(people), "pet"),
        f"Late one night there was a noise in the {listener['home']}.",
        t.one_of(
            f"{listener} woke up and lit a lamp.",
            f"{listener} was afraid and hid under the bed.",
            f"{listener} sat up in bed.",
        ),
        t.one_of('"Is it a ghost?"', '"Who is there?"', '"Is it the wind?"')
        + f" asked {listener}.",
        f"But it was only {guilty['pet']}, the {guilty['animal']} of{t.who(guilty, 'pet')}.",
        f"{listener} laughed and took the{t.value(guilty, 'animal')} back"
        f" to{t.name(guilty, 'return')}.",
        t.one_of("Then all was still again.", "Nobody else had heard it.", "What a night it was!"),
    ]
