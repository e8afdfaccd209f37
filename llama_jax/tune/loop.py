"""The training loop: a generator that yields its state at each step, and can go on later."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from llama_jax.base.modes import jit
from llama_jax.base.replacing import as_path, claim, make_folder
from llama_jax.model import (
    Model,
    forward,
    leaf_numbers,
    leaves_of,
    parameters,
    place_of,
    unembed,
)
from llama_jax.parallel import shard, sharding
from llama_jax.tune.data import Batch

__all__ = ["State", "TrainingError", "next_token_loss", "train", "update"]


class TrainingError(ValueError):
    """A training that cannot start, go on, or that has lost its way."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class State:
    """Where a training stands after `step` of `steps` steps.

    `model` is the model that is being trained, with the weights of this step. The arrays in it and
    in `optimizer_state` are given to the next step, which computes in their memory: copy what has
    to live longer.
    """

    step: int
    steps: int
    loss: float  # nats per token, of this step's batch before its update
    gradient_norm: float  # before clipping
    learning_rate: float  # of this step; nan where the optimizer does not tell
    tokens: int  # how many were learnt from so far
    seconds: float  # spent so far, compilation and earlier sessions among them
    model: Model
    optimizer_state: Any

    def __repr__(self) -> str:
        return (
            f"State(step {self.step} of {self.steps}, loss {self.loss:.4f}, "
            f"{self.tokens} tokens in {self.seconds:.0f} s)"
        )


def train(
    model: Model,
    batches: Iterable[Batch],
    optimizer: optax.GradientTransformation,
    steps: int,
    trainable: Callable[[str], bool] = lambda name: True,
    directory: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    progress: bool = True,
    remat: bool = False,
) -> Iterator[State]:
    """Trains `model` in place, yielding a `State` after each of `steps` steps.

    A step minimizes `next_token_loss` on one batch over the parameters whose names are `trainable`;
    the others stay as they are. The optimizer sees `{name: array}`. One built with
    `optax.inject_hyperparams` tells its learning rate. With `remat` a step keeps what enters each
    layer and makes the rest again on the way back: a third more work, and far less memory.

    With a `directory` the training is written there every `save_every` seconds and at its end, the
    newest two states are kept, and a training that was begun there goes on: bit for bit as if it
    had not stopped, if the model's sizes, the optimizer and the batches are the same. Batches that
    were learnt from are skipped.

    Raises `TrainingError` where nothing is trainable, the batches run out, the loss is not finite,
    the directory cannot be made or holds a training of something else.
    """
    leaves, structure = leaves_of(model)
    slots = parameters(model)
    places = {name: i for name, i in leaf_numbers(model).items() if trainable(name)}
    if not places:
        raise TrainingError("No parameter is trainable: there is nothing to learn.")
    frozen = tuple(None if i in places.values() else leaf for i, leaf in enumerate(leaves))
    # A step computes in the memory of its arguments: the arrays of the caller are not for that.
    weights = {name: jnp.copy(leaves[i]) for name, i in places.items()}
    optimizer_state = optimizer.init(weights)
    if model.mesh is not None:  # counters too: else the second step is compiled anew for them
        everywhere = sharding("", model.mesh)
        optimizer_state = jax.tree.map(
            lambda x: x if place_of(x) else jax.device_put(x, everywhere), optimizer_state
        )
    layout = tuple(map(place_of, jax.tree.leaves((weights, optimizer_state))))
    step_of = functools.partial(update, structure, tuple(places.items()), optimizer, layout, remat)

    step, seen, seconds = 0, 0, 0.0
    store = None if directory is None else _Store(directory)
    if store is not None and store.newest is not None:
        weights, optimizer_state, seen, seconds = store.read(weights, optimizer_state)
        step = store.newest
        for name, array in weights.items():
            slots[name].set_value(array)
    coming = itertools.islice(batches, step, None)
    saved = began = time.monotonic()
    began -= seconds
    bar = tqdm(total=steps, initial=min(step, steps), unit="step", disable=not progress)
    with bar:
        while step < steps:
            batch = next(coming, None)
            if batch is None:
                raise TrainingError(
                    f"The batches ran out after {step} of {steps} steps: give more documents, or "
                    f"ask for {step} steps."
                )
            counts = _counts(batch)
            weights, optimizer_state, loss, norm = step_of(
                weights, optimizer_state, frozen, batch._replace(weights=counts)
            )
            for name, array in weights.items():
                slots[name].set_value(array)
            step, seen = step + 1, seen + int(np.count_nonzero(counts))
            state = State(
                step=step,
                steps=steps,
                loss=float(loss),
                gradient_norm=float(norm),
                learning_rate=_learning_rate(optimizer_state),
                tokens=seen,
                seconds=time.monotonic() - began,
                model=model,
                optimizer_state=optimizer_state,
            )
            if not np.isfinite(state.loss):
                raise TrainingError(
                    f"The loss of step {step} is {state.loss}: try a lower learning rate, or clip "
                    "the gradients."
                )
            bar.set_postfix_str(
                f"loss {state.loss:.3f}, {seen / state.seconds:,.0f} tokens/s", refresh=False
            )
            bar.update()
            if store is not None and (step == steps or time.monotonic() - saved >= save_every):
                store.write(step, weights, optimizer_state, seen, state.seconds)
                saved = time.monotonic()
            yield state


def next_token_loss(
    model: Model,
    tokens: Int[Array, "B T"],
    weights: Float[Array, "B T-1"],
    documents: Int[Array, "B T"] | None = None,
    remat: bool = False,
) -> Float[Array, ""]:
    """The mean cross entropy of each next token, in nats, weighted by `weights`. For `jax.jit`.

    `documents` and `remat` are `forward`'s.
    """
    lengths = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    hidden = forward(model, tokens, lengths, logits="none", documents=documents, remat=remat).hidden
    if model.mesh is None:
        hidden, targets = hidden[:, :-1], tokens[:, 1:]
    else:  # a T that the mesh divides, one position more than has a next token
        targets = jnp.roll(tokens, -1, axis=1)
        weights = jnp.pad(weights, ((0, 0), (0, 1)))
    logits = shard(unembed(model, hidden), "B T V", model.mesh)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)


@functools.partial(jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(5, 6))
def update(
    structure: Any,
    places: tuple[tuple[str, int], ...],
    optimizer: optax.GradientTransformation,
    layout: tuple[NamedSharding | None, ...],
    remat: bool,
    weights: dict[str, Array],
    optimizer_state: Any,
    frozen: tuple[Array | None, ...],
    batch: Batch,
) -> tuple[dict[str, Array], Any, Float[Array, ""], Float[Array, ""]]:
    """One step: the new weights and optimizer state, the loss, the norm of its gradient.

    `layout` says where each array of weights and optimizer state lies, and is to lie.
    """

    def loss_of(weights: dict[str, Array]) -> Float[Array, ""]:
        leaves = list(frozen)
        for name, i in places:
            leaves[i] = weights[name]
        model = jax.tree.unflatten(structure, leaves)
        return next_token_loss(model, *batch, remat=remat)  # type: ignore[arg-type]

    loss, gradients = jax.value_and_grad(loss_of)(weights)
    changes, optimizer_state = optimizer.update(gradients, optimizer_state, weights)
    weights = optax.apply_updates(weights, changes)
    made, tree = jax.tree.flatten((weights, optimizer_state))
    made = [
        array if place is None else jax.lax.with_sharding_constraint(array, place)
        for array, place in zip(made, layout, strict=True)
    ]
    weights, optimizer_state = jax.tree.unflatten(tree, made)
    return weights, optimizer_state, loss, optax.tree.norm(gradients)


def _learning_rate(optimizer_state: Any) -> float:
    """What `optax.inject_hyperparams` keeps of the last step."""
    return float(getattr(optimizer_state, "hyperparams", {}).get("learning_rate", np.nan))


def _counts(batch: Batch) -> Float[np.ndarray, "B T-1"]:
    rows, length = batch.tokens.shape
    return np.ones((rows, length - 1), np.float32) if batch.weights is None else batch.weights


class _Store:
    """The states of one training in a directory, the newest two, each written whole or not."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        import orbax.checkpoint as ocp  # takes a second to import: only who saves should pay

        self._args = ocp.args
        self._directory = as_path(directory, "directory").absolute()
        make_folder(self._directory, TrainingError)
        # Whoever has the lock is the only one that writes: what is half written was left by a
        # process that was killed.
        lock = claim(self._directory)
        if lock is not None:
            weakref.finalize(self, os.close, lock)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=lock is not None,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self.newest: int | None = self._manager.latest_step()

    def write(
        self, step: int, weights: dict[str, Array], optimizer_state: Any, seen: int, seconds: float
    ) -> None:
        arrays = self._args.StandardSave({"weights": weights, "optimizer": optimizer_state})
        counters = self._args.JsonSave({"tokens": seen, "seconds": seconds})
        self._manager.save(step, args=self._args.Composite(arrays=arrays, counters=counters))

    def read(
        self, weights: dict[str, Array], optimizer_state: Any
    ) -> tuple[dict[str, Array], Any, int, float]:
        """The newest state, in the shapes of what is given."""
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            {"weights": weights, "optimizer": optimizer_state},
        )
        wanted = self._args.Composite(
            arrays=self._args.StandardRestore(like), counters=self._args.JsonRestore()
        )
        try:
            found = self._manager.restore(self.newest, args=wanted)
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self._directory} holds step {self.newest} of a training of other sizes or with "
                "another optimizer. Give another directory, or delete this one to start anew."
            ) from error
        arrays, counters = found["arrays"], found["counters"]
        return arrays["weights"], arrays["optimizer"], counters["tokens"], counters["seconds"]
