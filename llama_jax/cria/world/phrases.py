"""The phrases of the world: facts told, needed again and asked for; days, weather and endings."""

from __future__ import annotations

from collections.abc import Sequence

# How a fact is stated, needed again, and asked for: past and present.
# {n} the person, {she} {her} {hers} the pronouns, {v} the place of the answer.

STATED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "home": (("{n} lived in the {home}",), ("{n} lives in the {home}",)),
    "job": (
        ("{n} was a {job}", "{n} worked as a {job}"),
        ("{n} is a {job}", "{n} works as a {job}"),
    ),
    "food": (
        ("{n} liked {food}", "{n} liked to eat {food}"),
        ("{n} likes {food}", "{n} likes to eat {food}"),
    ),
    "thing": (("{n} had {a_thing}", "{n} owned {a_thing}"), ("{n} has {a_thing}",)),
    "colour": (("{n} had {a_colour} {thing}",), ("{n} has {a_colour} {thing}",)),
    "habit": (("{n} loved {habit}",), ("{n} loves {habit}",)),
    "animal": (("{n} had a {animal}", "{n} kept a {animal}"), ("{n} has a {animal}",)),
    "pet": (("{n} had a {animal} called {pet}",), ("{n} has a {animal} called {pet}",)),
    "gift": (("{n} brought {a_gift}",), ("{n} brought {a_gift}",)),
    "hiding": (("{n} hid near the {hiding}",), ("{n} hides near the {hiding}",)),
}
RECALLED: dict[str, tuple[str, ...]] = {
    "home": (
        "{n} went home to the{v}.",
        "{n} walked back to the{v}.",
        "{n} slept well in the{v}.",
        "{n} lit a fire in the{v}.",
    ),
    "job": (
        "{n} was proud to be a{v}.",
        "{n} was happy to be a{v}.",
        "{n} said that it was good to be a{v}.",
    ),
    "food": (
        "For supper {n} ate{v}.",
        "{n} asked for more{v}.",
        "{n} was hungry and ate some{v}.",
        "{n} had come to buy{v}.",
    ),
    "thing": ("{n} showed everyone the{v}.", "{n} put away the{v}.", "{n} had left the{v} behind."),
    "colour": ("The {thing} of {n} was{v}.", "{n}'s {thing} was{v}."),
    "habit": ("{n} spent the time{v}.", "{n} was happy when{v}.", "{n} dreamed of{v}."),
    "animal": ("{n} went to feed the{v}.", "{n} gave some water to the{v}."),
    "pet": ('{n} called the {animal}: "Come,{v}!"', '{n} told the {animal}: "Be good,{v}."'),
    "gift": ("{n} was glad that everyone liked the{v}.", "{n} had chosen the{v}."),
    "hiding": ("{n} was found near the{v}.", "{n} came back from the{v}."),
}
ASKED: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "home": (
        ("Where did {n} live?", "{n} lived in the{v}."),
        ("Where does {n} live?", "{n} lives in the{v}."),
    ),
    "job": (
        ("What work did {n} do?", "{n} was a{v}."),
        ("What work does {n} do?", "{n} is a{v}."),
    ),
    "food": (
        ("What did {n} like to eat?", "{n} liked{v}."),
        ("What does {n} like to eat?", "{n} likes{v}."),
    ),
    "thing": (
        ("What did {n} have?", "{n} had {an}{v}."),
        ("What does {n} have?", "{n} has {an}{v}."),
    ),
    "colour": (
        ("What colour was the {thing} of {n}?", "The {thing} of {n} was{v}."),
        ("What colour is the {thing} of {n}?", "The {thing} of {n} is{v}."),
    ),
    "habit": (
        ("What did {n} love?", "{n} loved{v}."),
        ("What does {n} love?", "{n} loves{v}."),
    ),
    "animal": (
        ("What animal did {n} have?", "{n} had a{v}."),
        ("What animal does {n} have?", "{n} has a{v}."),
    ),
    "pet": (
        ("What was the {animal} of {n} called?", "The {animal} of {n} was called{v}."),
        ("What is the {animal} of {n} called?", "The {animal} of {n} is called{v}."),
    ),
    "gift": (
        ("What did {n} bring?", "{n} brought {an}{v}."),
        ("What did {n} bring?", "{n} brought {an}{v}."),
    ),
    "hiding": (
        ("Where did {n} hide?", "{n} hid near the{v}."),
        ("Where does {n} hide?", "{n} hides near the{v}."),
    ),
}
WHO: dict[str, tuple[str, str]] = {
    "home": ("Who lived in the {home}?", "Who lives in the {home}?"),
    "job": ("Who was the {job}?", "Who is the {job}?"),
    "food": ("Who liked {food}?", "Who likes {food}?"),
    "thing": ("Who had the {thing}?", "Who has the {thing}?"),
    "colour": ("Who had the {colour} {thing}?", "Who has the {colour} {thing}?"),
    "habit": ("Who loved {habit}?", "Who loves {habit}?"),
    "animal": ("Who had the {animal}?", "Who has the {animal}?"),
    "pet": ("Who had a {animal} called {pet}?", "Who has a {animal} called {pet}?"),
    "gift": ("Who brought the {gift}?", "Who brought the {gift}?"),
    "hiding": ("Who hid near the {hiding}?", "Who hides near the {hiding}?"),
}

DAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "any": (
        ("One day", "One morning", "Early one morning", "On a quiet day", "One fine day"),
        (
            "A soft wind blew over the fields.",
            "White clouds went by.",
            "It was a good day to be outside.",
            "A bell rang far away.",
            "Smoke came from the roofs.",
            "A cart rolled slowly up the road.",
            "Someone was whistling behind the houses.",
        ),
    ),
    "spring": (
        ("One spring day", "On the first day of spring", "One bright morning"),
        (
            "The sun was warm and the birds sang.",
            "The grass was still wet.",
            "The first flowers were out.",
            "Young lambs played in the fields.",
        ),
    ),
    "summer": (
        ("One summer day", "One hot day", "One long summer day"),
        (
            "The air smelled of hay.",
            "Bees hummed in the grass.",
            "The sky was blue and wide.",
            "Even the dogs were too warm to run.",
        ),
    ),
    "autumn": (
        ("One autumn day", "One grey morning", "One windy day"),
        (
            "The leaves were falling.",
            "Fog lay over the water.",
            "It rained a little, but nobody minded.",
            "The geese were flying south.",
        ),
    ),
    "winter": (
        ("One winter day", "One cold morning", "One snowy day"),
        (
            "Snow lay on all the roofs.",
            "There was ice on the water.",
            "The whole village was white and still.",
        ),
    ),
    "evening": (
        ("One evening", "Late one evening", "One quiet evening"),
        (
            "The first stars were out.",
            "The moon was bright.",
            "The lamps were lit.",
            "An owl called from the trees.",
        ),
    ),
}
WEATHER = DAYS["any"][1]
ENDINGS = (
    "It had been a good day.",
    "Nobody ever forgot that day.",
    "And that was the end of the day.",
    "Then the moon came up, and the village slept.",
    "They went to bed tired and happy.",
    "That night everyone slept well.",
    "They still tell this story in the village.",
    "So all was well.",
    "It is good to have friends.",
    "It was a day to remember.",
)
FEELINGS = ("happy", "glad", "proud", "merry")


def a(phrase: str) -> str:
    """The phrase with its article.

    >>> a("mill"), a("old mill")
    ('a mill', 'an old mill')
    """
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def series(words: Sequence[str]) -> str:
    """The words as a list in a sentence.

    >>> series(["Mary", "John", "Tom"])
    'Mary, John and Tom'
    """
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
