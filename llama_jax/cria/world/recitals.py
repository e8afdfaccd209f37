"""Recitals: arbitrary material, said again."""

from __future__ import annotations

from random import Random

from llama_jax.cria.world.phrases import a
from llama_jax.cria.world.teller import Teller
from llama_jax.cria.world.words import PLACES, THINGS, WORDS, split


def recital(t: Teller) -> str:
    """One of the recitals below."""
    return t.pick((chant, parrot, log_book, loose_words, loose_words, scribble, refrain))(t)


def chant(t: Teller) -> str:
    words = [nonsense(t.rng) for _ in range(t.rng.randint(4, 16))]
    text = " ".join(words)
    start = t.one_of(
        "The children sang: ", "The spell was: ", f"{t.people[0]} sang: ", "The frogs sang: ", ""
    )
    return start + again(t, text, t.pick((2, 2, 3)))


def parrot(t: Teller) -> str:
    p = t.people[0]
    lines = [f"{p} had a parrot that said everything twice."]
    for _ in range(t.rng.randint(2, 5)):
        if t.rng.random() < 0.5:
            words = " ".join(t.rng.sample(WORDS, t.rng.randint(3, 9)))
        else:
            words = " ".join(nonsense(t.rng) for _ in range(t.rng.randint(2, 7)))
        lines.append(f'{p} said: "{words}." The parrot said: "{words}."')
    return " ".join(lines)


def log_book(t: Teller) -> str:
    rows = []
    for _ in range(t.rng.randint(2, 6)):
        numbers = " ".join(str(t.rng.randrange(1000)) for _ in range(t.rng.randint(2, 6)))
        rows.append(f"{t.pick(WORDS)} {numbers}")
    text = "\n".join(rows)
    start = t.one_of("The log book:", "The numbers of the day:", f"{t.people[0]} wrote:")
    return f"{start}\n{text}\n{t.one_of('Copied:', 'And once more:', 'Read again:')}\n{text}"


def loose_words(t: Teller) -> str:
    words = t.rng.choices(WORDS, k=t.rng.randint(6, 40))
    text = " ".join(words)
    start = t.one_of("", "", "Say after me: ", "The wind said: ", "Words: ")
    return start + again(t, text, 2 if len(words) > 24 else t.pick((2, 2, 3)))


def scribble(t: Teller) -> str:
    def mark() -> str:
        return "".join(t.rng.choices(_SIGNS, k=t.rng.randint(2, 7)))

    text = " ".join(mark() for _ in range(t.rng.randint(2, 9)))
    start = t.one_of("The sign on the door: ", "The secret word: ", "", "On the wall: ")
    return start + again(t, text, 2)


def refrain(t: Teller) -> str:
    first, second = t.rng.sample(WORDS, 2), t.rng.sample(WORDS, 2)
    chorus = f"Sing {first[0]}, sing {first[1]}, sing {second[0]} and {second[1]},"
    verses = [
        f"{p} went {t.one_of('up', 'down')} to the {t.pick(PLACES)}\nto find {a(t.pick(THINGS))}."
        for p in t.rng.sample(t.people, t.pick((2, 3)))
    ]
    return "\n".join(f"{chorus}\n{verse}" for verse in verses) + f"\n{chorus}\nand that is all."


def again(t: Teller, text: str, times: int) -> str:
    """The text said `times` times, with something between."""
    between = t.one_of(" ", "\n", " Once more: ", " And again: ", "\nAgain:\n", " ... ")
    return between.join([text] * times)


def nonsense(rng: Random) -> str:
    """A word that means nothing."""
    syllables = rng.choice((1, 2, 2, 3))
    word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
    return word + rng.choice(("", "", "n", "m", "l", "r", "k", "t"))


_CONSONANTS = split("b c d f g h j k l m n p r s t v w z br dr fl gl kr pl sh st th tr")
_VOWELS = split("a e i o u a e i o u ai ee oo ou")
_SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789#*+-=%&/?!@$"
