"""The training loop and the packing of its batches."""

import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.base.replacing import claim
from llama_jax.config import LlamaConfig
from llama_jax.model import Model, initialize, parameters
from llama_jax.tune import Batch, State, TrainingError, batched, next_token_loss, pack, train

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
)


def model() -> Model:
    made = Model(CONFIG)
    initialize(made, seed=0)
    return made


def batches(seed: int = 0) -> Iterator[Batch]:
    """Counting, from random starts: easy to learn."""
    rng = np.random.default_rng(seed)
    while True:
        start = rng.integers(0, 32, (4, 1))
        yield Batch(((start + np.arange(12)) % 32).astype(np.int32))


ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(1e-2, 0.0, 6))


def run(directory: pathlib.Path | None, steps: int, stop: int | None = None) -> State:
    """Trains until `steps`, or is broken off after the step `stop`."""
    states = train(
        model(), batches(), ADAM, steps, directory=directory, save_every=0, progress=False
    )
    *_, last = itertools.islice(states, stop)
    return last


def weights(state: State) -> dict[str, np.ndarray]:
    return {name: np.array(p.get_value()) for name, p in parameters(state.model).items()}


def test_the_state_is_yielded_at_each_step_with_weights_that_can_be_read():
    before = float(jnp.sum(model().embed_tokens.weight.get_value()))
    sums = []
    for n, state in enumerate(train(model(), batches(), ADAM, 3, progress=False), start=1):
        assert (state.step, state.steps, state.tokens) == (n, 3, n * 4 * 11)
        assert state.gradient_norm > 0 and state.seconds > 0
        assert state.learning_rate == pytest.approx(1e-2 * (1 - (n - 1) / 6))
        sums.append(float(jnp.sum(state.model.embed_tokens.weight.get_value())))
    assert len({before, *sums}) == 4


def test_the_loss_is_the_mean_cross_entropy_in_nats():
    tokens = next(batches()).tokens
    flat = model()
    parameters(flat)["norm.weight"].set_value(jnp.zeros(16))
    loss = jax.jit(lambda t, w: next_token_loss(flat, t, w))(tokens, np.ones((4, 11), np.float32))
    assert float(loss) == pytest.approx(np.log(32))


def test_what_weighs_nothing_teaches_nothing():
    tokens = next(batches()).tokens
    counts = np.zeros((4, 11), np.float32)
    counts[:, :5] = 1
    other = tokens.copy()
    other[:, 6:] = 7
    first, second = (
        next(train(model(), [Batch(t, counts)], ADAM, 1, progress=False)) for t in (tokens, other)
    )
    assert first.loss == second.loss
    assert first.tokens == 4 * 5
    for name, array in weights(first).items():
        np.testing.assert_array_equal(array, weights(second)[name])


def test_the_loss_falls():
    states = list(train(model(), batches(), optax.adam(1e-2), 60, progress=False))
    assert states[0].loss > 3 and states[-1].loss < 1
    assert np.isnan(states[0].learning_rate)  # this optimizer does not tell it


def test_only_what_is_trainable_changes():
    before = {name: np.array(p.get_value()) for name, p in parameters(model()).items()}
    names = {"layers.0.mlp.up_proj.weight", "norm.weight"}
    made = train(model(), batches(), ADAM, 1, trainable=names.__contains__, progress=False)
    after = weights(next(made))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == names


def test_the_arrays_that_the_model_had_before_stay_readable():
    mine = model()
    array = mine.embed_tokens.weight.get_value()
    list(train(mine, batches(), ADAM, 2, progress=False))
    assert np.isfinite(np.array(array)).all()


def test_a_training_that_stops_goes_on_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", 6)
    assert run(tmp_path / "parts", 6, stop=3).step == 3
    rest = run(tmp_path / "parts", 6)
    assert (rest.step, rest.tokens, rest.loss) == (whole.step, whole.tokens, whole.loss)
    for name, array in weights(whole).items():
        np.testing.assert_array_equal(array, weights(rest)[name])
    for one, other in zip(
        jax.tree.leaves(whole.optimizer_state), jax.tree.leaves(rest.optimizer_state), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert rest.seconds > 0
    kept = {int(folder.name) for folder in (tmp_path / "parts").iterdir()}
    assert kept == {5, 6}


def test_a_training_that_is_done_is_not_done_again(tmp_path):
    run(tmp_path, 2)
    done = model()
    assert list(train(done, batches(), ADAM, 2, directory=tmp_path, progress=False)) == []
    finished = parameters(run(tmp_path / "again", 2).model)
    for name, p in parameters(done).items():
        np.testing.assert_array_equal(p.get_value(), finished[name].get_value())


def test_what_a_killed_training_left_is_cleared_by_the_next(tmp_path):
    run(tmp_path, 2)
    left = tmp_path / "9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "2", left)
    other = claim(tmp_path)  # as of a training that is still at work
    run(tmp_path, 3)
    assert left.exists()
    os.close(other)
    run(tmp_path, 4)
    assert {folder.name for folder in tmp_path.iterdir()} == {"3", "4"}


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (7, TypeError, "directory is 7"),
        ("", ValueError, "directory is ''"),
        ("file", TrainingError, "file cannot be made: File exists"),
    ],
)
def test_where_a_training_cannot_be_kept_is_named(tmp_path, monkeypatch, given, error, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    states = train(model(), batches(), ADAM, 2, directory=given, progress=False)
    with pytest.raises(error, match=says):
        next(states)


def test_a_training_of_something_else_is_not_gone_on_with(tmp_path):
    run(tmp_path, 1)
    states = train(model(), batches(), optax.sgd(0.1), 2, directory=tmp_path, progress=False)
    with pytest.raises(TrainingError, match="holds step 1 of a training of other sizes"):
        next(states)


def test_batches_that_run_out_are_an_error():
    states = train(model(), [next(batches())], ADAM, 2, progress=False)
    next(states)
    with pytest.raises(TrainingError, match="ran out after 1 of 2 steps"):
        next(states)


def test_a_loss_that_is_not_finite_is_an_error():
    states = train(model(), batches(), optax.sgd(1e30), 3, progress=False)
    with pytest.raises(TrainingError, match="try a lower learning rate"):
        list(states)


def test_nothing_trainable_is_an_error():
    states = train(model(), batches(), ADAM, 1, trainable=lambda name: False, progress=False)
    with pytest.raises(TrainingError, match="nothing to learn"):
        next(states)


def test_packing_keeps_every_token_once():
    rng = np.random.default_rng(0)
    tokens = iter(range(1, 10**6))
    documents = [list(itertools.islice(tokens, n)) for n in rng.integers(1, 50, 300)]
    rows = list(pack(documents, length=20, padding=0, open_rows=4))
    found = [token for row, _ in rows for token in row.tolist() if token]
    assert sorted(found) == [token for document in documents for token in document]
    assert all(row.shape == (20,) and weights.shape == (19,) for row, weights in rows)
    for row, weights in rows:
        np.testing.assert_array_equal(weights, (row[1:] > 0).astype(np.float32))


def test_a_document_that_fits_is_not_cut():
    documents = [[n] * n for n in (7, 3, 9, 2, 10, 1, 4, 6)]
    rows = [row.tolist() for row, _ in pack(documents, length=10, padding=0)]
    for n in (7, 3, 9, 2, 10, 1, 4, 6):
        assert sum(n in row for row in rows) == 1


def test_batches_have_one_size():
    rows = pack([[1, 2, 3]] * 7, length=4, padding=0)
    assert [batch.tokens.shape for batch in batched(rows, 3)] == [(3, 4), (3, 4)]
