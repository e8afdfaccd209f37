"""Plots of feasts, games and free days. Each returns its sentences."""

from __future__ import annotations

from llama_jax.cria.world.phrases import FEELINGS, a, series
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import FOODS, PLACES, THINGS


def birthday(t: Teller) -> list[str]:
    """Each guest brings something, and is thanked for it."""
    host, *guests = t.people
    one, two = t.rng.sample(guests, 2)
    return [
        t.opening(f"{host} had a birthday, and the friends came to the {host['home']}."),
        t.state_all(t.shuffled(guests), "gift"),
        f"They ate {t.pick(FOODS)} and sang a song for {host}.",
        f"{host} thanked {one} for the{t.value(one, 'gift')}.",
        f"{host} thanked {two} for the{t.value(two, 'gift')}.",
        f'"Who brought the {one["gift"]}?" asked a child. "It was{t.who(one, "gift")}," '
        f"said {host}.",
        t.ending(
            f"It was the best birthday of all for {host}.",
            f"{host} was so {t.pick(FEELINGS)} that nobody wanted to go home.",
        ),
    ]


def supper(t: Teller) -> list[str]:
    """A supper where everyone gets what they like."""
    cook, *guests = t.people
    order = t.shuffled(guests)
    return [
        t.opening(
            f"{cook} asked {series([p.name for p in t.shuffled(guests)])} to supper.",
            "evening",
            "winter",
        ),
        t.state_all(t.shuffled(guests), "food"),
        f"{cook} worked in the kitchen for a long time.",
        *(
            t.one_of(
                f"{p} was given some{t.value(p, 'food')}.",
                f"{p} had a lot of{t.value(p, 'food')}.",
            )
            for p in order[: t.pick((2, 3))]
        ),
        f"After supper they all thanked{t.name(cook, 'thanks')}.",
        t.one_of("They sat by the fire and sang.", "They told stories until it was late."),
    ]


def market(t: Teller) -> list[str]:
    """Each buys the food they like best."""
    people = t.people[: t.pick((3, 4))]
    order = t.shuffled(people)
    return [
        t.state_all(t.shuffled(people), "food"),
        t.opening(f"{series([p.name for p in people])} went to the market."),
        t.one_of(
            "It was full of people.",
            "There was music on the square.",
            "The carts were full of good things.",
            "An old man was selling hats.",
        ),
        *(
            t.one_of(
                f"{p} bought some{t.value(p, 'food')}.",
                f"{p} found the best{t.value(p, 'food')}.",
                f"{p} came home with{t.value(p, 'food')}.",
            )
            for p in order
        ),
        t.ending("They had no money left, but they were happy.", "Then they shared it all."),
    ]


def leisure(t: Teller) -> list[str]:
    """After work, each does what they love."""
    people = t.people[: t.pick((3, 4))]
    chosen = t.pick(people)
    return [
        t.state_all(t.shuffled(people), "habit"),
        t.opening(f"{series([p.name for p in people])} had no work to do."),
        *(t.recall(p, "habit") for p in t.shuffled(people)[:2]),
        f'"Who loves {chosen["habit"]} best?" asked the old woman. '
        f'"It is{t.who(chosen, "habit")}," they said.',
        t.ending("The day was over too soon."),
    ]


def hide(t: Teller) -> list[str]:
    """Hide and seek."""
    seeker, *hidden = t.people
    order = t.shuffled(hidden)
    place, who = t.pick((("first", order[0]), ("last", order[-1])))
    return [
        t.opening(f"{series([p.name for p in t.shuffled(t.people)])} played hide and seek."),
        f"{seeker} shut {seeker['hers']} eyes and counted to ten.",
        t.state_all(t.shuffled(hidden), "hiding"),
        *(f"{seeker} found {p} near the{t.value(p, 'hiding')}." for p in order),
        f"The {place} one to be found was{t.name(who, 'found')}.",
        t.ending("Then they played it again.", f'"Now you must seek," said {seeker}.'),
    ]


def race(t: Teller) -> list[str]:
    """Three run, and the first one gets the prize."""
    runners, judge = t.people[:3], t.people[3]
    first, second, third = t.shuffled(runners)
    places = [f"{first} came first", f"{second} came second", f"{third} came third"]
    one, two, three = t.rng.sample(places, 3)
    prize = t.pick(THINGS)
    start, goal = t.rng.sample(PLACES, 2)
    return [
        t.opening(f"there was a race from the {start} to the {goal}."),
        f"{series([p.name for p in t.shuffled(runners)])} wanted to run.",
        t.one_of('"One, two, three, go!"', '"Ready? Run!"') + f" called {judge}.",
        t.one_of("They ran as fast as the wind.", "The dust flew up behind them."),
        f"{one}, {two}, and {three}.",
        f"So {judge} gave the prize, {a(prize)}, to{t.name(first, 'won')}.",
        t.ending(f"{third} laughed and said that it had been fun."),
    ]


def snow(t: Teller) -> list[str]:
    """A snowman gets what each one brings."""
    people = t.people[:3]
    order = t.shuffled(people)
    return [
        t.opening(f"{series([p.name for p in people])} made a big snowman.", "winter"),
        t.state_all(t.shuffled(people), "gift"),
        t.one_of("Then the snowman was ready.", "The snowman looked very fine."),
        "But in spring the snowman was gone.",
        *(f"{p} took home the{t.value(p, 'gift')}." for p in order[: t.pick((2, 3))]),
        t.one_of('"Next year we shall make a new one," they said.', "They were only a little sad."),
    ]


def wishes(t: Teller) -> list[str]:
    """A star falls, and each one makes a wish."""
    people = t.people[:3]
    lucky = t.pick(people)
    return [
        t.opening(f"{series([p.name for p in people])} saw a falling star.", "evening"),
        " ".join(f"{p} wished for {a(p['gift'])}." for p in t.shuffled(people)),
        t.one_of("Then they went to bed.", "They told nobody."),
        f"In the morning there was {a(lucky['gift'])} at the door of{t.who(lucky, 'gift')}.",
        t.one_of(
            "Nobody knew where it came from.",
            "The others had to wait a little longer.",
            "Stars are sometimes slow, but they do not forget.",
        ),
    ]
