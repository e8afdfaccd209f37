"""How cria is made: the vocabulary, the order of the documents, the optimizer, the steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from llama_jax.checkpoint import huggingface
from llama_jax.config import LlamaConfig, RopeScaling
from llama_jax.cria import world
from llama_jax.cria.evaluate import Evaluation, evaluate
from llama_jax.cria.vocabulary import train_tokenizer
from llama_jax.model import Model, initialize, parameters
from llama_jax.text import Tokenizer
from llama_jax.tune import Batch, State, batched, pack, train

__all__ = [
    "CONFIG",
    "Recipe",
    "batches",
    "export",
    "learn",
    "make_tokenizer",
    "measure",
    "optimizer",
]

CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=640,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=256),
    tie_word_embeddings=True,
    max_position_embeddings=2048,
)
STOP_TOKENS = ("<|end_of_text|>", "<|eot_id|>")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what cria becomes; the same recipe gives the same weights."""

    config: LlamaConfig = CONFIG
    seed: int = 0
    # First, the lowest layers alone on random tokens said again and again, which only copying from
    # earlier in the text foretells. It is learnt all at once, near step 400 of two layers; four
    # layers, or twice the learning rate, spend a thousand steps on what is merely near.
    foundation_layers: int = 2
    foundation_steps: int = 600
    # Then all layers on the world's documents, the others beginning as if they were not there.
    steps: int = 3900
    rows: int = 24  # of a batch of ordinary rows
    length: int = 160  # of a row, in tokens: 98 of 100 documents fit
    long_every: int = 8  # every eighth batch has half as many rows, twice as long
    repeat_every: int = 16  # one document of random tokens, said twice, to so many of the world's
    rehearsal_every: int = 8  # one step in so many goes on with random tokens
    rehearsal_rows: int = 32
    rehearsal_length: int = 96
    warmup: int = 50
    learning_rate: float = 1.5e-3
    vocabulary_documents: int = 6000  # about 2 MB


def learn(
    directory: str | os.PathLike[str],
    recipe: Recipe = Recipe(),
    progress: bool = True,
) -> Iterator[State]:
    """Trains cria, yielding each step's state, and writes the checkpoint into `directory`.

    What is needed to go on after an interrupt lies beside it, in `<directory>.training`.
    """
    directory = pathlib.Path(directory)
    tokenizer = make_tokenizer(recipe)
    training = directory.with_name(f"{directory.name}.training")
    layers = min(recipe.foundation_layers, recipe.config.num_hidden_layers)
    foundation = Model(dataclasses.replace(recipe.config, num_hidden_layers=layers))
    initialize(foundation, recipe.seed)
    yield from train(
        foundation,
        rehearsal(recipe, tokenizer, seed=recipe.seed),
        optimizer(recipe, recipe.foundation_steps, falling=False),
        recipe.foundation_steps,
        directory=training / "foundation",
        progress=progress,
    )
    model = grown(foundation, recipe)
    yield from train(
        model,
        batches(recipe, tokenizer),
        optimizer(recipe, recipe.steps),
        recipe.steps,
        directory=training / "whole",
        progress=progress,
    )
    export(directory, model, tokenizer)


def grown(foundation: Model, recipe: Recipe) -> Model:
    """A model of all layers that computes what `foundation` does: the others write nothing yet."""
    model = Model(recipe.config)
    initialize(model, recipe.seed)
    learnt = parameters(foundation)
    for name, slot in parameters(model).items():
        if name in learnt:
            slot.set_value(learnt[name].get_value())
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            slot.set_value(jnp.zeros_like(slot.get_value()))
    return model


def make_tokenizer(recipe: Recipe = Recipe()) -> Tokenizer:
    """The vocabulary, learnt from the first documents of the training text."""
    texts = world.documents(recipe.seed, recipe.vocabulary_documents)
    backend = train_tokenizer(texts, recipe.config.vocab_size)
    return Tokenizer(backend, backend.token_to_id("<|begin_of_text|>"))


def batches(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Endless, and always the same: ordinary batches, and now and then one of long rows."""
    documents = _documents(recipe, tokenizer, seed=recipe.seed)
    short = (ids for ids in documents if len(ids) <= recipe.length)
    ordinary = _packed(recipe, tokenizer, short, recipe.rows, recipe.length)
    documents = _documents(recipe, tokenizer, seed=recipe.seed + 1000)
    long = _packed(recipe, tokenizer, documents, recipe.rows // 2, 2 * recipe.length)
    repeated = rehearsal(recipe, tokenizer, seed=recipe.seed + 1)
    for step in itertools.count(1):
        if step % recipe.rehearsal_every == 0:
            yield next(repeated)
        yield next(ordinary if step % recipe.long_every else long)


def optimizer(recipe: Recipe, steps: int, falling: bool = True) -> optax.GradientTransformation:
    """AdamW; the learning rate rises over `warmup` steps, then falls to zero in a straight line."""
    peak, rise = recipe.learning_rate, recipe.warmup
    then = optax.linear_schedule(peak, 0 if falling else peak, max(steps - rise, 1))
    schedule = optax.join_schedules([optax.linear_schedule(0, peak, rise), then], [rise])

    def rule(learning_rate: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(learning_rate, b2=0.98, weight_decay=0.1, mask=_projections),
        )

    return optax.inject_hyperparams(rule)(learning_rate=schedule)


def export(directory: str | os.PathLike[str], model: Model, tokenizer: Tokenizer) -> None:
    """Writes the Hugging Face checkpoint."""
    stop_tokens = [tokenizer.special[name] for name in STOP_TOKENS]
    huggingface.save(pathlib.Path(directory), model, tokenizer, stop_tokens)


def measure(directory: str | os.PathLike[str], recipe: Recipe = Recipe()) -> Evaluation:
    """Evaluates a checkpoint, and writes the table beside it as `evaluation.md`."""
    directory = pathlib.Path(directory)
    model = Model(LlamaConfig.from_huggingface(huggingface.read_config(directory)))
    huggingface.load(directory, model)
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    training_text = world.documents(recipe.seed, recipe.vocabulary_documents)
    evaluation = evaluate(model, tokenizer, training_text)
    (directory / "evaluation.md").write_text(evaluation.markdown(), "utf-8")
    return evaluation


def _documents(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Iterator[list[int]]:
    """Token ids of one document after the other, each after BOS."""
    ids = _ordinary_ids(tokenizer)
    end = tokenizer.special["<|end_of_text|>"]
    for i, text in enumerate(world.documents(seed)):
        if i % recipe.repeat_every == 0:
            said_twice = world.random_repeats(seed + i, ids, length=96)
            yield [*tokenizer.encode(""), *said_twice, end]
        yield tokenizer.encode(text, allow_special=True)


def rehearsal(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Random tokens said again and again, the period of each row its own."""
    rows, length = recipe.rehearsal_rows, recipe.rehearsal_length
    ids, rng = _ordinary_ids(tokenizer), Random(f"cria rehearsal {seed}")
    while True:
        tokens = np.full((rows, length), tokenizer.bos, np.int32)
        weights = np.ones((rows, length - 1), np.float32)
        for row in range(rows):
            period = rng.randint(4, length // 2)
            tokens[row, 1:] = world.random_repeats(rng.getrandbits(32), ids, length - 1, period)
            weights[row, :period] = 0  # said for the first time, nobody can know it
        yield Batch(tokens, weights)


def _ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    special = set(tokenizer.special.values())
    return [id for id in range(tokenizer.vocab_size) if id not in special]


def _packed(
    recipe: Recipe, tokenizer: Tokenizer, documents: Iterable[list[int]], rows: int, length: int
) -> Iterator[Batch]:
    padding = tokenizer.special["<|finetune_right_pad_id|>"]
    return batched(pack(documents, length, padding, open_rows=64), rows)


def _projections(parameters: dict[str, Any]) -> dict[str, bool]:
    """What decays: the matrices, but not the embedding and the norms."""
    return {name: name.endswith("_proj.weight") for name in parameters}
