"""Plots of neighbours: who comes and goes, works, writes and gives. Each returns its sentences."""

from __future__ import annotations

from llama_jax.cria.world.gifts import exchange
from llama_jax.cria.world.phrases import FEELINGS, series
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import ANIMALS, MEETING_PLACES, PLACES, THINGS, reserved


def cria(t: Teller) -> list[str]:
    """A baby llama is born and needs a name."""
    people, keeper = t.people[:3], t.people[3]
    chosen = t.pick(people)
    names = [p["pet"] for p in people if p is not chosen]
    held = reserved(chosen.name, chosen["pet"], "pet")
    return [
        t.opening(f"a baby llama was born in the {keeper['home']} of {keeper}."),
        t.one_of("A baby llama is called a cria.", "The little cria was soft and warm."),
        t.one_of(
            "It could not walk yet.",
            "Its legs were long and thin.",
            "The little one drank some milk.",
        ),
        f"{series([p.name for p in t.shuffled(people)])} came to see it, for it needed a name.",
        *(f'{p} said: "{p["pet"]}!"' for p in t.shuffled(people)),
        f"The name from {chosen} was the best, so the cria was called"
        f"{t.ask('named', chosen['pet'], names, held)}.",
        t.one_of(
            f"Soon {chosen['pet']} ran over the meadow.",
            f"{chosen['pet']} ate some grass and slept.",
            f"{chosen['pet']} followed {keeper} everywhere.",
        ),
        t.ending(f"And {keeper} was {t.pick(FEELINGS)}."),
    ]


def post(t: Teller) -> list[str]:
    """A letter comes and is answered."""
    p, q, r, s = t.people
    sender, other = t.shuffled((q, r))
    news = t.one_of(
        f'"{s} is well," it said, "and we have a new {t.pick(ANIMALS)}."',
        f'"Come and see {s} and me at the {t.pick(MEETING_PLACES)}," it said.',
        f'"I have found the {t.pick(THINGS)} of {s}," it said.',
    )
    thought = t.one_of(f"{other} had to hear it too.", f"{p} thought of {s} and {other}.")
    return [
        t.opening(
            t.one_of(
                f"{p} and {other} sat near the {t.pick(PLACES)}.",
                f"{other} met {p} near the {t.pick(PLACES)}.",
                f"{p} was alone and thought of {other}.",
            )
        ),
        t.one_of(
            f"A letter came for {p}. It was from {sender}.",
            f"There was a letter from {sender} for {p}.",
            f"{sender} had sent a letter, and {p} opened it.",
        ),
        *t.shuffled((news, thought)),
        f"That evening {p} wrote a letter back to{t.name(sender, 'letter')}.",
        t.ending("It was a long letter.", f"The next week {sender} came to visit."),
    ]


def meeting(t: Teller) -> list[str]:
    """Somebody new comes, says a name, and is helped."""
    p, q, r, s = t.people
    child = q["girl"]
    both = series([x.name for x in t.shuffled((p, r))])
    return [
        t.opening(
            f"{both} were at the {t.pick(MEETING_PLACES)} and saw a {child} with a heavy sack."
        ),
        f'"I am {q}," said the {child}. "Can you help me?"',
        t.one_of(
            f"{p} helped at once, and {r} came too.",
            f"{r} had no time, but {p} helped at once.",
            f"{p} looked at {r}, and then they both helped.",
        ),
        f"They walked to the {q['home']} together.",
        f'{p} said: "Good night,{t.name(q, "met")}!"',
        f'On the way back they met {s}. "Who was that {child}?" asked {s}.',
        f'"It was{t.name(q, "met")}," said {p}.',
        t.ending("After that they were all good friends."),
    ]


def visit(t: Teller) -> list[str]:
    """Two facts of each: where they live, and the animal that must be fed."""
    p, q, r, _ = t.people
    people = (p, q, r)
    return [
        t.state_all(t.shuffled(people), "home"),
        t.state_all(t.shuffled(people), "animal"),
        t.opening(f"{p} wanted to see {q}, so {p['she']} went to the{t.value(q, 'home')}."),
        f"There {p['she']} helped {q} to feed the{t.value(q, 'animal')}.",
        f"Then they both went to see {r} in the{t.value(r, 'home')}.",
        f"They gave some water to the{t.value(r, 'animal')}.",
        f"In the end {p} went home to the{t.value(p, 'home')}.",
    ]


def present(t: Teller) -> list[str]:
    """A gift between two, among neighbours whose work is told."""
    people = t.people[:3]
    return [
        t.state_all(t.shuffled(people), "job"),
        *exchange(t),
        t.recall(t.pick(people), "job"),
        t.ending(),
    ]


def rounds(t: Teller) -> list[str]:
    """Bread is carried to every house."""
    baker, *people = t.people
    order = t.shuffled(people)
    return [
        t.state_all(t.shuffled(people), "home"),
        t.opening(f"{baker} baked bread for all the neighbours."),
        t.one_of(
            "The smell woke up the whole village.",
            f"{baker['she'].capitalize()} put the bread into a big basket.",
        ),
        *(f"{baker} took a loaf to {p} in the{t.value(p, 'home')}." for p in order),
        t.ending("There was nothing left but a few crumbs.", f"Everyone thanked {baker}."),
    ]


def doors(t: Teller) -> list[str]:
    """Each paints a door in another colour."""
    people = t.people[:3]
    told = t.shuffled(people)
    return [
        t.opening(f"{series([p.name for p in people])} wanted to paint their doors.", "spring"),
        " ".join(f"{p} painted the door {p['colour']}." for p in told),
        t.one_of(
            "There was paint on the grass, and on the cat too.",
            "It took them all day.",
            "The whole road smelled of paint.",
        ),
        *(f"The door of {p} was{t.value(p, 'colour')}." for p in t.shuffled(people)[:2]),
        f'"Who has the {told[1]["colour"]} door?" asked the postman. '
        f'"It is{t.who(told[1], "colour")}," said the children.',
        t.ending("How pretty the road was now!"),
    ]


def school(t: Teller) -> list[str]:
    """What the children want to be, and what they became."""
    teacher, *people = t.people
    return [
        t.opening(f"{teacher} asked the children what they wanted to be."),
        " ".join(f'"I want to be a {p["job"]}," said {p}.' for p in t.shuffled(people)),
        t.one_of(f'"We shall see," said {teacher}.', f"{teacher} wrote it all down."),
        "Many years went by.",
        *(f"{p} was a{t.value(p, 'job')} now." for p in t.shuffled(people)[: t.pick((2, 3))]),
        t.one_of(f"{teacher} was {t.pick(FEELINGS)}.", f"They never forgot {teacher}."),
    ]


def travel(t: Teller) -> list[str]:
    """Everyone wants to see another place."""
    people = t.people[:3]
    order = t.shuffled(people)
    return [
        t.opening(f"{series([p.name for p in people])} were ready for a journey."),
        " ".join(f"{p} wanted to see the {p['hiding']}." for p in t.shuffled(people)),
        t.one_of(
            '"We cannot all go the same way," they said.',
            "They talked about it for a long time.",
            "So at the crossroads they said goodbye.",
        ),
        *(f"{p} took the road to the{t.value(p, 'hiding')}." for p in order),
        t.one_of(
            "A year later they met again and had much to tell.",
            "They wrote each other long letters.",
            "It was many weeks before they came home.",
        ),
    ]
