"""The corpus of cria: what its documents and its held-out questions promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice, pairwise

import pytest
from tokenizers import Tokenizer

from llama_jax.cria import world
from llama_jax.cria.vocabulary import SPECIAL_TOKENS, VocabularyError, train_tokenizer
from llama_jax.cria.world.gifts import GIVING

MAKERS = (world.facts, world.copies, world.indirect_objects)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(world.documents(seed=1, count=4000))


@pytest.fixture(scope="module")
def tokenizer(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def questions(request: pytest.FixtureRequest) -> list[world.Question]:
    return request.param(seed=5, count=1000)


def test_the_same_seed_gives_the_same_documents_and_questions() -> None:
    assert list(world.documents(3, 50)) == list(islice(world.documents(3), 50))
    assert list(world.documents(3, 50)) != list(world.documents(4, 50))
    for maker in MAKERS:
        assert maker(3, 20) == maker(3, 20)
        assert maker(3, 20) == maker(3, 40)[:20]


@pytest.mark.parametrize("kind", world.KINDS)
def test_every_kind_of_document_is_clean_text(kind: str) -> None:
    for seed in range(150):
        text = world.document(kind, seed)
        assert text == text.strip()
        assert "  " not in text, text
        assert not re.search(r"[\x00-\x09\x0b-\x1f{}]", text), text
        assert not re.search(r"\ban? (an?|the)\b", text), text
        if kind != "recital":
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
            assert not re.search(r"[.,!?]{2}| [.,!?]", text), text


def test_special_tokens_are_balanced(corpus: list[str]) -> None:
    for text in corpus:
        headers = re.findall(
            r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\n\n", text
        )
        assert len(headers) == text.count("<|start_header_id|>") == text.count("<|eot_id|>")
        assert text.endswith("<|eot_id|>" if headers else world.END)
        assert text.count(world.END) == (0 if headers else 1)
        assert "<|begin_of_text|>" not in text
        assert set(re.findall(r"<\|\w+\|>", text)) <= set(SPECIAL_TOKENS)


def test_an_answer_is_one_token_that_the_prompt_contains(
    questions: list[world.Question], tokenizer: Tokenizer
) -> None:
    for question in questions:
        assert len(tokenizer.encode(question.answer).ids) == 1
        assert re.search(rf"\b{question.answer.strip()}\b", question.prompt)
        whole = tokenizer.encode(question.prompt + question.answer).ids
        assert whole[:-1] == tokenizer.encode(question.prompt).ids


def test_wrong_candidates_stand_in_the_prompt(questions: list[world.Question]) -> None:
    for question in questions:
        assert question.answer not in question.wrong
        assert len(question.wrong) == len(set(question.wrong)) >= 1
        for wrong in question.wrong:
            assert re.search(rf"\b{wrong.strip()}\b", question.prompt)
        if question.kind not in ("abba", "baba"):
            assert len(question.wrong) >= 2


def _first(question: world.Question, word: str) -> float:
    return -re.search(rf"\b{word}\b", question.prompt).start()


def _last(question: world.Question, word: str) -> float:
    return [m.start() for m in re.finditer(rf"\b{word}\b", question.prompt)][-1]


def _most_frequent(question: world.Question, word: str) -> float:
    return len(re.findall(rf"\b{word}\b", question.prompt))


def _least_frequent(question: world.Question, word: str) -> float:
    return -_most_frequent(question, word)


@pytest.mark.parametrize("score", [_first, _last, _most_frequent])
def test_a_simple_rule_does_not_answer_the_questions(
    questions: list[world.Question], score: Callable[[world.Question, str], float]
) -> None:
    by_kind: dict[str, list[bool]] = {}
    for q in questions:
        candidates = sorted(word.strip() for word in (q.answer, *q.wrong))
        guess = max(candidates, key=lambda word, q=q: score(q, word))
        # The order of the two names is the kind: only together do they balance.
        kind = "indirect" if q.kind in ("abba", "baba") else q.kind
        by_kind.setdefault(kind, []).append(guess == q.answer.strip())
    for kind, right in by_kind.items():
        # Small kinds stray: three standard errors of a share of 0.6.
        assert sum(right) / len(right) <= 0.6 + 1.5 / len(right) ** 0.5, kind


def test_what_was_not_asked_yet_does_not_answer_the_facts() -> None:
    questions = world.facts(seed=6, count=600)
    right = sum(
        max(
            sorted(word.strip() for word in (q.answer, *q.wrong)),
            key=lambda word, q=q: _least_frequent(q, word),
        )
        == q.answer.strip()
        for q in questions
    )
    assert right / len(questions) <= 0.6


def test_every_kind_of_question_is_asked() -> None:
    assert {q.kind for q in world.facts(7, 600)} == set(world.FACTS)
    assert {q.kind for q in world.copies(7, 600)} == set(world.COPIES)
    assert {q.kind for q in world.indirect_objects(7, 100)} == {"abba", "baba"}


def test_no_document_states_a_reserved_pair(corpus: list[str]) -> None:
    stated = {
        "home": r"\b([A-Z]\w+) live[sd] in the (\w+)",
        "job": r"\b([A-Z]\w+) (?:worke?d? as|was|is) an? (\w+)",
        "food": r"\b([A-Z]\w+) like[sd] (?:to eat )?(\w+)",
        "habit": r"\b([A-Z]\w+) love[sd] (\w+)",
        "pet": r"\b([A-Z]\w+) (?:had|has) a \w+ called (\w+)",
    }
    for attribute, pattern in stated.items():
        pairs = [
            pair
            for text in corpus
            for pair in re.findall(pattern, text)
            if pair[0] in world.NAMES and pair[1] in world.POOLS[attribute]
        ]
        assert len(pairs) > 200
        assert not [pair for pair in pairs if world.reserved(*pair, attribute)]


def test_no_document_has_a_reserved_giver_and_receiver(corpus: list[str]) -> None:
    names = "|".join(world.NAMES)
    together = rf"\b({names}) and ({names}) (?:went|met|were|walked|sat|had)[^.]*[.,]"
    gives = rf"(?: and)? (?:{names}) (?:{'|'.join(GIVING)}) [a-z ]+ to (?:{names})\b"
    pairs = [pair for text in corpus for pair in re.findall(together + gives, text)]
    assert len(pairs) > 500
    assert not [pair for pair in pairs if world.reserved(*pair, "name")]


def test_every_name_has_reserved_values_to_ask_for() -> None:
    for attribute, pool in world.POOLS.items():
        for name in world.NAMES:
            held = sum(world.reserved(name, value, attribute) for value in pool)
            assert 1 <= held <= len(pool) / 6, (name, attribute)


def test_random_repeats_repeat() -> None:
    ids = range(1792)
    row = world.random_repeats(0, ids, length=256, period=128)
    assert row[:128] == row[128:]
    assert len(set(row)) > 100
    assert world.random_repeats(0, ids, 256) == world.random_repeats(0, ids, 256)
    assert world.random_repeats(0, ids, 256) != world.random_repeats(1, ids, 256)
    assert all(len(world.random_repeats(seed, ids, 255)) == 255 for seed in range(50))
    # A token mostly follows what it followed before, wherever the passages begin.
    known = total = 0
    for seed in range(50):
        row = world.random_repeats(seed, ids, 256)
        seen = set()
        for pair in pairwise(row):
            known += pair in seen
            seen.add(pair)
            total += 1
    assert known / total > 0.3


def test_the_vocabulary_is_2048_with_the_special_tokens_at_its_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 2048
    assert sorted(tokenizer.get_vocab().values()) == list(range(2048))
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 256
    assert [tokenizer.id_to_token(i) for i in range(1792, 2048)] == list(SPECIAL_TOKENS)


def test_names_and_answers_are_single_tokens(tokenizer: Tokenizer) -> None:
    words = {*world.NAMES, *(word for pool in world.POOLS.values() for word in pool)}
    assert not [word for word in sorted(words) if len(tokenizer.encode(f" {word}").ids) != 1]


def test_the_vocabulary_is_reproducible_and_loses_nothing(
    corpus: list[str], tokenizer: Tokenizer
) -> None:
    assert train_tokenizer(corpus).to_str() == tokenizer.to_str()
    texts = [*corpus[:50], "naïve 🦙 — 12345\r\n\t x", "".join(map(chr, range(256)))]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_too_few_texts_or_ids_are_an_error() -> None:
    with pytest.raises(VocabularyError, match="merges"):
        train_tokenizer(["a little text"])
    with pytest.raises(VocabularyError, match="at least 512"):
        train_tokenizer(["a little text"], vocab_size=500)
