"""Marks: the places of a document where an answer is needed.

A mark is written before the answer: what is asked, whether the pair is reserved, the wrong
candidates. Documents are told with their marks; a reader gets them plain, or as questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt whose next token is `answer`; `wrong` are the other candidates in the prompt."""

    prompt: str
    answer: str
    wrong: tuple[str, ...]
    kind: str


def marked(kind: str, answer: str, wrong: Sequence[str], held: bool) -> str:
    """The answer with a space before it, marked as a question."""
    return f"\x01{kind}|{int(held)}|{','.join(wrong)}\x02 {answer}"


def plain(text: str) -> str:
    """The text without its marks."""
    return _PLAIN.sub("", text)


def questions_in(text: str) -> Iterator[Question]:
    """The questions of a document that ask for a reserved pair."""
    for mark in _MARK.finditer(text):
        kind, held, others = mark[1].split("|")
        if held == "1":
            prompt = plain(text[: mark.start()])
            wrong = [f" {w}" for w in others.split(",") if re.search(rf"\b{w}\b", prompt)]
            if re.search(rf"\b{mark[2][1:]}\b", prompt):
                yield Question(prompt, mark[2], tuple(dict.fromkeys(wrong)), kind)


_MARK = re.compile(r"\x01([^\x02]*)\x02( \w+)")
_PLAIN = re.compile(r"\x01[^\x02]*\x02")
