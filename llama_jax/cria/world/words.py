"""The words of the world, and the pairs of them that are kept for questions.

All names, and all values that are asked for, are single tokens. One eighth of all pairs (a person
with a value, a giver with a receiver) is reserved: no document states a reserved pair as a fact,
every question of `facts` and `indirect_objects` asks for one.
"""

from __future__ import annotations


def split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = split(
    "Mary Anna Rosa Lucy Emma Clara Nora Alice Ella Ruth "
    "Julia Sara Jane Lily Eva Molly Helen Ida Vera Kate"
)
BOYS = split(
    "John Tom Ben Peter Paul Jack Sam Max Leo Oscar "
    "David Simon Hugo Felix Martin Adam Henry Luke Noah Karl"
)
NAMES = GIRLS + BOYS
HOMES = split(
    "mill inn castle tower cottage cabin bakery lighthouse abbey manor "
    "forge dairy library chapel hut stable palace school barn tent"
)
PLACES = split(
    "market river lake forest garden beach harbour bridge meadow park "
    "hill fair orchard cave valley square pond station shore well store shop"
)
MEETING_PLACES = split(
    "market river lake beach harbour bridge park fair pond station shore well store shop"
)
THINGS = split(
    "basket lamp bell book hat key drum kite ring rope cup ball box clock coat comb boat flute "
    "mirror map ladder pen pot blanket brush bucket candle chair coin doll feather fiddle hammer "
    "jar kettle necklace needle pillow purse ribbon saddle sack scarf shell shovel spoon stone "
    "stool wheel whistle trumpet umbrella apron cloak glove spade"
)
COLOURS = split("red blue green yellow white black brown grey pink purple orange silver golden")
FOODS = split(
    "bread cheese mushrooms honey apples pears cake fish plums berries "
    "nuts beans rice eggs tomatoes pie onions cherries carrots grapes"
)
JOBS = split(
    "baker farmer teacher doctor miller sailor painter weaver smith tailor "
    "gardener shepherd fisher cook singer carpenter potter nurse guard driver"
)
HABITS = split(
    "singing dancing swimming reading fishing painting cooking running "
    "sewing climbing drawing writing knitting sailing walking riding"
)
ANIMALS = split(
    "dog cat goat horse donkey hen duck sheep cow pig "
    "rabbit parrot pony goose mouse fox frog llama lamb turtle"
)
PETS = split(
    "Pip Dot Button Pepper Star Biscuit Shadow Daisy Poppy Toby Rex Bella Coco Fudge Ginger Misty"
)

#: The attributes of a person, with their values.
POOLS: dict[str, tuple[str, ...]] = {
    "home": HOMES,
    "job": JOBS,
    "food": FOODS,
    "thing": THINGS,
    "colour": COLOURS,
    "habit": HABITS,
    "animal": ANIMALS,
    "pet": PETS,
    "gift": THINGS,
    "hiding": PLACES,
}

#: Every name and every value, once.
WORDS = tuple(dict.fromkeys((*NAMES, *(word for pool in POOLS.values() for word in pool))))

_INDEX = {pool: {word: i for i, word in enumerate(pool)} for pool in (NAMES, *POOLS.values())}


def reserved(name: str, value: str, attribute: str) -> bool:
    """Whether the pair is kept out of all documents ("name" is the attribute of a second person).

    >>> [value for value in HOMES if reserved("Mary", value, "home")]
    ['mill', 'abbey', 'palace']
    """
    pool = NAMES if attribute == "name" else POOLS[attribute]
    return (_INDEX[NAMES][name] + _INDEX[pool][value]) % 8 == 0


#: The values that documents may state of a person: by name and attribute.
OPEN = {
    (name, attribute): [v for v in pool if not reserved(name, v, attribute)]
    for name in NAMES
    for attribute, pool in POOLS.items()
}

#: The values that are reserved for questions.
HELD = {
    (name, attribute): [v for v in pool if reserved(name, v, attribute)]
    for name in NAMES
    for attribute, pool in POOLS.items()
}
