"""The teller of one document: its people, what was told of them, and how sentences are made.

Every document draws its own world: who lives where, owns what, likes what. Some of these facts are
stated and needed again later, so that they must be looked up, not learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from llama_jax.cria.world.marks import marked
from llama_jax.cria.world.phrases import ASKED, DAYS, ENDINGS, RECALLED, STATED, WHO, a
from llama_jax.cria.world.words import GIRLS, HELD, NAMES, OPEN, POOLS, reserved

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody of the world, with a value for each attribute of `POOLS`."""

    name: str
    words: dict[str, str]

    def __str__(self) -> str:
        return self.name

    def __getitem__(self, attribute: str) -> str:
        return self.words[attribute]


class Teller:
    """Draws a world of four people and tells of it, remembering which facts were told.

    The people of a document have no reserved values; with `held_out`, for questions, they have as
    many as they can. A place where an answer is needed is told as a mark (`marks.py`).
    """

    def __init__(self, rng: Random, held_out: bool):
        self.rng, self.pick, self.held_out = rng, rng.choice, held_out
        names = rng.sample(NAMES, 4)
        while reserved(names[0], names[1], "name") != held_out:
            names = rng.sample(NAMES, 4)
        used: dict[str, set[str]] = {attribute: set() for attribute in POOLS}
        used["gift"] = used["thing"]
        self.people = [self._person(name, used) for name in names]
        self.told: list[tuple[Person, str]] = []
        self.past = True

    def _person(self, name: str, used: dict[str, set[str]]) -> Person:
        girl = name in GIRLS
        pronouns = ("she", "her", "her", "girl") if girl else ("he", "him", "his", "boy")
        words = dict(zip(("she", "her", "hers", "girl"), pronouns, strict=True))
        words["n"] = name
        for attribute in POOLS:
            taken = used[attribute]
            free = []
            if self.held_out:
                free = [v for v in HELD[name, attribute] if v not in taken]
            value = self.pick(free or OPEN[name, attribute])
            while value in taken:
                value = self.pick(OPEN[name, attribute])
            taken.add(value)
            words[attribute] = value
        words["a_thing"], words["a_gift"] = a(words["thing"]), a(words["gift"])
        words["a_colour"] = a(words["colour"])
        return Person(name, words)

    # Marks.

    def ask(self, kind: str, answer: str, wrong: Sequence[str], held: bool = True) -> str:
        """The answer with a space before it, marked as a question."""
        return marked(kind, answer, wrong, held)

    def value(self, person: Person, attribute: str) -> str:
        """The person's value, as the answer."""
        others = [p[attribute] for p in self.people if p is not person]
        if attribute == "gift":
            others += [p["thing"] for p in self.people]
        held = reserved(person.name, person[attribute], attribute)
        return self.ask(attribute, person[attribute], others, held)

    def name(self, person: Person, kind: str, held: bool = True) -> str:
        """The person's name, as the answer to a question of that kind."""
        return self.ask(kind, person.name, [p.name for p in self.people if p is not person], held)

    def who(self, person: Person, attribute: str) -> str:
        """The person's name, as the answer to whose the value is."""
        return self.name(person, "who", reserved(person.name, person[attribute], attribute))

    # Sentences.

    def fill(self, template: str, person: Person, attribute: str) -> str:
        """The template about the person, with the attribute's value as the answer."""
        article = a(person[attribute]).split()[0]
        return template.format(**person.words, an=article, v=self.value(person, attribute))

    def state(self, person: Person, attribute: str) -> str:
        """A clause that tells a fact."""
        self.told.append((person, attribute))
        if attribute in ("colour", "pet"):
            self.told.append((person, {"colour": "thing", "pet": "animal"}[attribute]))
        past, present = STATED[attribute]
        return self.pick(past if self.past else present).format_map(person.words)

    def state_all(self, people: Sequence[Person], attribute: str) -> str:
        """Sentences that tell the same of several people."""
        clauses = [self.state(person, attribute) for person in people]
        if len(clauses) > 1 and self.rng.random() < 0.5:
            return ", ".join(clauses[:-1]) + f", and {clauses[-1]}."
        return " ".join(clause + "." for clause in clauses)

    def recall(self, person: Person, attribute: str) -> str:
        """A sentence that needs a fact told before."""
        return self.fill(self.pick(RECALLED[attribute]), person, attribute)

    def question(self, person: Person, attribute: str) -> tuple[str, str]:
        """A question about a fact told before, and its answer."""
        tense = 0 if self.past else 1
        if self.rng.random() < 0.35:
            verb = "was" if self.past else "is"
            asked = WHO[attribute][tense].format_map(person.words)
            return asked, f"It {verb}{self.who(person, attribute)}."
        asked, answer = ASKED[attribute][tense]
        if attribute == "thing" and (person, "colour") in self.told:
            answer = answer.replace("{an}", "{a_colour}")
        return asked.format_map(person.words), self.fill(answer, person, attribute)

    def opening(self, sentence: str, *days: str) -> str:
        """The sentence, told of a day of `DAYS` and perhaps its weather."""
        day = self.pick(days or ("any", "any", "spring", "summer", "autumn", "winter"))
        times, weather = DAYS[day]
        start = f"{self.pick(times)} {sentence}"
        return f"{start} {self.pick(weather)}" if self.rng.random() < 0.6 else start

    def ending(self, *own: str) -> str:
        """One of the plot's own last sentences, or one that fits every story of a day."""
        return self.pick(own) if own and self.rng.random() < 0.6 else self.pick(ENDINGS)

    def one_of(self, *sentences: str) -> str:
        return self.pick(sentences)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.rng.sample(items, len(items))
