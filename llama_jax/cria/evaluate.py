"""What cria can do, measured on worlds it has not seen: one table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from llama_jax.base.modes import jit
from llama_jax.cria import world
from llama_jax.model import Model, forward, leaves_of
from llama_jax.model.tap import Take, Tap
from llama_jax.points import point_of, resolve
from llama_jax.text import Tokenizer

__all__ = ["Evaluation", "Head", "evaluate"]

HELD_OUT = 1  # the seed of all that is asked here; training reads documents of another
ROWS = 32


class Head(NamedTuple):
    """An attention head and its score."""

    layer: int
    head: int
    score: float

    def __str__(self) -> str:
        return f"{self.score:.2f} (layer {self.layer}, head {self.head})"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The marks of a model. Losses are means per token, in nats.

    `accuracy` is the share of questions whose answer is the likeliest of all tokens. `repeated` is
    the loss on uniformly random tokens that are said twice, the first and the second time. The
    best heads are scored on those: the weight that a query of the second half gives to the token
    after its own last occurrence (induction), and any query to the token before it.
    """

    parameters: int
    loss: float
    loss_bigram: float
    loss_unigram: float
    accuracy: dict[str, float]
    questions: int  # how many of each kind
    repeated: tuple[float, float]
    induction: Head
    previous_token: Head

    def markdown(self) -> str:
        """The table, as text that also reads well unrendered."""
        rows = [
            ("Parameters", f"{self.parameters:,}"),
            ("Loss on held-out documents, nats per token", f"{self.loss:.3f}"),
            ("… of a bigram model of the training text", f"{self.loss_bigram:.3f}"),
            ("… of a unigram model of the training text", f"{self.loss_unigram:.3f}"),
            *(
                (f"{name}, {self.questions} questions", f"{share:.1%}")
                for name, share in self.accuracy.items()
            ),
            ("Loss on random tokens, said the first time", f"{self.repeated[0]:.2f}"),
            ("… said the second time", f"{self.repeated[1]:.3f}"),
            ("Best induction head", str(self.induction)),
            ("Best previous-token head", str(self.previous_token)),
        ]
        wide, narrow = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"| {'Measured on worlds it has not seen':{wide}} | {'':{narrow}} |"]
        lines.append(f"|:{'-' * (wide + 1)}|{'-' * (narrow + 1)}:|")
        lines += [f"| {name:{wide}} | {value:>{narrow}} |" for name, value in rows]
        return "\n".join(lines) + "\n"


def evaluate(
    model: Model,
    tokenizer: Tokenizer,
    training_text: Iterable[str],
    questions: int = 500,
    documents: int = 1000,
) -> Evaluation:
    """Measures a model that was trained on documents of `world`.

    `training_text` is what the unigram and bigram baselines count.
    """
    asked = {
        "Facts": world.facts(HELD_OUT, questions),
        "Name copying": world.copies(HELD_OUT, questions),
        "Indirect objects": world.indirect_objects(HELD_OUT, questions),
    }
    held_out = [_ids(tokenizer, text) for text in world.documents(HELD_OUT, documents)]
    counts = _Counts([_ids(tokenizer, text) for text in training_text], tokenizer.vocab_size)
    unigram, bigram = counts.losses(held_out)
    repeated = _repeated(tokenizer)
    losses, patterns = _losses_and_patterns(model, repeated)
    half = repeated.shape[1] // 2
    return Evaluation(
        parameters=model.config.parameter_count,
        loss=_loss(model, held_out),
        loss_bigram=bigram,
        loss_unigram=unigram,
        accuracy={name: _accuracy(model, tokenizer, some) for name, some in asked.items()},
        questions=questions,
        repeated=(float(losses[:, :half].mean()), float(losses[:, half:].mean())),
        induction=_best(_induction(patterns, repeated)),
        previous_token=_best(np.diagonal(patterns, -1, 3, 4).mean((1, 3))),
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, allow_special=True)


def _accuracy(model: Model, tokenizer: Tokenizer, questions: Sequence[world.Question]) -> float:
    """How often the likeliest next token is the answer."""
    prompts = [_ids(tokenizer, question.prompt) for question in questions]
    leaves, structure = leaves_of(model)
    likeliest = np.concatenate(
        [_likeliest(structure, leaves, *batch) for batch in _batches(prompts)]
    )
    answers = np.array([tokenizer.id(question.answer) for question in questions])
    return float(np.mean(likeliest[: len(answers)] == answers))


def _loss(model: Model, rows: Sequence[Sequence[int]]) -> float:
    leaves, structure = leaves_of(model)
    total, count = 0.0, 0
    for tokens, lengths in _batches(rows):
        losses = _token_losses(structure, leaves, tokens, lengths)
        real = np.arange(1, tokens.shape[1]) < lengths[:, None]
        total, count = total + np.asarray(losses)[real].sum(dtype=np.float64), count + real.sum()
    return float(total / count)


def _losses_and_patterns(
    model: Model, tokens: Int[np.ndarray, "B T"]
) -> tuple[Float[np.ndarray, "B T-1"], Float[np.ndarray, "L B N T T"]]:
    names = resolve("pattern", model.config.num_hidden_layers)
    leaves, structure = leaves_of(model)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)
    losses = _token_losses(structure, leaves, tokens, lengths)
    patterns = _captured(structure, leaves, frozenset(names), tokens, lengths)
    return losses, np.stack([patterns[name] for name in names])


@functools.partial(jit, static_argnums=0)
def _likeliest(
    structure: Any, leaves: Any, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Int[Array, " B"]:
    model = jax.tree.unflatten(structure, leaves)
    logits = forward(model, tokens, lengths, logits="last").logits
    assert logits is not None
    return jnp.argmax(logits[:, 0], axis=-1)


@functools.partial(jit, static_argnums=0)
def _token_losses(
    structure: Any, leaves: Any, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, "B T-1"]:
    logits = forward(jax.tree.unflatten(structure, leaves), tokens, lengths).logits
    assert logits is not None
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


@functools.partial(jit, static_argnums=(0, 2))
def _captured(
    structure: Any,
    leaves: Any,
    names: frozenset[str],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> dict[str, Array]:
    model = jax.tree.unflatten(structure, leaves)
    taps = {name: Tap(take=Take(point_of(name).axes)) for name in names}
    return forward(model, tokens, lengths, taps=taps, logits="none").captured


def _batches(
    rows: Sequence[Sequence[int]],
) -> Iterable[tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]]:
    """`ROWS` rows at a time, all of one shape, so that one program serves them."""
    length = max(map(len, rows))
    for start in range(0, len(rows), ROWS):
        tokens = np.zeros((ROWS, length), np.int32)
        lengths = np.zeros(ROWS, np.int32)
        for i, row in enumerate(rows[start : start + ROWS]):
            tokens[i, : len(row)], lengths[i] = row, len(row)
        yield tokens, lengths


class _Counts:
    """A unigram and a bigram model of token ids, smoothed.

    The unigram counts each token once more than it was seen. The bigram counts as if each token
    had been followed once more, by what the unigram expects.
    """

    def __init__(self, rows: Iterable[Sequence[int]], vocab_size: int) -> None:
        pairs = np.concatenate([np.stack((row[:-1], row[1:]), axis=1) for row in rows])
        seen = 1 + np.bincount(pairs[:, 1], minlength=vocab_size)
        self.single = seen / seen.sum()
        self.pairs = np.zeros((vocab_size, vocab_size))
        np.add.at(self.pairs, (pairs[:, 0], pairs[:, 1]), 1)
        self.pairs = (self.pairs + self.single) / (self.pairs.sum(1, keepdims=True) + 1)

    def losses(self, rows: Iterable[Sequence[int]]) -> tuple[float, float]:
        """Nats per token of the unigram and the bigram."""
        pairs = np.concatenate([np.stack((row[:-1], row[1:]), axis=1) for row in rows])
        single = self.single[pairs[:, 1]]
        double = self.pairs[pairs[:, 0], pairs[:, 1]]
        return -float(np.log(single).mean()), -float(np.log(double).mean())


def _repeated(tokenizer: Tokenizer, rows: int = 64, period: int = 48) -> Int[np.ndarray, "B T"]:
    """BOS and then `period` random tokens, twice."""
    special = set(tokenizer.special.values())
    ids = [id for id in range(tokenizer.vocab_size) if id not in special]
    made = [world.random_repeats(i, ids, 2 * period, period) for i in range(rows)]
    return np.array([[tokenizer.bos, *row] for row in made], np.int32)


def _induction(
    patterns: Float[np.ndarray, "L B N T T"], tokens: Int[np.ndarray, "B T"]
) -> Float[np.ndarray, "L N"]:
    """The mean weight on the token after the query's last occurrence, over the second half."""
    found: list[tuple[int, int, int]] = []
    for b, row in enumerate(tokens.tolist()):
        seen: dict[int, int] = {}
        for t, token in enumerate(row):
            if t > len(row) // 2 and token in seen:
                found.append((b, t, seen[token] + 1))
            seen[token] = t
    rows, queries, keys = zip(*found, strict=True)
    return patterns[:, rows, :, queries, keys].mean(0)


def _best(scores: Float[np.ndarray, "L N"]) -> Head:
    layer, head = np.unravel_index(np.argmax(scores), scores.shape)
    return Head(int(layer), int(head), float(scores[layer, head]))
